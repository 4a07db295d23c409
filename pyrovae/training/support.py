"""What values a likelihood allows, asked entry by entry: the columns of a table may differ."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrovae import likelihoods
from pyrovae.distributions import seeded
from pyrovae.likelihoods import Likelihood
from pyrovae.nets import evaluating
from pyrovae.pairs.names import by_name, exported, split_masked

STEP = 1e-3  # a discrete value moved by this is none
LEVEL_OPTIONS = {"total_count", "num_levels"}  # how a likelihood is told of the levels


def allowed(likelihood: Likelihood, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which entries of a datum may take another value, the other entries being a draw's.

    Args:
        likelihood: p(x|z).
        change: from a draw (1, D) of x to the values to ask about, (1, D).

    Returns:
        A boolean tensor (D,), x flattened.
    """
    with torch.no_grad(), seeded(0), evaluating(likelihood):
        p = _at_zero(likelihood)
        x = p.sample().flatten(1).double()  # where a large count differs from itself + STEP
        d = x.shape[1]
        changed = torch.where(torch.eye(d, dtype=torch.bool, device=x.device), change(x), x)
        good = p.support.check(changed.reshape(d, *p.event_shape))
    return good.reshape(d, -1).all(-1).cpu()


def on_the_real_line(likelihood: Likelihood) -> Tensor:
    """Return which entries of a datum may be any real number, (D,)."""
    asked = [allowed(likelihood, partial(torch.full_like, fill_value=v)) for v in (-1.5, 0.5, 1e6)]
    return torch.stack(asked).all(0)


def discrete(likelihood: Likelihood) -> Tensor:
    """Return which entries of a datum take separate values alone, (D,)."""
    return ~(allowed(likelihood, lambda x: x + STEP) | allowed(likelihood, lambda x: x - STEP))


def measure(likelihood: Likelihood) -> str:
    """Say whether p(x|z) is a probability "mass", a "density", or which columns are the one.

    Where the entries of x are of one kind, asking the support is enough; a table is asked by
    column.
    """
    with torch.no_grad(), evaluating(likelihood):
        p = _at_zero(likelihood)
    if len(p.event_shape) > 1:
        return "mass" if p.support.is_discrete else "density"
    kinds = discrete(likelihood)
    if bool(kinds.all()):
        return "mass"
    if not bool(kinds.any()):
        return "density"
    columns = ", ".join(str(i) for i in kinds.nonzero().flatten().tolist())
    return f"mass in columns {columns}, density in the others"


def takes_levels(likelihood: str, binarize: str) -> bool:
    """Does a likelihood, by name, want whole-numbered data as they are, not scaled to [0, 1]?

    It does if its support goes beyond 0 and 1, if it can be told of the levels, or if it has
    columns of kinds of their own.

    Args:
        likelihood: its name.
        binarize: how the data are binarised, "none" if not.

    Raises:
        ValueError: no such likelihood.
    """
    made = _by_default(likelihood)
    if made is None or bool(
        discrete(made) & allowed(made, partial(torch.full_like, fill_value=2.0))
    ):
        return True
    told = LEVEL_OPTIONS & set(inspect.signature(_class(likelihood)).parameters)
    return binarize == "none" and bool(told)


def of_several_kinds(likelihood: str) -> bool:
    """Must a likelihood, by name, be told which kind each column is?

    Raises:
        ValueError: no such likelihood.
    """
    return _by_default(likelihood) is None


def refuse_to_dequantize(likelihood: str) -> None:
    """Refuse a likelihood, by name, for which dequantised data make no sense.

    Raises:
        ValueError: it is no density, or there is no such likelihood.
    """
    made = _by_default(likelihood)
    if made is None or bool(discrete(made).any()):
        raise ValueError(
            "expected --dequantize with a likelihood that is a density, such as normal; got "
            f"{likelihood}: leave --dequantize out, or name another --likelihood"
        )


def _at_zero(likelihood: Likelihood) -> TorchDistribution:
    """Return p(x|z, c) at z = 0, and c = 0 where it takes context."""
    like = next(likelihood.parameters())
    inside = getattr(likelihood, "likelihood", likelihood)  # of what is observed
    context = getattr(inside, "context_dim", 0)
    c = (like.new_zeros(1, context),) if context else ()
    return likelihood(like.new_zeros(1, likelihood.latent_dim), *c)


def _class(likelihood: str) -> Callable[..., Likelihood]:
    found: Callable[..., Likelihood] = by_name(
        "likelihood", split_masked(likelihood)[1], exported(likelihoods)
    )
    return found


def _by_default(likelihood: str) -> Likelihood | None:
    """Return a likelihood of one number made from its name alone, or of one pixel, or none."""
    chosen = _class(likelihood)
    for data_shape in ((1,), (1, 1)):
        try:
            with seeded(0):
                return chosen(latent_dim=1, data_shape=data_shape)
        except (TypeError, ValueError):  # it must be told of its columns, or takes images alone
            continue
    return None
