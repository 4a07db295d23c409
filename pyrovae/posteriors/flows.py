"""Posteriors by normalising flows."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import bijections
from pyrovae.distributions.bijections import Bijection, Composed
from pyrovae.distributions.flows import Counts, NormalFlow, ZukoFlow
from pyrovae.nets import NetFactory, Shape, mlp
from pyrovae.posteriors.base import Posterior


class Flow(Counts):
    """A normalising flow that draws z in one pass, with parameters a datum: not by a string.

    To write a new one, subclass this as a frozen dataclass of positive whole numbers; `build` finds
    it by its class name.
    """

    @abstractmethod
    def num_params(self, latent_dim: int) -> int:
        """Return how many numbers the encoder gives the flow for one datum."""

    def network(self, latent_dim: int) -> Any:
        """Return a module (h) -> bijection, where the flow has weights besides the encoder's."""
        return None

    @abstractmethod
    def bijection(self, h: Tensor, latent_dim: int, network: Any) -> Bijection:
        """Return f for the encoder's numbers h (..., num_params)."""

    def distribution(self, loc: Tensor, scale: Tensor, h: Tensor, network: Any) -> NormalFlow:
        """Return the law of f(u), u ~ N(loc, diag scale^2)."""
        return NormalFlow(loc, scale, self.bijection(h, loc.shape[-1], network))


@dataclass(frozen=True)
class Amortised(Flow):
    """A flow of zuko, whose networks see `context` numbers of the encoder's."""

    def num_params(self, latent_dim: int) -> int:
        """Return the numbers that the flow's networks see."""
        return self.context  # type: ignore[attr-defined]

    def bijection(self, h: Tensor, latent_dim: int, network: Any) -> Bijection:
        """Return the flow's map for this context."""
        return network(h)


@dataclass(frozen=True)
class InverseAutoregressive(Amortised):
    """Each u_i shifted and scaled by what depends on u_<i and x: Kingma et al. (2016).

    A given z is scored by as many passes as it has dimensions.
    """

    transforms: int = 3
    width: int = 64
    context: int = 16

    def network(self, latent_dim: int) -> nn.Module:
        """Return a masked autoregressive flow, used the other way round."""
        return ZukoFlow("MAF", latent_dim, self.context, False, self.transforms, self.width)


@dataclass(frozen=True)
class NeuralSpline(Amortised):
    """Each u_i through a rational-quadratic spline given by u_<i and x: Durkan et al. (2019).

    Splines of `bins` pieces act on [-5, 5], so on (z - mu) / sigma. A given z is scored by as many
    passes as it has dimensions.
    """

    transforms: int = 2
    width: int = 64
    bins: int = 8
    context: int = 16

    def network(self, latent_dim: int) -> nn.Module:
        """Return an autoregressive spline flow, used the other way round."""
        return ZukoFlow(
            "NSF", latent_dim, self.context, False, self.transforms, self.width, bins=self.bins
        )

    def distribution(self, loc: Tensor, scale: Tensor, h: Tensor, network: Any) -> NormalFlow:
        """Return the law of loc + scale * f(u), u ~ N(0, I)."""
        f = Composed([self.bijection(h, loc.shape[-1], network), bijections.Affine(loc, scale)])
        return NormalFlow(loc.new_zeros(loc.shape), loc.new_ones(()), f)


@dataclass(frozen=True)
class Householder(Flow):
    """An orthogonal map of `steps` reflections, so that z is a normal: Tomczak & Welling (2016)."""

    steps: int = 4

    def num_params(self, latent_dim: int) -> int:
        """Return the length of the vectors to reflect in."""
        return self.steps * latent_dim

    def bijection(self, h: Tensor, latent_dim: int, network: Any) -> Bijection:
        """Return the reflections."""
        return bijections.Householder(h.unflatten(-1, (self.steps, latent_dim)))


@dataclass(frozen=True)
class Planar(Flow):
    """`steps` times u + a tanh(w'u + b), a, w and b given by x: Rezende & Mohamed (2015)."""

    steps: int = 8

    def num_params(self, latent_dim: int) -> int:
        """Return the length of all (a, w, b)."""
        return self.steps * (2 * latent_dim + 1)

    def bijection(self, h: Tensor, latent_dim: int, network: Any) -> Bijection:
        """Return the planar maps, one after the other."""
        w, a, b = h.unflatten(-1, (self.steps, -1)).split([latent_dim, latent_dim, 1], -1)
        steps = zip(w.unbind(-2), a.unbind(-2), b.squeeze(-1).unbind(-1), strict=True)
        return Composed([bijections.Planar(*step) for step in steps])


@dataclass(frozen=True)
class Sylvester(Flow):
    """`steps` times u + Q R tanh(S Q'u + b), all given by x: van den Berg et al. (2018).

    Q has `columns` orthonormal columns, or latent_dim if that is less; R and S are triangular.
    """

    steps: int = 4
    columns: int = 16

    def num_params(self, latent_dim: int) -> int:
        """Return the length of all (Q, R and S, S's diagonal, b): the two share one square."""
        m = min(self.columns, latent_dim)
        return self.steps * (m * latent_dim + m * m + m + m)

    def bijection(self, h: Tensor, latent_dim: int, network: Any) -> Bijection:
        """Return the Sylvester maps, one after the other."""
        m = min(self.columns, latent_dim)
        vectors, square, diagonal, b = h.unflatten(-1, (self.steps, -1)).split(
            [m * latent_dim, m * m, m, m], -1
        )
        r = square.unflatten(-1, (m, m))
        s = r.mT.triu(1) + torch.diag_embed(diagonal)
        steps = (
            t.unbind(-d) for t, d in ((vectors.unflatten(-1, (m, -1)), 3), (r, 3), (s, 3), (b, 2))
        )
        return Composed([bijections.Sylvester(*step) for step in zip(*steps, strict=True)])


class FlowPosterior(Posterior):
    """q(z|x) = N(u; mu(x), diag(sigma(x)^2)) / |det df/du|, z = f(u; x), f a normalising flow.

    By the flow: Rezende & Mohamed (2015), Tomczak & Welling (2016), Kingma et al. (2016),
    van den Berg et al. (2018) or Durkan et al. (2019). Draws are one pass and carry gradients; any
    z can be scored, one that is no draw of the same object by inversion. The KL is sampled; mean
    and variance are not known. `InverseAutoregressive` and `NeuralSpline` need zuko: pip install
    'pyrovae[flows]'.

    Args:
        data_shape: shape of one datum.
        latent_dim: length d of z.
        net: factory of the network, or the network, data_shape -> (2 d + flow.num_params(d),): mu,
            log sigma^2, and what the flow takes.
        context_dim: numbers of context a datum; 0 for none.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing?
        flow: `InverseAutoregressive()`, `NeuralSpline()`, `Householder()`, `Planar()` or
            `Sylvester()`.

    Raises:
        ValueError: a flow of another class, or no zuko.

    Example:
        >>> q = FlowPosterior(data_shape=(28, 28), latent_dim=3, flow=Planar(steps=2))
        >>> q(torch.zeros(5, 28, 28)).rsample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        data_shape: Shape,
        latent_dim: int,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        input_scale: float = 1.0,
        missing: bool = False,
        flow: Flow = InverseAutoregressive(),  # noqa: B008
    ) -> None:
        if not isinstance(flow, Flow):
            raise ValueError(
                "expected flow to be InverseAutoregressive(), NeuralSpline(), Householder(), "
                f"Planar() or Sylvester(); got {flow!r}"
            )
        self.flow = flow  # `param_shape` asks for it
        super().__init__(data_shape, latent_dim, net, context_dim, input_scale, missing)
        self.network = flow.network(latent_dim)

    @property
    def param_shape(self) -> Shape:
        """(2 d + flow.num_params(d),)."""
        return (2 * self.latent_dim + self.flow.num_params(self.latent_dim),)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the flow for params (..., 2 d + flow.num_params(d))."""
        d = self.latent_dim
        loc, log_variance, h = params.split([d, d, params.shape[-1] - 2 * d], -1)
        return self.flow.distribution(loc, (0.5 * log_variance).exp(), h, self.network)
