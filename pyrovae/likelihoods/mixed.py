"""Tables of several kinds of columns, and data with missing entries: likelihoods of likelihoods."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import Columns, Observed, has_marginals, split_mask
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp
from pyrovae.nets.naming import by_name, typed

GIVEN = ("latent_dim", "data_shape", "net", "context_dim")  # to a group, by `Mixed` itself


class _Nothing(nn.Module):
    """Stands where a likelihood's own network would: `Mixed` has one for all."""

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.out_shape = out_shape

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), *self.out_shape)


class Mixed(Likelihood):
    """p(x|z) = prod_g p_g(x[columns of g] | z), a likelihood for each group of a table's columns.

    One network gives the parameters of all. Nazabal et al. (2020).

    Args:
        latent_dim: length of z.
        data_shape: (D,), the number of columns.
        net: factory of the network, or the network.
        context_dim: numbers of context a datum; 0 for none.
        columns: for each group (likelihood, columns) or (likelihood, columns, options): a class of
            this package or its name, whole numbers that together are 0, ..., D - 1, and further
            arguments of the class.

    Raises:
        ValueError: data of more dimensions, an unknown likelihood, or columns that are not each
            named once.

    Example:
        >>> p = Mixed(2, (3,), columns=[("normal", [0, 2]), ("bernoulli", [1])])
        >>> p(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        columns: Sequence[Sequence[Any]] = (),
    ) -> None:
        kinds, self._columns = _groups(columns, tuple(data_shape))
        groups = [
            kind(latent_dim, (len(index),), _Nothing, **options)
            for (kind, options), index in zip(kinds, self._columns, strict=True)
        ]
        self._sizes = [math.prod(group.param_shape) for group in groups]  # `param_shape` asks
        if any(getattr(group, "offset", False) for group in groups):
            raise ValueError("expected groups of columns without offset=True; Mixed hands none on")
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.groups = nn.ModuleList(groups)

    @property
    def param_shape(self) -> Shape:
        """(P,): the parameters of all groups in a row."""
        return (sum(self._sizes),)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the product of the groups' distributions for params (..., P)."""
        parts = []
        for group, index, own in zip(
            self.groups, self._columns, params.split(self._sizes, -1), strict=True
        ):
            d = group.distribution(own.reshape(*own.shape[:-1], *group.param_shape))  # type: ignore[operator, misc]
            parts.append((torch.tensor(index, device=params.device), d))
        return Columns(parts)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return each group's own rule, in a row."""
        return torch.cat(
            [
                group.params_of_data(x[:, index]).reshape(-1)  # type: ignore[operator]
                for group, index in zip(self.groups, self._columns, strict=True)
            ]
        )


def _groups(
    columns: Sequence[Sequence[Any]], data_shape: Shape
) -> tuple[list[tuple[type[Likelihood], dict[str, Any]]], list[list[int]]]:
    """Return the class and options of each group, and its columns."""
    if len(data_shape) != 1:
        raise ValueError(f"expected data_shape (D,) of a table for Mixed; got {data_shape}")
    kinds: list[tuple[type[Likelihood], dict[str, Any]]] = []
    indices: list[list[int]] = []
    for group in columns:
        named = (
            list(group[1]) if len(group) in (2, 3) and isinstance(group[1], list | tuple) else []
        )
        if not named or any(not isinstance(i, int) or isinstance(i, bool) for i in named):
            raise ValueError(
                "expected each group of columns as (likelihood, columns) or (likelihood, columns, "
                "options), its columns whole numbers, such as ['categorical', [3], "
                f"{{'num_levels': 4}}]; got {group!r}"
            )
        kind = _kind(group[0])
        options = group[2] if len(group) == 3 else {}
        if not isinstance(options, dict):
            raise ValueError(f"expected the options of a group of columns by name; got {options!r}")
        kinds.append((kind, typed("likelihood", kind, options, taken=GIVEN)))
        indices.append(named)
    if sorted(i for index in indices for i in index) != list(range(data_shape[0])):
        raise ValueError(
            f"expected columns=[(likelihood, columns), ...] to name each of the {data_shape[0]} "
            f"columns 0, ..., {data_shape[0] - 1} once; got {indices}"
        )
    return kinds, indices


def _kind(likelihood: Any) -> type[Likelihood]:
    """Return the class of that name."""
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        return likelihood
    known, queue = {}, list(Likelihood.__subclasses__())
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        if not inspect.isabstract(kind) and kind is not Mixed:
            known[kind.__name__] = kind
    found: type[Likelihood] = by_name(
        "the likelihood of a group of columns", str(likelihood), known
    )
    return found


class Masked(nn.Module):
    """p(x_obs|z) = int p(x|z) dx_mis, any likelihood with the missing entries integrated out.

    Mattei & Frellsen (2019), eq. 4: data missing at random. An entry is missing where x is NaN, or
    where the mask is 0: the mask is the last context tensor, (N, *data_shape). The posterior that
    goes with it is built with `missing=True`: it is given zeros and the mask.

    Args:
        likelihood: of whole data: of independent entries, `FullCovarianceNormal` or `Mixed`.

    Raises:
        ValueError: a likelihood whose entries cannot be integrated out in closed form.

    Example:
        >>> from pyrovae.likelihoods import Bernoulli
        >>> p = Masked(Bernoulli(latent_dim=2, data_shape=(3,)))
        >>> x = torch.tensor([[1.0, torch.nan, torch.nan]])
        >>> bool(p(torch.zeros(1, 2)).log_prob(x) > -2)
        True
    """

    missing = True  # NaN in x is meant: see `importance.batched`

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        shape = getattr(likelihood, "param_shape", None)
        if shape is None or not has_marginals(likelihood.distribution(torch.zeros(1, *shape))):
            raise ValueError(
                f"Masked expected a likelihood whose entries can be integrated out: independent "
                f"entries, FullCovarianceNormal or Mixed; got {type(likelihood).__name__}"
            )
        self.likelihood = likelihood

    @property
    def latent_dim(self) -> int:
        """Length of z."""
        return self.likelihood.latent_dim

    @property
    def data_shape(self) -> Shape:
        """Shape of one datum."""
        return self.likelihood.data_shape

    @property
    def net(self) -> nn.Module:
        """The network of the likelihood inside."""
        return self.likelihood.net

    @property
    def in_shape(self) -> Shape:
        """(latent_dim,)."""
        return self.likelihood.in_shape

    def forward(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x_obs | z, c), whose `completed` fills in what is missing."""
        extra = int(getattr(self.likelihood, "offset", False))
        mask, rest = split_mask(c, self.data_shape, self.likelihood.context_dim + extra)
        return Observed(self.likelihood(z, *rest), mask)

    def start_at_mean(self, x: Tensor) -> None:
        """Start decoding at the mean of what is observed: see `Likelihood.start_at_mean`."""
        mean = x.nanmean(0).nan_to_num(nan=0.0)
        self.likelihood.start_at_mean(torch.where(x.isnan(), mean, x))


Likelihood.register(Masked)  # it is one, but its network and parameters are those inside
