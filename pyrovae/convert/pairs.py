"""A pair, or another posterior of one datum, as ArviZ's own object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.convert.arrays import Coordinates, Names, from_arrays, name_dims
from pyrovae.evidence.pareto import MIN_DRAWS, khat
from pyrovae.importance import batched, find_modules, posterior_draws, prior_draws

NOTE = (
    "log p(x|z) at latents of the datum's own, for which ArviZ's loo, waic and compare are wrong: "
    "see pyrovae.convert.loo"
)


def to_arviz(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_samples: int = 1000,
    seed: int = 0,
    dims: Names | None = None,
    coords: Coordinates | None = None,
    modules: Sequence[nn.Module] = (),
) -> Any:
    """Return draws, densities and data of a pair as ArviZ's object, one chain of S draws.

    An `InferenceData` with ArviZ 0.2x, an xarray `DataTree` with 1.x, of the same content:

    | group | variables | dimensions |
    |---|---|---|
    | posterior | z ~ q(z|x), each site of the guide | chain, draw, data, event |
    | posterior_predictive | x' ~ p(x|z) at these, each observed site | chain, draw, data, event |
    | prior | z ~ p(z) | chain, draw, data, event |
    | prior_predictive | x' ~ p(x|z) at these | chain, draw, data, event |
    | log_likelihood | log p(x|z), each observed site | chain, draw, data |
    | sample_stats | log_joint: log p(x, z); log_guide: log q(z|x) | chain, draw, data |
    | | log_weight: log_joint - log_guide | chain, draw, data |
    | observed_data | x, each observed site | data, event |
    | constant_data | context_0, ... | data, event |
    | | pareto_k: k-hat of the weights, if S >= 30 | data |

    Event dimensions are `{site}_dim_{i}` unless `dims` names them. All of it is held in memory:
    2 S N times the numbers of x and z of a datum. The draws are independent, as those of a Markov
    chain are not, but of q(z|x), not p(z|x): `pareto_k` says whether that matters, and `log_weight`
    mends it.

    Never use ArviZ's loo, waic or compare on the result: `convert.loo` says why,
    `convert.compare_evidence` is what to use instead.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_samples: number S of draws a datum.
        seed: of all draws; `log_weights` with it has the same weights.
        dims: names of the event dimensions of a site, as in `{"x": ["row", "column"]}`.
        coords: labels of a dimension, as in `{"data": ["first", "second"]}`.
        modules: those that the functions hold in their closures; set to evaluation mode here.

    Returns:
        InferenceData or DataTree. `.to_netcdf(path)` saves it, and so, given the package zarr, does
        `.to_zarr(path)` of a DataTree, which `.to_datatree()` makes of an InferenceData.

    Raises:
        ValueError: no valid pair, bad data or weights, names that do not fit, or num_samples that
            is no positive whole number.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> found = to_arviz(vae.model, vae.guide, torch.ones(3, 4), num_samples=50)
        >>> found.posterior["z"].shape, found.posterior["z"].dims
        ((1, 50, 3, 2), ('chain', 'draw', 'data', 'z_dim_0'))
        >>> found.constant_data["pareto_k"].shape
        (3,)
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected num_samples to be a positive whole number; got {num_samples!r}")
    options: dict[str, Any] = {"num_draws": num_samples, "seed": seed, "modules": modules}
    drawn = posterior_draws(model, guide, x, *c, **options)
    prior = prior_draws(model, x, *c, **options)
    log_weight = drawn.log_joint - drawn.log_guide
    _, context = batched(x, c, find_modules(model, guide, modules=modules))
    constant = {f"context_{i}": t for i, t in enumerate(context)}
    if num_samples >= MIN_DRAWS:
        constant["pareto_k"] = khat(log_weight)
    stats = {"log_joint": drawn.log_joint, "log_guide": drawn.log_guide, "log_weight": log_weight}
    sites = {**drawn.latents, **drawn.predictive}
    events = {name: value.shape[2:] for name, value in sites.items()}
    events |= {name: value.shape[1:] for name, value in constant.items()}
    named, labels = name_dims(events | dict.fromkeys(stats, ()), range(len(x)), dims, coords)
    return from_arrays(
        {
            "posterior": _chains(drawn.latents),
            "posterior_predictive": _chains(drawn.predictive),
            "prior": _chains({n: t for n, t in prior.items() if n in drawn.latents}),
            "prior_predictive": _chains({n: prior[n] for n in drawn.observed}),
            "log_likelihood": _chains(drawn.log_likelihood),
            "sample_stats": _chains(stats),
            "observed_data": _arrays(drawn.observed),
            "constant_data": _arrays(constant),
        },
        named,
        labels,
        notes={"log_likelihood": {"note": NOTE}},
    )


def posterior_to_arviz(
    samples: Mapping[str, Tensor],
    sample_stats: Mapping[str, Tensor] | None = None,
    *,
    datum: Any = 0,
    dims: Names | None = None,
    coords: Coordinates | None = None,
) -> Any:
    """Return another posterior of one datum, as of a Markov chain, in the form of `to_arviz`.

    So that ArviZ draws the two together: the samples get the dimension "data", of length one, like
    those of `to_arviz(model, guide, x[n : n + 1], coords={"data": [n]})`.

    Args:
        samples: for each latent site its values (chains, draws, *event_shape).
        sample_stats: figures of each draw, (chains, draws), such as ArviZ's `lp` and `diverging`.
        datum: the datum's label.
        dims: names of the event dimensions of a site.
        coords: labels of a dimension.

    Returns:
        InferenceData or DataTree with the groups posterior and, if they are given, sample_stats.

    Raises:
        ValueError: no samples, shapes that differ, values that are not finite, or names that do
            not fit.

    Example:
        >>> found = posterior_to_arviz({"z": torch.zeros(4, 100, 2)}, datum=7)
        >>> found.posterior["z"].dims, found.posterior["data"].values
        (('chain', 'draw', 'data', 'z_dim_0'), array([7]))
    """
    stats = dict(sample_stats or {})
    first = next(iter(samples.values()), torch.empty(0))
    for name, value in [*samples.items(), *stats.items()] or [("samples", first)]:
        same = value.shape[:2] == first.shape[:2] and (name in samples or value.dim() == 2)
        if value.dim() < 2 or not value.numel() or not same:
            shape = "(chains, draws, *event_shape)" if name in samples else "(chains, draws)"
            raise ValueError(
                f"expected {name!r} of shape {shape}, the same chains and draws for all; got "
                f"{tuple(value.shape)}, the first has {tuple(first.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected values of {name!r} that are finite; got some that are not")
    events = {name: value.shape[2:] for name, value in samples.items()}
    named, labels = name_dims(events, [datum], dims, coords)
    groups = {"posterior": _arrays({name: value.unsqueeze(2) for name, value in samples.items()})}
    if stats:
        groups["sample_stats"] = _arrays(stats)
    return from_arrays(groups, named, labels)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: t.detach().cpu().numpy() for name, t in tensors.items()}


def _chains(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return arrays with one chain."""
    return {name: value[None] for name, value in _arrays(tensors).items()}
