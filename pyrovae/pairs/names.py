"""Pairs by name: every choice one word."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from pyrovae import likelihoods, nets, posteriors, priors
from pyrovae.distributions import seeded
from pyrovae.nets.naming import by_name, hyphenated, normalised, typed
from pyrovae.pairs.base import Pair
from pyrovae.pairs.bayesian_decoder import BayesianDecoderVAE
from pyrovae.pairs.conditional import ConditionalVAE
from pyrovae.pairs.hierarchical import HierarchicalVAE
from pyrovae.pairs.mixture import MixtureVAE
from pyrovae.pairs.semi_supervised import SemiSupervisedVAE
from pyrovae.pairs.sequence import SequenceVAE
from pyrovae.pairs.vae import VAE

Options = Mapping[str, Any]
Named = tuple[str, Options | None]  # a part's name and its options
PAIRS: dict[str, type[Pair]] = {
    c.__name__: c
    for c in (
        VAE,
        ConditionalVAE,
        HierarchicalVAE,
        SequenceVAE,
        BayesianDecoderVAE,
        SemiSupervisedVAE,
        MixtureVAE,
    )
}


def exported(module: ModuleType) -> dict[str, Any]:
    """Return what a module's `__all__` names."""
    return {name: getattr(module, name) for name in module.__all__}


def build(
    *,
    data_shape: Sequence[int],
    latent_dim: int = 20,
    prior: str = "standard-normal",
    likelihood: str = "bernoulli",
    posterior: str = "mean-field-normal",
    net: str = "mlp",
    hidden: Sequence[int] | None = None,
    pair: str = "vae",
    seed: int = 0,
    prior_options: Options | None = None,
    likelihood_options: Options | None = None,
    posterior_options: Options | None = None,
    net_options: Options | None = None,
    pair_options: Options | None = None,
) -> Any:
    """Build a pair from names, the same for the same arguments.

    Names are class names, compared without case, hyphen or underscore. The decoder's hidden layers
    mirror the encoder's. An option that is an object is named like a part, with its arguments after
    a colon: `likelihood_options={"variance": "fixed:0.1"}`. A likelihood of data with missing
    entries is named "masked:" and the likelihood of those observed: `likelihood="masked:normal"`.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        prior: a class of `priors`.
        likelihood: a class of `likelihoods`.
        posterior: a class of `posteriors`.
        net: a factory of `nets`, for the encoder and the decoder.
        hidden: widths of the encoder's hidden layers; None for the net's own, (400,) for "mlp".
        pair: the pair's class.
        seed: of the initial weights; the global generators are left alone.
        prior_options: further arguments of the prior's class.
        likelihood_options: further arguments of the likelihood's class.
        posterior_options: further arguments of the posterior's class.
        net_options: further arguments of the net's factory.
        pair_options: further arguments of the pair's `of_names`.

    Returns:
        The pair; its `config` holds these arguments as JSON-able data.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.

    Example:
        >>> vae = build(data_shape=(8, 8), latent_dim=2, prior="mixture-of-normals", hidden=(16,))
        >>> type(vae.prior).__name__
        'MixtureOfNormals'
    """
    shape = tuple(data_shape)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"expected data_shape to hold positive whole numbers; got {shape}")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"expected latent_dim to be a positive whole number; got {latent_dim!r}")
    pair_class = by_name("pair", pair, PAIRS)
    net_class = by_name("net", net, exported(nets))
    if hidden is None:
        hidden = inspect.signature(net_class).parameters["hidden"].default
    config = {
        "data_shape": list(shape), "latent_dim": latent_dim, "prior": prior,
        "likelihood": likelihood, "posterior": posterior, "net": net, "hidden": list(hidden),
        "pair": pair, "seed": seed, "prior_options": dict(prior_options or {}),
        "likelihood_options": dict(likelihood_options or {}),
        "posterior_options": dict(posterior_options or {}), "net_options": dict(net_options or {}),
        "pair_options": dict(pair_options or {}),
    }  # fmt: skip
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected options that JSON can hold, so that a run can be loaded; got {error}: name "
            "an object, as in variance='fixed:0.1', or make the VAE from its parts"
        ) from None
    with seeded(seed):
        parts = Parts(
            shape, latent_dim, (prior, prior_options), (likelihood, likelihood_options),
            (posterior, posterior_options), (net_class, net_options, tuple(hidden)),
        )  # fmt: skip
        of_names = pair_class.of_names
        chosen = typed("pair", of_names, pair_options or {}, ["parts"], pair_class.__name__)
        made = of_names(parts, **chosen)
    made.config = config
    return made


class Parts:
    """Parts by name, for a pair's `of_names` to put together; made in the order it asks for them.

    Args:
        data_shape: shape of one datum.
        latent_dim: length of z.
        prior: the prior's name and options.
        likelihood: the likelihood's name and options.
        posterior: the posterior's name and options.
        net: the net's factory, its options, and the widths of the encoder's hidden layers.

    Attributes:
        data_shape: as above.
        latent_dim: as above.
        encoder: the factory of networks from x.
        decoder: the factory of networks from z, hidden layers mirrored.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        prior: Named,
        likelihood: Named,
        posterior: Named,
        net: tuple[Callable[..., Any], Options | None, tuple[int, ...]],
    ) -> None:
        self.data_shape, self.latent_dim = data_shape, latent_dim
        self._named = {"prior": prior, "posterior": posterior}
        self._masked, name = split_masked(likelihood[0])
        self._named["likelihood"] = name, likelihood[1]
        factory, options, hidden = net
        self.encoder, self.decoder = (
            _make("net", factory, options, {"hidden": widths, "data_shape": data_shape})
            for widths in (hidden, hidden[::-1])
        )

    def prior(self, **given: Any) -> Any:
        """Return the prior; `given` replaces what it would be given, latent_dim say."""
        return self._part("prior", priors, {"net": self.decoder, **given})

    def likelihood(self, **given: Any) -> Any:
        """Return the likelihood, masked if its name says so."""
        made = self._part("likelihood", likelihoods, {"net": self.decoder, **given})
        return likelihoods.Masked(made) if self._masked else made

    def posterior(self, **given: Any) -> Any:
        """Return the posterior."""
        missing = {"missing": True} if self._masked else {}
        return self._part("posterior", posteriors, {"net": self.encoder, **missing, **given})

    def _part(self, role: str, module: ModuleType, given: dict[str, Any]) -> Any:
        name, options = self._named[role]
        common = {"latent_dim": self.latent_dim, "data_shape": self.data_shape}
        return _make(role, by_name(role, name, exported(module)), options, common | given)


def split_masked(likelihood: str) -> tuple[bool, str]:
    """Return whether a likelihood's name begins with "masked:", and the name of the one inside."""
    outer, colon, inner = likelihood.partition(":")
    if normalised(outer) != "masked":
        return False, likelihood
    if not inner:
        raise ValueError(
            "expected masked:NAME, such as masked:normal, of the likelihood of what is observed; "
            f"got {likelihood!r}"
        )
    return True, inner


def level_options(levels: int, prior: str, likelihood: str, posterior: str) -> dict[str, Options]:
    """Return options of `build` for data that are whole numbers 0, ..., levels - 1.

    The likelihood's total count is levels - 1, or its levels are these, the posterior's network
    sees x / (levels - 1), and pseudo-inputs of a prior live on the data's range: each where the
    part has that option.

    Args:
        levels: how many values x takes.
        prior: the prior's name.
        likelihood: the likelihood's name.
        posterior: the posterior's name.
    """
    top = levels - 1
    wanted: dict[str, tuple[str, ModuleType, Options]] = {
        "prior": (prior, priors, {"clamp": [0.0, float(top)], "init": [0.05 * top, 0.01 * top]}),
        "likelihood": (
            split_masked(likelihood)[1],
            likelihoods,
            {"total_count": top, "num_levels": levels},
        ),
        "posterior": (posterior, posteriors, {"input_scale": 1 / top}),
    }
    options: dict[str, Options] = {}
    for role, (name, module, values) in wanted.items():
        takes = inspect.signature(by_name(role, name, exported(module))).parameters
        options[f"{role}_options"] = {k: v for k, v in values.items() if k in takes}
    return options


def _make(
    role: str,
    factory: Callable[..., Any],
    options: Options | None,
    given: dict[str, Any],
) -> Any:
    """Call `factory` with those of `given` that its signature asks for, and with the options."""
    takes = inspect.signature(factory).parameters
    chosen = typed(role, factory, options or {}, taken=given)
    try:
        return factory(**{k: v for k, v in given.items() if k in takes}, **chosen)
    except TypeError as error:
        raise ValueError(
            f"{role} {hyphenated(factory.__name__)}, options {chosen}: {error}"
        ) from None
