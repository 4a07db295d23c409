"""The laws that every part obeys."""

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pyrovae.distributions import seeded
from pyrovae.likelihoods import Likelihood
from pyrovae.posteriors import Posterior
from pyrovae.testing.report import Report, Row


class _Broken(Exception):
    """A law is broken; the message says how."""


def check_part(part: nn.Module, x: Tensor | None = None, z: Tensor | None = None) -> Report:
    """Check a prior, likelihood or posterior against the laws that every part obeys.

    Shapes; any number of left dimensions; a gradient to every parameter; the state dict's round
    trip; float32 and float64 alike; `repr`; each row a function of its own row alone; draws on the
    support; data off the support refused. Whether a density is *right* is for a reference to say:
    this knows none.

    Args:
        part: the part; it is copied, and not changed; the copy is in evaluation mode.
        x: data (N, *data_shape), N >= 3: what a posterior is called on; for a likelihood, what is
            scored (by default its own draws).
        z: latents (N, latent_dim), N >= 3: what a likelihood is called on. By default normal draws.

    Returns:
        Report: `.ok`, `.rows`, `.failures`; `str()` is the table.

    Raises:
        ValueError: a posterior without x, or fewer than 3 rows.

    Example:
        >>> from pyrovae import priors
        >>> check_part(priors.StandardNormal(latent_dim=2)).ok
        True
    """
    part = copy.deepcopy(part).double().eval()
    with seeded(0):
        inputs: tuple[Tensor, ...] = ()
        if isinstance(part, Likelihood) or z is not None:
            given = torch.randn(4, *part.in_shape) if z is None else z  # type: ignore[misc]
            inputs = (given.double(),)
        elif isinstance(part, Posterior) or x is not None:
            if x is None:
                raise ValueError("expected x, data to call the posterior on; got None")
            inputs = (x.double(),)
        if inputs and len(inputs[0]) < 3:
            raise ValueError(f"expected at least 3 rows; got {len(inputs[0])}")
        scored = x.double() if x is not None and z is not None else None
        rows = tuple(_checked(law, function) for law, function in _laws(part, inputs, scored))
    return Report(type(part).__name__, rows)


def _checked(law: str, function: Callable[[], str]) -> Row:
    try:
        return Row(law, "ok", function())
    except _Broken as broken:
        return Row(law, "FAILS", str(broken))
    except (ValueError, RuntimeError, TypeError, NotImplementedError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        return Row(law, "FAILS", f"{type(error).__name__}: {reason}")


def _laws(
    part: nn.Module, inputs: tuple[Tensor, ...], scored: Tensor | None
) -> Iterator[tuple[str, Callable[[], str]]]:
    n = len(inputs[0]) if inputs else 5  # odd: no draws of two categories balance
    batch = (n,) if inputs else ()

    def value() -> Tensor:
        if scored is not None:
            return scored
        with seeded(1), torch.no_grad():
            d = part(*inputs)
            return d.sample(() if inputs else (n,))

    def shapes() -> str:
        d = part(*inputs)
        log_p = d.log_prob(value())
        if tuple(d.batch_shape) != batch or tuple(log_p.shape) != (n,):
            raise _Broken(
                f"expected batch_shape {batch} and one log-density a row; got "
                f"{tuple(d.batch_shape)} and {tuple(log_p.shape)}: end the distribution with "
                ".to_event"
            )
        return f"batch_shape {batch}, event_shape {tuple(d.event_shape)}"

    def left_dimensions() -> str:
        y = value()
        plain = part(*inputs).log_prob(y)
        lifted = [t.expand(2, 3, *t.shape) for t in inputs]
        got = part(*lifted).log_prob(y.expand(2, 3, *y.shape))
        _same(got, plain.expand(2, 3, n), "with two more left dimensions")
        return "(2, 3, N) as (N,)"

    def gradients() -> str:
        if not list(part.parameters()):
            return "no parameters"
        part.zero_grad()
        part(*inputs).log_prob(value()).sum().backward()
        for name, p in part.named_parameters():
            if p.grad is None or not bool(p.grad.isfinite().all()):
                raise _Broken(f"parameter {name} has no finite gradient")
            if not bool(p.grad.any()):
                raise _Broken(f"parameter {name} has gradient 0")
        return f"{len(list(part.parameters()))} parameters"

    def state_dict() -> str:
        y = value()
        before = part(*inputs).log_prob(y)
        saved = {k: t.clone() for k, t in part.state_dict().items()}
        changed = copy.deepcopy(part)
        with torch.no_grad():
            for p in changed.parameters():
                p.add_(0.3)
        changed.load_state_dict(saved)
        _same(changed(*inputs).log_prob(y), before, "after load_state_dict")
        return f"{len(saved)} tensors"

    def dtypes() -> str:
        y = value()
        single = copy.deepcopy(part).float()
        distribution = single(*(t.float() for t in inputs))
        for d, dtype in ((distribution, torch.float32), (part(*inputs), torch.float64)):
            if d.sample().dtype != dtype:
                raise _Broken(f"expected draws in {dtype} of a part in it; got {d.sample().dtype}")
        got = distribution.log_prob(y.float())
        _same(got.double(), part(*inputs).log_prob(y), "in float32", tolerance=1e-4)
        return "float32 as float64"

    def representation() -> str:
        if type(part).__name__ not in repr(part):
            raise _Broken(f"expected the class's name in repr; got {repr(part)[:60]!r}")
        return repr(part).splitlines()[0]

    def rows() -> str:
        y = value()
        plain = part(*inputs).log_prob(y)
        alone = torch.cat(
            [part(*(t[i : i + 1] for t in inputs)).log_prob(y[i : i + 1]) for i in range(n)]
        )
        _same(alone, plain, "with each row alone: a row depends on another one")
        return f"{n} rows"

    def support() -> str:
        d = part(*inputs)
        if not bool(d.support.check(value()).all()):
            raise _Broken(f"expected draws on the support {d.support}")
        y = value()
        tried = 0
        for bad in (math.nan, -1.5, 0.5, 1e9):
            off = y.clone()
            off.view(n, -1)[0, 0] = bad
            if bool(d.support.check(off).all()):
                continue
            tried += 1
            try:
                part(*inputs).log_prob(off)
            except ValueError:
                continue
            raise _Broken(f"expected a ValueError for {bad}, off the support {d.support}; got none")
        return f"{tried} values off it refused"

    yield "shapes", shapes
    yield "left dimensions", left_dimensions
    yield "gradients", gradients
    yield "state dict", state_dict
    yield "dtypes", dtypes
    yield "repr", representation
    yield "rows", rows
    yield "support", support


def _same(got: Tensor, expected: Tensor, when: str, tolerance: float = 1e-9) -> None:
    difference = (got - expected).abs() / (1 + expected.abs())
    if got.shape != expected.shape or not bool((difference <= tolerance).all()):
        raise _Broken(
            f"expected the same log-densities {when}; got a relative difference of "
            f"{float(difference.detach().max()):.3g}"
        )
