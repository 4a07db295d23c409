"""Vectors of independent categorical variables, one-hot or as numbers, and their relaxation."""

import math
from abc import abstractmethod

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from pyrovae.distributions.seeding import choose

MAX_VALUES = 100_000  # joint values that are enumerated


def check_groups(latent_dim: int, groups: int) -> tuple[int, int]:
    """Return (groups, categories) of vectors of `groups` equal parts.

    Raises:
        ValueError: groups is no positive whole number, or does not leave at least 2 numbers each.
    """
    if not isinstance(groups, int) or groups < 1 or latent_dim % groups or latent_dim < 2 * groups:
        raise ValueError(
            "expected latent_dim = groups * categories with at least 2 categories; got latent_dim "
            f"{latent_dim} and groups {groups!r}"
        )
    return groups, latent_dim // groups


def check_levels(num_levels: int) -> None:
    """Refuse a number of levels that is no whole number of at least 2."""
    if not isinstance(num_levels, int) or num_levels < 2:
        raise ValueError(f"expected num_levels to be a whole number >= 2; got {num_levels!r}")


def levels_space(num_levels: int) -> str:
    """Return the name of the space of vectors of levels."""
    return f"whole numbers 0 to {num_levels - 1}"


def check_temperature(temperature: float) -> Tensor:
    """Return a temperature as a tensor; refuse one that is not positive."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected temperature to be a positive number; got {temperature!r}")
    return torch.tensor(float(temperature))


class _Grouped(constraints.Constraint):
    """Vectors of `groups` parts one after the other, of `categories` numbers each."""

    event_dim = 1

    def __init__(self, groups: int, categories: int) -> None:
        self.groups, self.categories = groups, categories

    def parts(self, value: Tensor) -> Tensor:
        """Return vectors (..., groups * categories) as (..., groups, categories)."""
        return value.unflatten(-1, (self.groups, self.categories))

    def __repr__(self) -> str:
        return f"{self.groups} group{'s' * (self.groups > 1)} of {self.categories}"


class OneHotVectors(_Grouped):
    """One-hot parts. Its `repr` names the space."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """Return where value (..., groups * categories) is such a vector."""
        return constraints.one_hot.check(self.parts(value)).all(-1)

    def __repr__(self) -> str:
        return f"one-hot vectors, {super().__repr__()}"


class Simplices(_Grouped):
    """Parts >= 0 that sum to 1, up to rounding. Its `repr` names the space."""

    def check(self, value: Tensor) -> Tensor:
        """Return where value (..., groups * categories) is such a vector."""
        parts = self.parts(value)
        off = (parts.sum(-1) - 1).abs()
        rounding = 1e-6 + self.categories * torch.finfo(value.dtype).eps
        return ((parts >= 0).all(-1) & (off < rounding)).all(-1)

    def __repr__(self) -> str:
        return f"the simplex, {super().__repr__()}"


class CategoricalGroups(TorchDistribution):
    """prod_g Cat(c_g; pi_g): what the discrete distributions here are; they say how c is written.

    torch's `Categorical` and `OneHotCategorical` under `to_event` can be scored, but the product
    cannot be enumerated, and a float is no category to them.

    Args:
        logits: unnormalised log-probabilities (..., groups, categories).
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        # The clamp is for 0 log 0 = 0.
        self.logits = logits.log_softmax(-1).clamp(min=torch.finfo(logits.dtype).min)
        self.groups, self.categories = logits.shape[-2:]
        event = self.written(torch.zeros(self.groups, dtype=torch.long)).shape
        super().__init__(logits.shape[:-2], event, validate_args=validate_args)

    @abstractmethod
    def written(self, c: Tensor) -> Tensor:
        """Return categories c (..., groups) as values (..., *event_shape)."""

    @abstractmethod
    def one_hot(self, value: Tensor) -> Tensor:
        """Return values (..., *event_shape) as one-hot vectors (..., groups, categories)."""

    def expand(
        self, batch_shape: torch.Size, _instance: "CategoricalGroups | None" = None
    ) -> "CategoricalGroups":
        """Return the distribution with its logits expanded to the batch shape."""
        new = self._get_checked_instance(CategoricalGroups, _instance)
        new.logits = self.logits.expand(*batch_shape, -1, -1)
        new.groups, new.categories = self.groups, self.categories
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        """Probabilities (..., groups, categories)."""
        return self.logits.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_g log pi_g[c_g], shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        return (self.one_hot(value) * self.logits).sum((-1, -2))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw: shape (*sample_shape, *batch_shape, *event_shape)."""
        with torch.no_grad():
            return self.written(choose(self.logits, sample_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return every joint value, (categories^groups, *batch_shape, *event_shape).

        Args:
            expand: repeat them over the batch? Else its dimensions are 1.

        Raises:
            ValueError: more than 100,000 of them.
        """
        number = self.categories**self.groups
        if number > MAX_VALUES:
            raise ValueError(
                f"expected at most {MAX_VALUES:,} joint values to enumerate; got {self.categories} "
                f"to the power {self.groups}: draw instead, by Trace_ELBO and evidence.iwae"
            )
        each = torch.arange(self.categories, device=self.logits.device)
        every = torch.cartesian_prod(*[each] * self.groups).reshape(number, self.groups)
        ones = [1] * len(self.batch_shape)
        values = self.written(every).reshape(number, *ones, *self.event_shape)
        return values.expand(number, *self.batch_shape, -1) if expand else values

    def entropy(self) -> Tensor:
        """Return -sum_g sum_c pi_gc log pi_gc, shape batch_shape."""
        return -(self.probs * self.logits).sum((-1, -2))


class OneHotGroups(CategoricalGroups):
    """prod_g Cat(z_g; pi_g) of one-hot vectors z_g, concatenated: event (groups * categories,).

    With one group it is `OneHotCategorical`. Arguments: see `CategoricalGroups`.

    Example:
        >>> d = OneHotGroups(torch.zeros(2, 3))
        >>> d.log_prob(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])).exp()  # 1/9
        tensor(0.1111)
        >>> d.enumerate_support().shape
        torch.Size([9, 6])
    """

    @property
    def support(self) -> OneHotVectors:
        """One-hot vectors, concatenated."""
        return OneHotVectors(self.groups, self.categories)

    def written(self, c: Tensor) -> Tensor:
        """Return categories c (..., groups) as one-hot vectors (..., groups * categories)."""
        return torch.nn.functional.one_hot(c, self.categories).flatten(-2).to(self.logits.dtype)

    def one_hot(self, value: Tensor) -> Tensor:
        """Return the value's parts."""
        return self.support.parts(value)

    @property
    def mean(self) -> Tensor:
        """The probabilities (..., groups * categories)."""
        return self.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """Pi (1 - pi), shape (..., groups * categories)."""
        return self.mean * (1 - self.mean)


class StraightThroughGroups(OneHotGroups):
    """`OneHotGroups` whose draws z pass gradients to the probabilities: dz/dpi is taken to be 1.

    Bengio et al. (2013). The gradient of E[g(z)] is biased, unless g is linear; so it is not for
    the closed KL, nor for the draws' own log-probability, which is linear in z.
    """

    has_rsample = True
    biased_gradient = True  # of its draws: estimators that need the derivative itself refuse it
    has_enumerate_support = False  # TraceEnum_ELBO would not weight values of what has rsample

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw: one-hot vectors (*sample_shape, *batch_shape, groups * categories)."""
        return self.sample(sample_shape) + (self.mean - self.mean.detach())


class CategoricalVector(CategoricalGroups):
    """prod_i Cat(z_i; pi_i) with z_i in {0, ..., categories - 1}, as floats: event (groups,).

    Arguments: see `CategoricalGroups`.

    Example:
        >>> d = CategoricalVector(torch.zeros(2, 3))
        >>> d.log_prob(torch.tensor([2.0, 0.0])).exp()  # 1/9
        tensor(0.1111)
    """

    @property
    def support(self) -> constraints.Constraint:
        """Vectors of whole numbers 0, ..., categories - 1."""
        return constraints.independent(constraints.integer_interval(0, self.categories - 1), 1)

    def written(self, c: Tensor) -> Tensor:
        """Return categories (..., groups) as floats."""
        return c.to(self.logits.dtype)

    def one_hot(self, value: Tensor) -> Tensor:
        """Return whole numbers (..., groups) as one-hot vectors (..., groups, categories)."""
        hot = torch.nn.functional.one_hot(value.long(), self.categories)
        return hot.to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """E[z], shape (..., groups)."""
        return self.probs @ self._levels

    @property
    def variance(self) -> Tensor:
        """Var[z], shape (..., groups)."""
        return (self.probs * (self._levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.categories, device=self.logits.device).to(self.logits.dtype)


class RelaxedOneHotGroups(TorchDistribution):
    """prod_g Concrete(z_g; pi_g, T) of points z_g of the simplex: event (groups * categories,).

    Maddison et al. (2017), eq. 10, Jang et al. (2017): z_g = softmax((log pi_g + noise) / T) with
    Gumbel noise, whose density is

        p(z_g) = (C - 1)! T^(C-1) prod_c pi_c z_c^(-T-1) / (sum_c pi_c z_c^-T)^C

    for C categories, with respect to all z_c but one. In float32 and at small T a draw of torch's
    `RelaxedOneHotCategorical` underflows to 0, where the density is NaN: here no z_c is below
    `floor`, and one nearer to 0 is scored as if it were there.

    Args:
        temperature: T > 0, one number.
        logits: log pi, unnormalised (..., groups, categories).
    """

    arg_constraints = {
        "temperature": constraints.positive,
        "logits": constraints.independent(constraints.real, 2),
    }
    has_rsample = True

    def __init__(
        self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        self.temperature, self.logits = temperature, logits
        self.groups, self.categories = logits.shape[-2:]
        event = torch.Size((self.groups * self.categories,))
        super().__init__(logits.shape[:-2], event, validate_args=validate_args)

    @property
    def support(self) -> Simplices:
        """Points of simplices, concatenated."""
        return Simplices(self.groups, self.categories)

    @property
    def floor(self) -> float:
        """The least z_c: 4e-29 in float32, 2e-231 in float64, whose inverses do not overflow."""
        return torch.finfo(self.logits.dtype).tiny ** 0.75

    def expand(
        self, batch_shape: torch.Size, _instance: "RelaxedOneHotGroups | None" = None
    ) -> "RelaxedOneHotGroups":
        """Return the distribution with its logits expanded to the batch shape."""
        logits = self.logits.expand(*batch_shape, -1, -1)
        new = type(self)(self.temperature, logits, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_g log p(z_g), shape the broadcast batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        log_z = self.support.parts(value).clamp(min=self.floor).log()
        share = (self.logits - self.temperature * log_z).log_softmax(-1)
        c = self.categories
        constant = torch.lgamma(torch.full_like(self.temperature, c))
        constant = self.groups * (constant + (c - 1) * self.temperature.log())
        return (share - log_z).sum((-1, -2)) + constant

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw: shape (*sample_shape, *batch_shape, groups * categories)."""
        shape = torch.Size(sample_shape) + self.logits.shape
        wait = torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device).exponential_()
        gumbel = -wait.clamp(min=torch.finfo(wait.dtype).tiny).log()
        z = ((self.logits + gumbel) / self.temperature).softmax(-1)
        return z.clamp(min=self.floor).flatten(-2)


@register_kl(OneHotGroups, OneHotGroups)
@register_kl(CategoricalVector, CategoricalVector)
def _kl_categorical_groups(p: CategoricalGroups, q: CategoricalGroups) -> Tensor:
    """KL = sum_g sum_c pi_gc (log pi_gc - log rho_gc), shape the broadcast batch shape."""
    if p.logits.shape[-2:] != q.logits.shape[-2:]:
        raise ValueError(
            f"expected two distributions over the same values; got {p.support} and {q.support}"
        )
    return (p.probs * (p.logits - q.logits)).sum((-1, -2))
