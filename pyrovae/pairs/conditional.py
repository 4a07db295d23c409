"""The conditional VAE: all its parts are given a context."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from pyrovae.pairs.base import check_count
from pyrovae.pairs.vae import VAE
from pyrovae.priors.base import Prior


class ConditionalVAE(VAE):
    """p(x|c) = int p(x|z, c) p(z|c) dz with the guide q(z|x, c), c a label or real numbers.

        model(x, c):  z ~ prior(c),  x ~ likelihood(z, c)           within the plate "data"
        guide(x, c):  z ~ posterior(x, c)                           within the plate "data"

    Sohn, Lee & Yan (2015), eq. 4. Labels are whole numbers (N,), which the parts are given
    one-hot; with `num_classes=None` the context is real numbers (N, context_dim), given as they
    are. A prior that ignores the context, such as `StandardNormal`, makes z independent of it;
    `ConditionalNormal` is theirs.

    Args:
        prior: p(z|c), of `context_dim` num_classes, or one that takes no context.
        likelihood: p(x|z, c), of `context_dim` num_classes.
        posterior: q(z|x, c), of `context_dim` num_classes.
        num_classes: how many labels 0, 1, ... there are; None for a context of real numbers.

    Raises:
        ValueError: parts of another `context_dim`, or parts that `VAE` refuses; when called, no
            context, or labels that are no whole numbers from 0 to num_classes - 1.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(8, 8), latent_dim=2, pair="conditional-vae")
        >>> vae.sample(3, torch.tensor([7, 7, 1])).shape
        torch.Size([3, 8, 8])
    """

    takes_labels = True

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        num_classes: int | None = None,
    ) -> None:
        inside = getattr(likelihood, "likelihood", likelihood)  # of what is observed
        dims = [getattr(part, "context_dim", 0) for part in (prior, inside, posterior)]
        wanted = dims[1] if num_classes is None else num_classes
        if wanted < 1 or dims[1:] != [wanted, wanted] or dims[0] not in (0, wanted):
            raise ValueError(
                f"expected parts with context_dim = {max(wanted, 1)}, the classes of the label or "
                "the numbers of the context (of the prior 0 will do); got "
                + ", ".join(
                    f"{type(part).__name__} with {dim}"
                    for part, dim in zip((prior, inside, posterior), dims, strict=True)
                )
            )
        if num_classes is not None and dims[0]:
            prior = OfLabels(prior, num_classes)
        super().__init__(prior, likelihood, posterior)
        self.num_classes = num_classes
        self.takes_labels = num_classes is not None

    @classmethod
    def of_names(
        cls, parts: Any, num_classes: int = 10, context_dim: int | None = None
    ) -> "ConditionalVAE":
        """Make one of parts by name.

        Args:
            parts: see `Pair.of_names`.
            num_classes: how many labels 0, 1, ... there are.
            context_dim: numbers of a real-valued context a datum, in place of labels.
        """
        labels = context_dim is None
        name, dim = ("num_classes", num_classes) if labels else ("context_dim", context_dim)
        if dim is None or dim < 1:
            raise ValueError(f"expected {name} to be a positive whole number; got {dim}")
        posterior = parts.posterior(context_dim=dim)
        prior = parts.prior(posterior=posterior, context_dim=dim)
        likelihood = parts.likelihood(context_dim=dim)
        return cls(prior, likelihood, posterior, num_classes if labels else None)

    def shared(self, c: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the context as the likelihood and the posterior are given it: labels one-hot."""
        if self.num_classes is None:
            if not c:
                raise ValueError(
                    f"expected real numbers (N, {self.posterior.context_dim}) as context; got "
                    "none: give them after x, as in vae.model(x, c)"
                )
            return c
        return as_one_hot(c, self.num_classes, self.likelihood), *c[1:]

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data: z ~ p(z|c), then x ~ p(x|z, c).

        Args:
            n: how many.
            *c: context, n rows each; without any, labels are 0, 1, ..., num_classes - 1 in turn.
            seed: of the draws; None for the global generator.
            mean: return E[x|z, c] for the drawn z in place of x, where that is known.

        Returns:
            Tensor (n, *data_shape).

        Raises:
            ValueError: n is negative or no whole number, or context that has not n rows.
        """
        check_count(n)
        if not c and self.num_classes is not None:
            c = (torch.arange(n) % self.num_classes,)
        if any(len(t) != n for t in c):
            raise ValueError(
                f"expected context of n = {n} rows; got {', '.join(str(tuple(t.shape)) for t in c)}"
            )
        return super().sample(n, *c, seed=seed, mean=mean)


class OfLabels(Prior):
    """p(z|c) of a label c, which the prior inside is given one-hot.

    Args:
        prior: p(z|c) given num_classes numbers.
        num_classes: how many labels there are.
    """

    def __init__(self, prior: Any, num_classes: int) -> None:
        super().__init__(prior.latent_dim)
        self.prior, self.space, self.context_dim = prior, prior.space, num_classes

    def distribution(self, *c: Tensor) -> TorchDistribution:
        """Return p(z|c) of batch shape (len(c),)."""
        return self.prior(as_one_hot(c, self.context_dim, self.prior))


def as_one_hot(c: Sequence[Tensor], num_classes: int, part: nn.Module) -> Tensor:
    """Return labels (N,), the first context, as (N, num_classes): 1 in the label's place, else 0.

    Args:
        c: context.
        num_classes: how many labels there are.
        part: what is given them, whose parameters have the dtype and the device.

    Raises:
        ValueError: no context, or labels that are no whole numbers from 0 to num_classes - 1.
    """
    if not c:
        raise ValueError(
            "expected labels (N,) as context; got none: give them after x, as in vae.model(x, c) "
            "and fit(vae.model, vae.guide, (x, c))"
        )
    labels = c[0]
    whole = not labels.is_floating_point() and not labels.is_complex()
    if not whole or labels.dim() != 1:
        raise ValueError(
            f"expected labels (N,), whole numbers; got {tuple(labels.shape)}, {labels.dtype}: "
            "labels.long(), or for real-valued context build the pair with context_dim=..."
        )
    bad = (labels < 0) | (labels >= num_classes)
    if Distribution._validate_args and bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}; got {int(labels[row])} in row {row}: "
            "number the classes from 0, and build the pair with num_classes as many as they are"
        )
    return one_hot(labels.long(), num_classes).to(next(part.parameters()))
