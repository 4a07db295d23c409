"""The mixture posterior's pathwise gradients, and the VampPrior of any posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import VAE, likelihoods, nets, posteriors, priors, testing
from pyrovae.distributions import MixtureOfNormals, PathwiseMixture, seeded

NET = nets.mlp(hidden=(7,), activation="tanh")
X = (torch.arange(24).reshape(6, 4) % 3 == 0).float()


def parameters(*batch, k=3, d=2, spread=1.5, dtype=torch.float64):
    with seeded(4):
        return [
            (spread * torch.randn(*batch, k, d)).to(dtype).requires_grad_(),
            torch.empty(*batch, k, d).uniform_(0.4, 1.2).to(dtype).requires_grad_(),
            torch.randn(*batch, k).to(dtype).requires_grad_(),
        ]


def g(z):
    """A function with no symmetry, of each z."""
    return ((z - 0.3).sin() + 0.2 * z.square()).sum(-1) + z.prod(-1)


def by_quadrature(p, half=12.0, n=1201):
    """d/dp of int g(z) q(z) dz."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * p[0].shape[-1]).reshape(-1, p[0].shape[-1])
    value = (g(grid) * PathwiseMixture(*p).log_prob(grid).exp()).sum()
    return torch.autograd.grad(value * float(axis[1] - axis[0]) ** p[0].shape[-1], p)


def by_draws(p, make=PathwiseMixture, n=200_000):
    """Mean and standard error of the pathwise gradient, each draw with parameters of its own."""
    own = [t.detach().expand(n, *t.shape).clone().requires_grad_() for t in p]
    with seeded(0):
        z = make(*own).rsample()
    found = torch.autograd.grad(g(z).sum(), own)
    return [t.mean(0) for t in found], [t.std(0) / math.sqrt(n) for t in found]


def discrepancy(means, errors, expected):
    """The largest deviation in standard errors, over all parameters."""
    return max(
        float(((m - e) / s).abs().max()) for m, s, e in zip(means, errors, expected, strict=True)
    )


LARGEST = 5.0  # of at most 15 numbers: by chance, 1e-5


@pytest.mark.parametrize("d", [1, 2])
def test_gradient_is_that_of_quadrature(d):
    p = parameters(d=d)
    assert discrepancy(*by_draws(p), by_quadrature(p)) < LARGEST


class FixedComponents(PathwiseMixture):
    """The component's own path alone: it has no gradient for the weights."""

    def _implicit(self, z):
        k = (
            -0.5 * ((z.unsqueeze(-2) - self.loc) / self.scale).square().sum(-1)
            - self.scale.log().sum(-1) + self.logits
        ).argmax(-1)  # fmt: skip
        k = k[..., None, None].expand(*k.shape, 1, z.shape[-1])
        loc, scale = (t.gather(-2, k).squeeze(-2) for t in (self.loc, self.scale))
        noise = ((z - loc) / scale).detach()
        return loc + scale * noise + 0 * self.logits.sum(-1, keepdim=True)


def test_a_gradient_with_no_path_for_the_weights_is_caught():
    """Negative control."""
    p = parameters()
    means, errors = by_draws(p, FixedComponents)
    errors = [s.clamp(min=1e-3) for s in errors]
    assert discrepancy(means, errors, by_quadrature(p)) > 2 * LARGEST


def test_gradient_is_that_of_pyros_mixture_in_the_mean():
    """Another path, the same expectation; for means and scales: Pyro's for weights is another."""
    p = parameters()

    def theirs(loc, scale, logits):
        return dist.MixtureOfDiagNormals(loc, scale, logits)

    ours, other = by_draws(p), by_draws(p, theirs)
    errors = [(a.square() + b.square()).sqrt() for a, b in zip(ours[1], other[1], strict=True)]
    assert discrepancy(ours[0][:2], errors[:2], other[0][:2]) < LARGEST


def conditional(z, p, d):
    """F_d(z_d | z_1, ..., z_(d-1)), of one mixture, by the formula."""
    loc, scale, logits = p
    normal = dist.Normal(loc, scale)
    weights = (logits + normal.log_prob(z)[:, :d].sum(-1)).softmax(-1)
    return (weights * normal.cdf(z)[:, d]).sum()


def test_draws_move_so_that_the_distribution_functions_stay():
    """The path itself: d/dtheta F(z(theta); theta) = 0, in four dimensions, draw by draw."""
    p = parameters(d=4)
    with seeded(1):
        z = PathwiseMixture(*p).rsample()
    for d in range(4):
        kept = torch.autograd.grad(conditional(z, p, d), p, retain_graph=True)
        for t in kept:
            torch.testing.assert_close(t, torch.zeros_like(t), atol=1e-10, rtol=0)
        without_path = torch.autograd.grad(conditional(z.detach(), p, d), p)
        assert max(t.abs().max() for t in without_path) > 1e-3  # negative control


def test_one_component_is_the_normal():
    loc, scale, logits = parameters(5, k=1)
    z = PathwiseMixture(loc, scale, logits).rsample()
    by_loc, by_scale, by_logits = torch.autograd.grad(z.sum(), [loc, scale, logits])
    torch.testing.assert_close(by_loc, torch.ones_like(by_loc))
    noise = (z.unsqueeze(-2) - loc) / scale
    torch.testing.assert_close(by_scale, noise.detach())
    assert not by_logits.any()


def test_no_gradient_is_lost_in_the_upper_tail_of_single_precision():
    """Draws above all components, where 1 - F has no digits left in F."""
    p = parameters(k=2, d=1)
    with torch.no_grad():
        p[0].copy_(torch.tensor([[0.0], [0.5]]))
        p[1].fill_(1.0)
    z = torch.tensor([5.5], dtype=torch.float64)
    expected = torch.autograd.grad(PathwiseMixture(*p)._implicit(z).sum(), p)
    single = [t.detach().float().requires_grad_() for t in p]
    got = torch.autograd.grad(PathwiseMixture(*single)._implicit(z.float()).sum(), single)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


def test_moments_and_density_of_a_batch():
    p = parameters(3)
    q = PathwiseMixture(*p)
    assert q.rsample((2,)).shape == (2, 3, 2) and q.has_rsample
    with torch.no_grad(), seeded(0):
        z = q.sample((200_000,))
        torch.testing.assert_close(z.mean(0), q.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(z.var(0), q.variance, atol=0.06, rtol=0)
        for n in range(3):
            shared = MixtureOfNormals(*(t[n] for t in p))
            torch.testing.assert_close(q.log_prob(z[:9])[:, n], shared.log_prob(z[:9, n]))
        wide = q.expand((4, 3))
        assert type(wide) is PathwiseMixture and wide.sample((2,)).shape == (2, 4, 3, 2)
        torch.testing.assert_close(wide.log_prob(z[:4]), q.log_prob(z[:4]))


def test_components_start_apart():
    part = posteriors.MixtureOfNormals((4,), 2, NET, num_components=4)
    for p in part.parameters():
        p.data.zero_()
    q = part(torch.zeros(3, 4))
    assert torch.pdist(q.loc[0]).min() > 0.01
    loss = (q.rsample((50,)) - 2).square().sum()
    found = torch.autograd.grad(loss, part.net.output.bias)[0].reshape(4, 5)
    assert len(found[:, 0].unique()) == 4  # so that they part further


def pair(prior, posterior):
    return VAE(prior, likelihoods.Bernoulli(2, (4,), NET), posterior)


def test_pair_is_valid():
    vae = pair(priors.StandardNormal(2), posteriors.MixtureOfNormals((4,), 2, NET))
    report = testing.check_pair(vae.model, vae.guide, X)
    assert report.ok, str(report)


def test_a_pair_with_a_wrong_density_is_caught(monkeypatch):
    """Negative control."""
    log_prob = PathwiseMixture.log_prob
    monkeypatch.setattr(PathwiseMixture, "log_prob", lambda q, z: log_prob(q, z) - 0.3)
    vae = pair(priors.StandardNormal(2), posteriors.MixtureOfNormals((4,), 2, NET))
    assert not testing.check_pair(vae.model, vae.guide, X).ok


def test_it_finds_two_modes_that_a_normal_does_not():
    """A decoder blind to z's sign: two components reach log p(x), one stays off it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.3).to_event(1), obs=x)

    x = torch.ones(200, 1)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid.abs(), 0.3).log_prob(x[:1])

    def gap(k):
        with seeded(2):
            part = posteriors.MixtureOfNormals((1,), 1, nets.mlp(hidden=()), num_components=k)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", part(x))

        optim = torch.optim.Adam(part.parameters())
        for step in range(400):
            optim.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
            optim.zero_grad()
            Trace_ELBO().differentiable_loss(model, guide, x).backward()
            optim.step()
        with torch.no_grad():
            log_q = part(x[:1]).log_prob(grid)
        log_p_x = log_joint.logsumexp(0) + math.log(16 / 4000)
        log_w = log_joint.squeeze(1) - log_q
        return float(log_p_x - (log_q.exp() * log_w).sum() * 16 / 4000)

    with pyro.get_param_store().scope():
        assert -1e-3 < gap(2) < 0.05
        assert gap(1) > 0.5


VAMPS = {
    "mixture": lambda: posteriors.MixtureOfNormals((4,), 2, NET, num_components=3),
    "low-rank": lambda: posteriors.LowRankNormal((4,), 2, NET),
    "planar": lambda: posteriors.FlowPosterior((4,), 2, NET, flow=posteriors.Planar(2)),
    "autoregressive": lambda: posteriors.FlowPosterior(
        (4,), 2, NET, flow=posteriors.InverseAutoregressive(2, 8)
    ),
    "sphere": lambda: posteriors.VonMisesFisher((4,), 2, NET),
    "one-hot": lambda: posteriors.OneHotCategorical((4,), 2, NET),
}


@pytest.mark.parametrize("name", VAMPS)
def test_vamp_prior_of_any_posterior(name):
    """It is the mean of q(z | u_k), lives where the posterior does, and makes a valid pair."""
    posterior = VAMPS[name]().double()
    prior = priors.VampPrior(2, posterior, num_components=5, init=(0.5, 0.5)).double()
    assert prior.space == posterior.space
    q = posterior(prior.pseudo_inputs.clamp(0, 1))
    z = prior().sample((7,))
    expected = q.log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(5)
    torch.testing.assert_close(prior().log_prob(z), expected)
    vae = pair(prior, posterior).float()
    report = testing.check_pair(vae.model, vae.guide, X)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: posteriors.MixtureOfNormals((4,), 2, num_components=0),
            "num_components to be a positive whole number; got 0",
        ),
        (
            lambda: priors.VampPrior(2, posteriors.MeanFieldNormal((4,), 2, context_dim=3)),
            "posterior that takes no context.*got MeanFieldNormal with context_dim=3",
        ),
        (
            lambda: pair(
                priors.VampPrior(2, posteriors.VonMisesFisher((4,), 2)),
                posteriors.MeanFieldNormal((4,), 2),
            ),
            "one space of z; got VampPrior over 'the unit sphere'",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
