"""Flows: one density, whether z is given or drawn; maps that invert; zuko kept to itself."""

import subprocess
import sys

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import VAE, build, likelihoods, nets, posteriors, priors, testing
from pyrovae.distributions import NormalFlow, bijections, seeded

NET = nets.mlp(hidden=(7,), activation="tanh")
SMALL = {"transforms": 2, "width": 8}
POSTERIORS = {
    "autoregressive": posteriors.InverseAutoregressive(**SMALL),
    "spline": posteriors.NeuralSpline(**SMALL, bins=4),
    "householder": posteriors.Householder(steps=3),
    "planar": posteriors.Planar(steps=3),
    "sylvester": posteriors.Sylvester(steps=2),
    "two-columns": posteriors.Sylvester(steps=2, columns=2),
}
PRIORS = {
    "spline": priors.NeuralSpline(**SMALL, bins=4),
    "autoregressive": priors.MaskedAutoregressive(**SMALL),
    "coupling": priors.RealNVP(**SMALL),
}
by_flow = pytest.mark.parametrize(
    ("kind", "name"),
    [*(("prior", n) for n in PRIORS), *(("posterior", n) for n in POSTERIORS)],
)
by_dim = pytest.mark.parametrize("d", [1, 2, 5])


def part_of(kind, name, d=2, context=0, rows=6):
    """A flow in float64 with large parameters, and what it is called on."""
    with seeded(3):
        if kind == "prior":
            part = priors.FlowPrior(d, PRIORS[name], context)
            inputs = [torch.randn(rows, context)] if context else []
        else:
            part = posteriors.FlowPosterior((4,), d, NET, flow=POSTERIORS[name])
            inputs = [torch.randn(rows, 4)]
        for p in part.parameters():
            p.data.mul_(2)
    return part.double(), [t.double() for t in inputs]


def gradients(loss, part):
    return torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)


@by_dim
@by_flow
def test_a_given_z_is_scored_as_the_draw_is(kind, name, d):
    """The value, and the gradient of the ELBO, which goes through z as well."""
    part, inputs = part_of(kind, name, d)
    q = part(*inputs)
    z = q.rsample((20,))
    drawn, given = q.log_prob(z), q.log_prob(z.clone())
    assert drawn is not given
    torch.testing.assert_close(given, drawn, atol=1e-10, rtol=0)
    log_p = -(z - 1).square().sum(-1)
    losses = [(log_p - log_q).mean() for log_q in (drawn, given)]
    for a, b in zip(*(gradients(loss, part) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@by_dim
@by_flow
def test_the_inverse_inverts_and_the_determinant_is_the_jacobians(kind, name, d):
    part, inputs = part_of(kind, name, d)
    f = part(*(t[:1] for t in inputs)).bijection
    u = 2 * torch.randn(1, d, dtype=torch.float64)
    z, log_det = f.forward(u)
    back, log_det_there = f.inverse(z)
    torch.testing.assert_close(back, u, atol=1e-10, rtol=0)
    torch.testing.assert_close(log_det_there, log_det, atol=1e-10, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda v: f.forward(v[None])[0][0], u[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], atol=1e-10, rtol=0)


class WrongSign(bijections.Planar):
    def forward(self, u):
        z, log_det = super().forward(u)
        return z, -log_det


def planar(d=2, cls=bijections.Planar, scale=2.0, dtype=torch.float64):
    with seeded(1):
        w, a = (scale * torch.randn(2, 1, d)).to(dtype)
        return cls(w, a, torch.full((1,), 0.3, dtype=dtype))


def flow(f, d=2):
    return NormalFlow(torch.zeros(1, d, dtype=torch.float64), torch.ones(()).double(), f)


def test_a_determinant_of_the_wrong_sign_is_caught():
    """Negative control."""
    f = planar(cls=WrongSign)
    u = torch.ones(1, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: f.forward(v[None])[0][0], u[0])
    difference = torch.linalg.slogdet(jacobian)[1] - f.forward(u)[1]
    assert difference.abs() > 0.01
    q = flow(f)
    z = q.rsample((20,))
    assert (q.log_prob(z) - q.log_prob(z.clone())).abs().max() > 0.1


@pytest.mark.parametrize("name", POSTERIORS)
def test_gradient_of_an_expectation_is_that_of_quadrature(name):
    """d/dtheta of int g(f(u)) N(u) du, the pathwise one, and of int g(z) q(z) dz."""
    part, (x,) = part_of("posterior", name, 1)
    q = part(x[:1])
    u = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    width = u[1] - u[0]
    base = (-0.5 * u.square()).exp() / (2 * torch.pi) ** 0.5
    z, _ = q.bijection.forward((q.loc + q.scale * u[:, None]).unsqueeze(1))

    def g(z):
        return (z - 0.3).sin().sum(-1)

    pathwise = (g(z).squeeze(1) * base).sum() * width
    low, high = z.detach().min(), z.detach().max()
    grid = torch.linspace(float(low), float(high), 20_001, dtype=torch.float64)[:, None, None]
    density = q.log_prob(grid).exp().squeeze(1)
    scored = (g(grid).squeeze(1) * density).sum() * (high - low) / 20_000
    tolerance = 1e-3 if name == "spline" else 1e-8  # its density has kinks: first order
    torch.testing.assert_close(scored, pathwise, atol=tolerance, rtol=0)
    both = [gradients(t, part) for t in (scored, pathwise)]
    assert max(g.abs().max() for g in both[0]) > 0.01
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def changed_weights(part, q, z):
    for p in part.parameters():
        p.add_(0.1)


def changed_by_optimiser(part, q, z):
    with torch.enable_grad():
        q.log_prob(z).sum().backward()
    torch.optim.Adam(part.parameters(), lr=0.1).step()


def changed_normal(part, q, z):
    q.loc.add_(1.0)


def changed_draw(part, q, z):
    z.add_(0.5)


@pytest.mark.parametrize(
    "change", [changed_weights, changed_by_optimiser, changed_normal, changed_draw]
)
def test_what_was_known_of_a_draw_is_not_used_after_a_change(change):
    part, _ = part_of("prior", "autoregressive")
    q = part()
    z = q.rsample((5,))
    old = q.log_prob(z).detach()
    assert not torch.equal(old, q.log_prob(z.clone()))  # in the last digits: it was not inverted
    with torch.no_grad():
        change(part, q, z)
    got, fresh = q.log_prob(z), part().log_prob(z.clone())
    torch.testing.assert_close(got, fresh, atol=1e-10, rtol=0)
    assert (got - old).abs().max() > 0.01


def test_parameters_a_datum_changed_in_place_are_seen():
    f = planar()
    q = flow(f)
    z = q.rsample((5,))
    f.b.add_(1.0)
    torch.testing.assert_close(q.log_prob(z), flow(f).log_prob(z), atol=1e-10, rtol=0)


def test_a_stale_density_is_caught(monkeypatch):
    """Negative control: without the counts of changes the old density comes back."""
    monkeypatch.setattr(NormalFlow, "_versions", lambda self, z: [])
    with pytest.raises(AssertionError, match="not close"):
        test_what_was_known_of_a_draw_is_not_used_after_a_change(changed_weights)


def test_a_draw_without_gradients_is_scored_with_them():
    part, (x,) = part_of("posterior", "planar")
    q = part(x)
    z = q.sample()
    assert not z.requires_grad and q.log_prob(z).requires_grad
    z = q.rsample()
    with torch.no_grad():
        assert not q.log_prob(z).requires_grad
    frozen = flow(planar())
    z = frozen.rsample((3,)).requires_grad_()  # no path led to it: a variable of its own
    by_z = torch.autograd.grad(frozen.log_prob(z).sum(), z)[0]
    copy = z.detach().clone().requires_grad_()
    torch.testing.assert_close(by_z, torch.autograd.grad(frozen.log_prob(copy).sum(), copy)[0])
    with torch.inference_mode():
        q = part(x)
        z = q.rsample()
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), atol=1e-10, rtol=0)


@by_flow
def test_expanded_to_particles(kind, name):
    part, inputs = part_of(kind, name, context=2 * (kind == "prior"))
    q = part(*inputs)
    wide = q.expand((3, 6))
    assert type(wide) is NormalFlow and wide.rsample().shape == (3, 6, 2)
    z = wide.rsample((4,))
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z), atol=1e-10, rtol=0)
    torch.testing.assert_close(q.log_prob(z[0, 0, 0]), q.log_prob(z[0, 0, 0].expand(6, 2)))


@by_flow
def test_one_precision_as_the_other(kind, name):
    part, inputs = part_of(kind, name, 5)
    z = part(*inputs).sample((50,) if kind == "prior" else ())
    double = part(*inputs).log_prob(z)
    single = part.float()(*(t.float() for t in inputs)).log_prob(z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", POSTERIORS)
def test_an_encoder_of_zeros_has_finite_gradients(name):
    """Directions of no length, as zero biases give them for a black image."""
    part, (x,) = part_of("posterior", name)
    for p in part.parameters():
        p.data.zero_()
    q = part(torch.zeros_like(x))
    z = q.rsample()
    (q.log_prob(z) + q.log_prob(z.clone())).sum().backward()
    assert all(p.grad.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [bijections.MIN_SLOPE, 0.5, 1.0, 2.0, 1e3])
def test_root_of_the_tanh_equation(slope, dtype):
    v = torch.cat([torch.linspace(-50, 50, 1001), torch.linspace(-1e-2, 1e-2, 101)]).to(dtype)
    slopes = torch.full_like(v, slope, requires_grad=True)
    target = (v + (slopes.detach() - 1) * v.tanh()).requires_grad_()
    root = bijections.solve_tanh(target, slopes)
    residual = root + (slopes - 1) * root.tanh() - target
    eps = torch.finfo(dtype).eps
    assert (residual.abs() <= 8 * eps * (1 + target.abs())).all()
    by_target, by_slope = torch.autograd.grad(root.sum(), [target, slopes])
    steepness = 1 + (slopes - 1) / root.cosh().square()
    tolerance = 1e3 * eps**0.9
    torch.testing.assert_close(by_target * steepness, torch.ones_like(v), atol=tolerance, rtol=0)
    torch.testing.assert_close(by_slope, -root.tanh() * by_target, atol=tolerance, rtol=tolerance)


def test_columns_are_orthonormal():
    vectors = torch.randn(7, 3, 5, dtype=torch.float64)
    square = torch.randn(7, 3, 3, dtype=torch.float64)
    q_t = bijections.Sylvester(vectors, square, square, square[..., 0]).q_t
    eye = torch.eye(3, 5, dtype=torch.float64)
    torch.testing.assert_close(q_t @ q_t.mT, eye[:, :3].expand(7, 3, 3))
    for v in reversed(bijections.unit(vectors).unbind(-2)):
        eye = bijections.reflect(eye, v.unsqueeze(-2))
    torch.testing.assert_close(q_t, eye)


def test_planar_stays_invertible_where_it_would_fold():
    w = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    f = bijections.Planar(w, -w, torch.zeros(1, dtype=torch.float64))  # unconstrained: 1 - 9 < 0
    along = (f.w * f.a).sum(-1)
    assert -1 < along < -0.99
    identity = bijections.Planar(w, torch.zeros_like(w), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(identity.forward(w)[0], w)


def pair(prior, posterior):
    return VAE(prior, likelihoods.Bernoulli(2, (4,), NET), posterior)


PAIRS = {
    **{
        f"prior-{name}": lambda f=f: (
            priors.FlowPrior(2, f), posteriors.MeanFieldNormal((4,), 2, NET)
        )
        for name, f in (PRIORS | {"spline": priors.NeuralSpline(1, 8, 3)}).items()
    },
    **{
        f"posterior-{name}": lambda f=f: (
            priors.StandardNormal(2), posteriors.FlowPosterior((4,), 2, NET, flow=f)
        )
        for name, f in POSTERIORS.items()
    },
}  # fmt: skip
X = (torch.arange(24).reshape(6, 4) % 3 == 0).float()


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_valid(name):
    vae = pair(*PAIRS[name]())
    report = testing.check_pair(vae.model, vae.guide, X)
    assert report.ok, str(report)


def test_a_pair_with_a_wrong_determinant_is_caught(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(bijections, "Planar", WrongSign)
    vae = pair(*PAIRS["posterior-planar"]())
    report = testing.check_pair(vae.model, vae.guide, X)
    assert not report.ok


def test_vectorised_particles_as_looped_ones():
    vae = pair(*PAIRS["posterior-sylvester"]())
    k = 2000
    with pyro.get_param_store().scope():
        wide = Trace_ELBO(num_particles=k, vectorize_particles=True, max_plate_nesting=1)
        vectorised = wide.loss(vae.model, vae.guide, X)
        looped = [Trace_ELBO().loss(vae.model, vae.guide, X) for _ in range(200)]
    error = torch.tensor(looped).std() / 200**0.5 * (1 + 200 / k) ** 0.5
    assert abs(vectorised - sum(looped) / 200) < 4 * error  # by chance, 6e-5


def test_flows_by_name():
    vae = build(
        data_shape=(4,), latent_dim=3, hidden=(5,), prior="flow-prior", posterior="flow-posterior",
        prior_options={"flow": "neural-spline:2,8", "context_dim": 1},
        posterior_options={"flow": "sylvester:2,3", "context_dim": 1},
        likelihood_options={"context_dim": 1},
    )  # fmt: skip
    assert vae.prior.flow == priors.NeuralSpline(2, 8)
    assert vae.posterior.flow == posteriors.Sylvester(2, 3)
    assert vae.prior(torch.zeros(5, 1)).batch_shape == (5,)
    assert vae.sample(5, torch.zeros(5, 1)).shape == (5, 4)


def test_a_representation_draws_nothing():
    part = priors.FlowPrior(3)
    state = torch.get_rng_state()
    assert "3 x MaskedAutoregressiveTransform" in repr(part)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.FlowPrior(2, flow="neural-spline"), "flow to be NeuralSpline.*got 'neur"),
        (lambda: priors.FlowPrior(2, flow=posteriors.NeuralSpline()), "flow to be NeuralSpline"),
        (lambda: priors.FlowPrior(2, context_dim=-1), "context_dim to be a whole number >= 0"),
        (lambda: priors.FlowPrior(2, context_dim=2)(), r"context tensors with 2 numbers a datum"),
        (
            lambda: priors.NeuralSpline(2.5),
            "transforms of NeuralSpline to be a positive whole number; got 2.5",
        ),
        (lambda: priors.RealNVP(float("inf")), "got inf"),
        (lambda: posteriors.Planar(0), "steps of Planar to be a positive whole number; got 0"),
        (
            lambda: posteriors.FlowPosterior((4,), 2, flow=priors.RealNVP()),
            r"flow to be InverseAutoregressive\(\)",
        ),
        (
            lambda: build(
                data_shape=(4,), prior="flow-prior", prior_options={"flow": "neural-spline:0"}
            ),
            "neural-spline.*positive whole number",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_zuko_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    for make in (
        lambda: priors.FlowPrior(2),
        lambda: posteriors.FlowPosterior((4,), 2),
    ):
        with pytest.raises(ValueError, match=r"pip install 'pyrovae\[flows\]'"):
            make()
    posteriors.FlowPosterior((4,), 2, flow=posteriors.Planar())


IMPORTS = """
import sys, torch, pyro, pyrovae
from torch.distributions import Distribution
assert "zuko" not in sys.modules
before = Distribution._validate_args
assert before
{using}
assert "zuko" in sys.modules
assert Distribution._validate_args == before, "validation is off"
"""


@pytest.mark.parametrize(
    ("using", "off"), [("pyrovae.priors.FlowPrior(2)().sample()", False), ("import zuko", True)]
)
def test_zuko_leaves_validation_on(using, off):
    """And, the negative control, of itself it does not."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTS.format(using=using)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ("validation is off" in done.stderr) == off
    assert (done.returncode != 0) == off, done.stderr
