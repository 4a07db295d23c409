"""What a pair of series is made of: transitions, recurrent encoders, likelihoods of all steps."""

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from pyrovae.distributions import diagonal_normal, observed
from pyrovae.nets import NetFactory, Shape, connect, mlp


class GatedTransition(nn.Module):
    """p(z_t|z_{t-1}) = N(m, diag v), a gate choosing between a linear and a nonlinear mean.

        g = sigmoid(MLP(z_{t-1})),  h = MLP(z_{t-1}),
        m = (1 - g) (W z_{t-1} + b) + g h,  v = softplus(V relu(h) + c)

    Krishnan, Shalit & Sontag (2017), "Gated Transition Function". W starts at the identity, b at 0.

    Args:
        latent_dim: length of z_t.
        width: of the hidden layer of either MLP.

    Example:
        >>> GatedTransition(latent_dim=2, width=8)(torch.zeros(5, 2)).rsample().shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, width: int = 128) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        net = mlp(hidden=(width,))
        self.gate, self.proposal = (net((latent_dim,), (latent_dim,)) for _ in range(2))
        self.linear = _identity(latent_dim)
        self.variance = nn.Linear(latent_dim, latent_dim)

    def forward(self, z: Tensor) -> TorchDistribution:
        """Return p(z_t | z_{t-1} = z), batch shape z.shape[:-1]."""
        gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
        loc = (1 - gate) * self.linear(z) + gate * proposal
        return diagonal_normal(loc, softplus(self.variance(proposal.relu())).sqrt())


class LinearTransition(nn.Module):
    """p(z_t|z_{t-1}) = N(A z_{t-1} + b, diag exp(s)), with A, b and s learnt.

    With z_1 ~ N(0, I) and a linear normal likelihood it is the linear-Gaussian state-space model in
    full generality: where z_1 has any covariance of full rank, a linear map of z makes that I, and
    then a rotation that of the noise diagonal. A starts at the identity.

    Args:
        latent_dim: length of z_t.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.linear = _identity(latent_dim)
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, z: Tensor) -> TorchDistribution:
        """Return p(z_t | z_{t-1} = z), batch shape z.shape[:-1]."""
        loc = self.linear(z)
        return diagonal_normal(loc, (0.5 * self.log_variance).exp().expand_as(loc))


def _identity(dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class RecurrentEncoder(nn.Module):
    """h_t, what x_t, ..., x_T say of z_t: a network at each step, then a GRU from the end back.

    Krishnan, Shalit & Sontag (2017), section 4: their ST-R, or ST-LR where it is bidirectional, h_t
    then the sum of that and the state of another GRU, from the start to x_t. The GRU runs from the
    end of each series, whatever is in its padding.

    Args:
        data_shape: (T, ...), shape of one series.
        width: length of h_t.
        net: factory of the network of one step.
        bidirectional: take x_1, ..., x_{t-1} too.
        input_scale: x is multiplied by this before it enters the network.
        missing: may entries of x be missing, NaN? The network is then given (2, ...), zeros for
            them, and a mask.

    Raises:
        ValueError: data_shape of no step, or width that is no positive whole number.

    Example:
        >>> encoder = RecurrentEncoder(data_shape=(6, 3), width=4)
        >>> encoder(torch.zeros(5, 6, 3), torch.tensor([6, 6, 1, 2, 3])).shape
        torch.Size([5, 6, 4])
    """

    def __init__(
        self,
        data_shape: Shape,
        width: int = 128,
        net: NetFactory = mlp(),  # noqa: B008
        bidirectional: bool = False,
        input_scale: float = 1.0,
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        if len(self.data_shape) < 2:
            raise ValueError(
                "expected data_shape (T, D), T steps of D numbers (or (T, ...)); got "
                f"{self.data_shape}: where a step is one number, x.unsqueeze(-1), of shape (T, 1)"
            )
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"expected width to be a positive whole number; got {width!r}")
        self.input_scale, self.missing = input_scale, missing
        step = self.data_shape[1:]
        self.net = connect(net, (2, *step) if missing else step, (width,))
        self.right = nn.GRU(width, width, batch_first=True)
        self.left = nn.GRU(width, width, batch_first=True) if bidirectional else None

    @property
    def directions(self) -> int:
        """1, or 2 where it is bidirectional."""
        return 1 if self.left is None else 2

    def forward(self, x: Tensor, *lengths: Tensor) -> Tensor:
        """Return h (N, T, width); beyond a series' end it means nothing.

        Args:
            x: series (N, *data_shape).
            *lengths: of each series, (N,); none where all have T steps.

        Raises:
            ValueError: x of another shape, or lengths that `before_end` refuses.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"expected series of shape (N, {', '.join(map(str, self.data_shape))}); got "
                f"{tuple(x.shape)}: pad shorter ones, and give their lengths"
            )
        steps = self.data_shape[0]
        inside = before_end(lengths[0], steps) if lengths else None
        if inside is not None:  # no number of the padding goes on, nor its gradient
            x = torch.where(_like(inside, x), x, 0.0)
        scaled = x * self.input_scale
        if self.missing:
            step = self.data_shape[1:]
            seen, _ = observed(x, (), step, 0)
            filled = torch.where(seen, scaled, 0.0)
            scaled = torch.stack([filled, seen.to(x.dtype)], -1 - len(step))
        inputs = self.net(scaled.flatten(0, 1)).unflatten(0, (len(x), steps))
        h = _reversed(self.right(_reversed(inputs, *lengths))[0], *lengths)
        return h if self.left is None else h + self.left(inputs)[0]


def _reversed(h: Tensor, *lengths: Tensor) -> Tensor:
    """Return h (N, T, width) with the steps of each series in reverse order, its padding kept."""
    if not lengths:
        return h.flip(1)
    step = torch.arange(h.shape[1], device=h.device)
    index = lengths[0].to(h.device).unsqueeze(1) - 1 - step
    index = torch.where(index < 0, step, index)
    return h.gather(1, index.unsqueeze(-1).expand_as(h))


class Combiner(nn.Module):
    """q(z_t|z_{t-1}, x), a posterior of the mean of tanh(W z_{t-1} + b) and the encoder's states.

    Krishnan, Shalit & Sontag (2017), "Combiner Function".

    Args:
        posterior: of what it is given, of data_shape (width,), with a linear network in the paper.
        directions: of the encoder, whose h_t is the sum over them.

    Example:
        >>> from pyrovae.posteriors import MeanFieldNormal
        >>> combiner = Combiner(MeanFieldNormal((8,), latent_dim=2, net=mlp(hidden=())))
        >>> combiner(torch.zeros(5, 2), torch.zeros(5, 8)).batch_shape
        torch.Size([5])
    """

    def __init__(self, posterior: nn.Module, directions: int = 1) -> None:
        super().__init__()
        part: Any = posterior
        self.posterior, self.directions = posterior, directions
        self.latent_dim, self.space = part.latent_dim, getattr(part, "space", "real")
        self.of_z = nn.Linear(self.latent_dim, part.data_shape[0])

    def forward(self, z: Tensor, h: Tensor) -> TorchDistribution:
        """Return q(z_t | z_{t-1} = z, x) for h_t (..., width), batch shape (...)."""
        combined = (torch.tanh(self.of_z(z)) + h) / (1 + self.directions)
        found: TorchDistribution = self.posterior(combined)
        return found


class FirstStep(nn.Module):
    """q(z_1|x) as a part, for a prior that is made of it.

    Args:
        encoder: of series.
        posterior: q(z_t|z_{t-1}, x) of z_{t-1} and the encoder's h_t.
    """

    context_dim = 0

    def __init__(self, encoder: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        known: Any = encoder, posterior
        self.encoder, self.posterior = encoder, posterior
        self.data_shape, self.latent_dim = known[0].data_shape, known[1].latent_dim
        self.event_shape = (self.latent_dim,)

    def forward(self, x: Tensor) -> TorchDistribution:
        """Return q(z_1|x), batch shape (N,)."""
        before = x.new_zeros(len(x), self.latent_dim)
        found: TorchDistribution = self.posterior(before, self.encoder(x)[:, 0])
        return found


class StepwiseLikelihood(nn.Module):
    """p(x_1, ..., x_T | z_1, ..., z_T) = prod_t p(x_t|z_t), up to each series' end.

    Args:
        likelihood: p(x_t|z_t).
        steps: T.

    Example:
        >>> from pyrovae.likelihoods import Normal
        >>> p = StepwiseLikelihood(Normal(latent_dim=2, data_shape=(3,)), steps=6)
        >>> p(torch.zeros(5, 12)).event_shape
        torch.Size([6, 3])
    """

    def __init__(self, likelihood: nn.Module, steps: int) -> None:
        super().__init__()
        part: Any = likelihood
        self.likelihood, self.steps = part, steps
        self.latent_dim: int = steps * part.latent_dim
        self.data_shape: Shape = (steps, *part.data_shape)

    def forward(self, z: Tensor, *lengths: Tensor) -> TorchDistribution:
        """Return p(x|z) of z_1, ..., z_T side by side.

        Args:
            z: (..., T latent_dim).
            *lengths: of each series, (N,); none where all have T steps.

        Returns:
            A distribution of batch shape (...) and event shape (T, *data_shape).
        """
        each = self.likelihood(z.unflatten(-1, (self.steps, -1)))
        if not lengths:
            whole: TorchDistribution = each.to_event(1)
            return whole
        return Padded(each, before_end(lengths[0], self.steps))

    def start_at_mean(self, x: Tensor) -> None:
        """Start decoding at the mean of all steps: see `Likelihood.start_at_mean`.

        Args:
            x: series without padding (N, T, *data_shape).
        """
        self.likelihood.start_at_mean(x.flatten(0, 1))


def before_end(lengths: Tensor, steps: int) -> Tensor:
    """Return which steps of series are none of padding, (N, steps).

    Args:
        lengths: of each series, whole numbers (N,).
        steps: T.

    Raises:
        ValueError: lengths that are no whole numbers from 1 to T, one a series.

    Example:
        >>> before_end(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if lengths.dim() != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            "expected the context to be lengths of series, whole numbers (N,); got "
            f"{tuple(lengths.shape)}, {lengths.dtype}"
        )
    bad = (lengths < 1) | (lengths > steps)
    if Distribution._validate_args and bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"expected lengths from 1 to {steps}, the steps of x; got {int(lengths[row])} in row "
            f"{row}"
        )
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def _like(inside: Tensor, x: Tensor) -> Tensor:
    """Return inside (N, T) in as many dimensions as x (N, T, ...) has."""
    return inside.reshape(*inside.shape, *[1] * (x.dim() - inside.dim()))


class _UpToTheEnd(constraints.Constraint):
    """On the support, or in the padding; entry by entry."""

    def __init__(self, padded: "Padded", support: constraints.Constraint) -> None:
        self.padded, self.support = padded, support
        self.is_discrete = support.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.support.check(self.padded.filled(value))


class Padded(TorchDistribution):
    """prod_{t <= length} p(x_t): series whose padding does not count, and is 0 in draws and means.

    Args:
        each: p(x_t), of batch shape (..., T).
        inside: which steps are none of padding, booleans (N, T); the first is.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self, each: TorchDistribution, inside: Tensor, validate_args: bool | None = None
    ) -> None:
        self.each, self.inside = each, inside.expand(each.batch_shape)
        *batch, steps = each.batch_shape
        event = torch.Size((steps, *each.event_shape))
        super().__init__(torch.Size(batch), event, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """That of each step, or anything in the padding."""
        support = self.each.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return constraints.independent(_UpToTheEnd(self, support), len(self.event_shape))

    def filled(self, value: Tensor) -> Tensor:
        """Return value with its first step in place of the padding, so that it has a density."""
        first = value.narrow(-len(self.event_shape), 0, 1)
        return torch.where(self._spread(), value, first)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_{t <= length} log p(x_t), of the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.where(self.inside, self.each.log_prob(self.filled(value)), 0.0).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw every step."""
        return torch.where(self._spread(), self.each.sample(sample_shape), 0.0)

    def expand(self, batch_shape: torch.Size, _instance: "Padded | None" = None) -> "Padded":
        """Return the distribution with its batch expanded."""
        each = self.each.expand(torch.Size((*batch_shape, self.event_shape[0])))
        return type(self)(each, self.inside, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """Of every step."""
        return torch.where(self._spread(), self.each.mean, 0.0)

    @property
    def variance(self) -> Tensor:
        """Of every step."""
        return torch.where(self._spread(), self.each.variance, 0.0)

    def _spread(self) -> Tensor:
        return self.inside.reshape(*self.inside.shape, *[1] * len(self.each.event_shape))
