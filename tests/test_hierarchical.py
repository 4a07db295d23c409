"""Levels of latents, against linear-Gaussian hierarchies whose every figure is a closed form."""

import copy

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from linear_levels import KINDS, TOP_DOWN, Closed, D, data, heads, linear
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from test_two_levels import TwoLevels
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily

from pyrovae import VAE, build, evidence, fit, likelihoods, log_weights, nets, posteriors, priors
from pyrovae.distributions import diagonal_normal, seeded
from pyrovae.importance import guide_distributions, site_log_probs
from pyrovae.pairs import HierarchicalVAE, Ladder, TopDown, rungs
from pyrovae.pairs.hierarchical_posteriors import precision_weighted
from pyrovae.testing import check_pair

RUNS, ROWS = 60, 20  # runs of an estimator, each of so many draws a datum
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _store():
    with pyro.get_param_store().scope():
        yield


def bits(n=30, d=4):
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(1234)) > 0.5).float()


def runs_of(elbo, pair, x, find):
    """What `find` makes of the ELBO a datum, run by run, each of ROWS draws a datum."""
    many = x.repeat(ROWS, 1)
    with seeded(11), pyro.validation_enabled(False):  # or Pyro warns, and computes all the same
        losses = (elbo.differentiable_loss(pair.model, pair.guide, many) for _ in range(RUNS))
        return torch.stack([find(-loss / len(many)) for loss in losses])


def off(values, expected):
    """How many standard errors a mean of runs is from what is expected; NaN for 0 of 0."""
    return (values.mean(0) - expected).abs() / (values.std(0) / len(values) ** 0.5)


def exact_guide(pair, x):
    """The same model with its exact posterior as a full-rank guide, p(z2|x) p(z1|x, z2)."""
    truth = Closed(pair, torch.cat([torch.zeros(1, D), torch.eye(D)]).double())
    d = pair.latent_dims[0]
    mean, cov = truth.posterior.mean, truth.posterior.covariance_matrix[0]
    slope = cov[:d, d:] @ torch.linalg.inv(cov[d:, d:])
    at_x = (mean[1:] - mean[0]).T
    parts = []
    for loc, rest, root in (
        (torch.cat([at_x[:d] - slope @ at_x[d:], slope], 1), mean[0, :d] - slope @ mean[0, d:],
         cov[:d, :d] - slope @ cov[d:, :d]),
        (at_x[d:], mean[0, d:], cov[d:, d:]),
    ):  # fmt: skip
        tril = torch.linalg.cholesky(root)
        below = tril[tuple(torch.tril_indices(d, d, -1))]
        q = posteriors.FullRankNormal((D,), d, nets.mlp(hidden=()), loc.shape[1] - D).double()
        with torch.no_grad():
            q.net.output.weight.zero_()[:d] = loc
            q.net.output.bias.copy_(torch.cat([rest, tril.diagonal().log(), below]))
        parts.append(q)
    return HierarchicalVAE(pair.prior, pair.between, pair.likelihood, TopDown(parts))


@every_kind
def test_its_evidence_is_the_closed_form(kind):
    """The one is of the weights alone, the other of the densities of the pair's own sites."""
    pair, x = linear(kind), data()
    found = evidence.linear_gaussian(pair.model, pair.guide, x)
    expected = Closed(pair, x).log_evidence
    torch.testing.assert_close(found.log_evidence, expected, rtol=0, atol=1e-9)
    pair.between[0].net.output.bias.data[0] += 0.1
    moved = evidence.linear_gaussian(pair.model, pair.guide, x).log_evidence
    assert (moved - expected).abs().max() > 1e-3  # negative control


def test_the_exact_guide_leaves_no_residual():
    """log p(x) = ELBO + KL(q || p(z|x)) with KL 0, so that log w does not vary."""
    x, pair = data(), linear("two-level")
    exact = exact_guide(pair, x)
    log_p = evidence.linear_gaussian(exact.model, exact.guide, x).log_evidence
    log_w = log_weights(exact.model, exact.guide, x, num_particles=100)
    torch.testing.assert_close(log_w, log_p.expand(100, -1), rtol=0, atol=1e-9)
    found = exact.levels(x, num_particles=200)
    assert ((found.elbo - log_p).abs() < 4.5 * found.elbo_standard_error).all()
    assert log_weights(pair.model, pair.guide, x, num_particles=100).std(0).min() > 0.1  # control


@every_kind
def test_the_identity_holds_for_several_sites(kind):
    """log p(x) = ELBO + KL(q(z_1, ..., z_L|x) || p(z_1, ..., z_L|x)), each found apart."""
    pair, x = linear(kind), data()
    found = evidence.identity(pair.model, pair.guide, x)
    assert found.residual.abs().max() <= 1e-10 and found.kl.min() > 1e-3
    torch.testing.assert_close(found.elbo, Closed(pair, x).elbo, rtol=0, atol=1e-9)
    exact = exact_guide(linear("two-level"), x)
    found = evidence.identity(exact.model, exact.guide, x)
    assert found.residual.abs().max() <= 1e-10 and found.kl.abs().max() <= 1e-10


@every_kind
def test_trace_elbo_is_the_closed_form_and_mean_field_too_unless_bottom_up(kind):
    """Within 4.5 standard errors, P < 1e-3 for all; a bottom-up guide is far outside."""
    pair, x = linear(kind), data()
    expected = Closed(pair, x).elbo.mean().detach()
    assert off(runs_of(Trace_ELBO(), pair, x, Tensor.detach), expected) < 4.5
    found = off(runs_of(TraceMeanField_ELBO(), pair, x, Tensor.detach), expected)
    assert found < 4.5 if kind in TOP_DOWN else found > 10


@every_kind
def test_the_gradient_is_that_of_the_closed_form(kind):
    """Every number of it within 5.5 standard errors, P < 1e-3 for all; not so bottom-up."""
    pair, x = linear(kind), data()
    known = constant_variances(pair)
    expected = gradient(Closed(pair, x).elbo.mean(), pair)[known]
    found = [
        runs_of(elbo, pair, x, lambda value: gradient(value, pair)[known])
        for elbo in (Trace_ELBO(), TraceMeanField_ELBO())
    ]
    sampled, closed = (off(runs, expected).nan_to_num(0).max() for runs in found)
    assert sampled < 5.5
    assert closed < 5.5 if kind in TOP_DOWN else closed > 20
    assert off(found[0], 1.2 * expected).nan_to_num(0).max() > 20  # negative control


def gradient(value, pair):
    found = torch.autograd.grad(value, list(pair.parameters()), allow_unused=True)
    zeros = [torch.zeros_like(p) for p in pair.parameters()]
    return torch.cat([(z if g is None else g).flatten() for g, z in zip(found, zeros, strict=True)])


def constant_variances(pair):
    """Which of the parameters leave the pair linear: all but the weights of log-variances."""
    free = {id(p): torch.ones_like(p, dtype=torch.bool) for p in pair.parameters()}
    for head in heads(pair):
        free[id(head.weight)][len(head.weight) // 2 :] = False
    return torch.cat([free[id(p)].flatten() for p in pair.parameters()])


@every_kind
def test_its_levels_sum_to_the_elbo(kind):
    """Within 4.5 standard errors a datum and level, P < 1e-3 for all."""
    pair, x = linear(kind), data()
    found, closed = pair.levels(x, num_particles=300), Closed(pair, x)
    torch.testing.assert_close(found.reconstruction - found.kl.sum(0), found.elbo)
    assert ((found.elbo - closed.elbo).abs() < 4.5 * found.elbo_standard_error).all()
    expected, error = torch.stack(closed.kl), 4.5 * found.kl_standard_error + 1e-9
    near = ((found.kl - expected).abs() < error).all(1)
    # where p(z_i|...) depends on what is drawn from z_i, the sum of KLs is not the ELBO's
    assert near.all() if kind in TOP_DOWN else near[-1] and not near[:-1].any()


def test_a_level_without_closed_kl_is_sampled():
    """A mixture on top: log q - log p at the draws, to the ELBO within 4.5 standard errors."""
    pair, x = build(
        data_shape=(4,), latent_dim=1, hidden=(7,), prior="mixture-of-normals",
        pair="hierarchical-vae",
    ), bits(5)  # fmt: skip
    found = pair.levels(x, num_particles=300)
    elbo = log_weights(pair.model, pair.guide, x, num_particles=2000, seed=5)
    error = (found.elbo_standard_error**2 + elbo.var(0) / len(elbo)).sqrt()
    assert ((found.elbo - elbo.mean(0)).abs() < 4.5 * error).all()
    assert (found.kl_standard_error[1] > 1e-3).all()
    with pytest.raises(ValueError, match="num_particles to be a whole number of 2 or more"):
        pair.levels(x, num_particles=1)


def test_the_ladder_weighs_by_precision():
    generator = np.random.default_rng(5)
    m_q, m_p = generator.normal(size=(2, 6, 3))
    s_q, s_p = np.exp(generator.normal(size=(2, 6, 3)))
    both = precision_weighted(
        diagonal_normal(torch.tensor(m_q), torch.tensor(s_q)),
        diagonal_normal(torch.tensor(m_p), torch.tensor(s_p)),
    )
    precision = 1 / s_q**2 + 1 / s_p**2
    np.testing.assert_allclose(both.variance, 1 / precision, rtol=1e-12)
    np.testing.assert_allclose(both.mean, (m_q / s_q**2 + m_p / s_p**2) / precision, rtol=1e-12)
    z = generator.normal(size=(2, 6, 3))  # the densities' product, but for a constant
    law = [scipy.stats.norm(m, s).logpdf(z).sum(-1) for m, s in ((m_q, s_q), (m_p, s_p))]
    found = both.log_prob(torch.tensor(z)).numpy()
    np.testing.assert_allclose(found[1] - found[0], (law[0] + law[1])[1] - (law[0] + law[1])[0])


def test_the_ladder_s_guide_shares_the_model_s_parameters():
    pair = build(data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae",
                 pair_options={"kind": "ladder"})  # fmt: skip
    x, before = bits(3), None
    for _ in range(2):
        z1 = guide_distributions(pair.guide, x)["z1"].mean
        pair.between[0].net.output.bias.data += 1.0  # the mean and log-variance of p(z1|z2)
        assert before is None or (z1 - before).abs().min() > 1e-3
        before = z1
    two = build(data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae")
    before = guide_distributions(two.guide, x)["z1"].mean
    two.between[0].net.output.bias.data += 1.0
    assert torch.equal(guide_distributions(two.guide, x)["z1"].mean, before)  # negative control


@pytest.fixture
def by_hand():
    with seeded(1):
        return TwoLevels()


def of_parts(two, prior=None):
    return HierarchicalVAE(
        two.prior if prior is None else prior, [two.between], two.likelihood,
        TopDown([two.bottom, two.top]),
    )  # fmt: skip


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_two_levels_are_those_written_by_hand(by_hand, elbo):
    x, ours = bits(20), of_parts(by_hand)
    values = [log_weights(pair.model, pair.guide, x, num_particles=50) for pair in (by_hand, ours)]
    assert torch.equal(*values)
    found = []
    for pair in (by_hand, ours):
        with seeded(2):
            found.append(gradient(elbo.differentiable_loss(pair.model, pair.guide, x), by_hand))
    torch.testing.assert_close(*found)
    other = of_parts(by_hand, priors.StandardNormal(1))  # negative control
    assert not torch.allclose(log_weights(other.model, other.guide, x, num_particles=50), values[0])


@pytest.mark.parametrize("kind", ["two-level", "ladder"])
def test_a_vamp_prior_is_made_of_the_top_level_s_guide(kind):
    with seeded(1):
        pair = build(
            data_shape=(4,), latent_dim=1, hidden=(7,), pair="hierarchical-vae", prior="vamp-prior",
            prior_options={"num_components": 5, "init": [0.5, 0.3]}, pair_options={"kind": kind},
        )  # fmt: skip
    x, z = bits(2), torch.linspace(-3, 3, 9)[:, None]
    u = pair.prior.pseudo_inputs.clamp(0, 1)
    q = guide_distributions(pair.guide, u)["z2"]
    by_torch = MixtureSameFamily(Categorical(logits=torch.zeros(5)), q)
    torch.testing.assert_close(pair.prior().log_prob(z), by_torch.log_prob(z))
    exact = evidence.exact(pair.model, pair.guide, x).log_evidence
    found = evidence.iwae(pair.model, pair.guide, x, num_particles=10_000)
    assert ((found.log_evidence - exact).abs() < 5 * found.standard_error + 1e-4).all()
    # a copy's prior is made of the copy's guide
    other, before = copy.deepcopy(pair), pair.prior().log_prob(z)
    for p in other.posterior.parameters():
        p.data += 0.5
    assert torch.equal(pair.prior().log_prob(z), before)
    assert not torch.allclose(other.prior().log_prob(z), before, atol=1e-2)
    # and it is trained with it
    fit(pair.model, pair.guide, bits(), epochs=20, lr=1e-2)
    assert not torch.equal(pair.prior.pseudo_inputs.clamp(0, 1), u)
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x)
    assert pair.double().sample(3).dtype == torch.float64


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["ladder", "bottom-up"])
def test_skip_connections_say_what_depends_on_what(kind, skip):
    """A density changes with the levels that it depends on, and with no other."""
    pair = build(
        data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae",
        net_options={"activation": "tanh"}, pair_options={"kind": kind, "levels": 3, "skip": skip},
    )  # fmt: skip
    x, generator = bits(3), torch.Generator().manual_seed(1234)
    z = {f"z{i}": torch.randn(1, 3, 2, generator=generator) for i in (1, 2, 3)}
    before = site_log_probs(pair.model, z, x)

    def changed(name):
        after = site_log_probs(pair.model, z | {name: z[name] + 1}, x)
        return {site for site in before if not torch.equal(before[site], after[site])}

    assert changed("z1") == {"z1", "x"}
    assert changed("z2") == {"z2", "z1"} | ({"x"} if skip else set())
    assert changed("z3") == {"z3", "z2"} | ({"z1", "x"} if skip else set())


def test_a_ladder_of_one_level_is_a_vae():
    pair = build(data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae",
                 pair_options={"kind": "ladder", "levels": 1})  # fmt: skip
    vae = VAE(pair.prior, pair.likelihood, pair.posterior.estimates)
    weights = [log_weights(p.model, p.guide, bits(), num_particles=5) for p in (pair, vae)]
    torch.testing.assert_close(*weights)
    assert pair.posterior.order == range(1, 0, -1) and len(pair.between) == 0


def bottom_up(**options):
    with seeded(1):
        return build(data_shape=(4,), latent_dim=2, hidden=(7,), pair="hierarchical-vae",
                     pair_options={"kind": "bottom-up"} | options)  # fmt: skip


def test_bottom_up_is_right_but_for_closed_kls(tmp_path):
    """check_pair finds nothing but TraceMeanField_ELBO at fault; the sound objective trains."""
    pair = linear("bottom-up")
    report = check_pair(pair.model, pair.guide, data(12))
    assert [failure.cause for failure in report.failures] == ["TraceMeanField_ELBO"]
    pair = bottom_up()
    history = fit(pair.model, pair.guide, bits(), objective=Trace_ELBO(), epochs=40, lr=0.02)
    assert sum(history["loss"][-5:]) < sum(history["loss"][:5])
    x = pair.sample(5, seed=3)
    assert torch.equal(x, pair.sample(5, seed=3)) and pair.reconstruct(x).shape == x.shape


def test_its_latents_side_by_side_are_decoded():
    pair = build(data_shape=(4,), hidden=(7,), pair="hierarchical-vae",
                 pair_options={"latent_dims": [3, 2]})  # fmt: skip
    z2, z1 = torch.randn(5, 2), torch.randn(5, 3)
    found = pair.decode(torch.cat([z2, z1], 1)).mean
    torch.testing.assert_close(found, pair.likelihood(z1, z2).mean)
    with pytest.raises(ValueError, match=r"z of shape \(N, 2 \+ 3\).*z_2 first; got \(5, 3\)"):
        pair.decode(z1)


@pytest.mark.parametrize("kind", ["two-level", "ladder", "bottom-up"])
def test_missing_entries_are_not_seen(kind):
    pair = build(data_shape=(D,), latent_dim=2, hidden=(7,), likelihood="masked:normal",
                 pair="hierarchical-vae", pair_options={"kind": kind}).double()  # fmt: skip
    x, mask = data(), torch.ones(6, D)
    mask[:, 1::2] = 0
    values = [
        log_weights(pair.model, pair.guide, rows, *c, num_particles=3)
        for rows, c in (
            (x, (mask,)), (torch.where(mask == 1, x, 9.0), (mask,)),
            (torch.where(mask == 1, x, torch.nan), ()), (x, ()),
        )
    ]  # fmt: skip
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])
    assert not torch.allclose(values[0], values[3])  # negative control
    complete = posteriors.MeanFieldNormal((D,), 4)
    with pytest.raises(ValueError, match="takes missing entries.*missing=True"):
        HierarchicalVAE(pair.prior, pair.between, pair.likelihood, Ladder(complete, (2, 2)))


def test_an_exemplar_prior_on_top_is_given_the_index():
    pair = build(data_shape=(4,), latent_dim=2, hidden=(7,), prior="exemplar-prior",
                 prior_options={"num_exemplars": 30}, pair="hierarchical-vae",
                 pair_options={"kind": "ladder"})  # fmt: skip
    x = bits()
    pair.prior.set_exemplars(x)
    history = fit(pair.model, pair.guide, (x, torch.arange(len(x))), epochs=3)
    assert len(history["loss"]) == 3
    known = log_weights(pair.model, pair.guide, x, torch.arange(len(x)))
    assert not torch.allclose(known, log_weights(pair.model, pair.guide, x))


class Gated(nn.Module):
    """(W h + b) * sigmoid(V h + c)."""

    def __init__(self, before, after):
        super().__init__()
        self.h, self.g = nn.Linear(before, after), nn.Linear(before, after)

    def forward(self, x):
        return self.h(x) * self.g(x).sigmoid()


def test_a_wider_first_layer_contains_the_network_of_the_paper():
    """Tomczak & Welling (2018): x and z2 each through a layer, then a joint one."""
    of_x, of_z, joint, output = Gated(D, 3), Gated(2, 3), Gated(6, 3), nn.Linear(3, 4)
    q = posteriors.MeanFieldNormal((D,), 2, nets.gated_mlp(hidden=(6, 3)), context_dim=2)
    first, second = q.net.hidden[0], q.net.hidden[2]
    with torch.no_grad():
        first.weight.zero_()
        for i, (name, half) in enumerate((("h", slice(0, 6)), ("g", slice(6, 12)))):
            a, b = getattr(of_x, name), getattr(of_z, name)
            first.weight[half][:3, :D] = a.weight
            first.weight[half][3:, D:] = b.weight
            first.bias[half] = torch.cat([a.bias, b.bias])
            own = slice(3 * i, 3 * i + 3)
            second.weight[own], second.bias[own] = (
                getattr(joint, name).weight, getattr(joint, name).bias
            )  # fmt: skip
        q.net.output.load_state_dict(output.state_dict())
    x, z2 = data().float(), torch.randn(6, 2)
    theirs = output(joint(torch.cat([of_x(x), of_z(z2)], 1)))
    torch.testing.assert_close(q(x, z2).mean, theirs[:, :2])
    torch.testing.assert_close(q(x, z2).variance, theirs[:, 2:].exp())


NET = nets.mlp(hidden=(7,))
NAMED = [
    ({"kind": "sideways"}, {}, "kind to be one of bottom-up, ladder, two-level; got 'sideways'"),
    ({"levels": 3}, {}, "levels to be 2 of kind two-level.*got levels=3"),
    ({"kind": "ladder", "levels": 0}, {}, "1 or more of ladder and bottom-up; got levels=0"),
    ({"latent_dims": [4, 3, 2]}, {}, r"each of 2 levels.*got \[4, 3, 2\]: give levels=3"),
    ({"latent_dims": [4, 0]}, {}, r"a positive whole number.*got \[4, 0\]"),
    ({"kind": "ladder", "width": 0}, {}, "width to be a positive whole number; got 0"),
    ({"kind": "bottom-up"}, {"prior": "vamp-prior"}, r"a guide with q\(z_L\|x\).*bottom-up one"),
    ({"kind": "ladder"}, {"posterior": "full-rank-normal"}, "such as mean-field-normal, for a lad"),
    ({"depth": 2}, {}, "options of pair hierarchical-vae among levels, .*; got 'depth'"),
    ({}, {"prior": "von-mises-fisher"}, "one space of z_2; got 'the unit sphere"),
]


@pytest.mark.parametrize(("options", "others", "message"), NAMED)
def test_names_that_do_not_go_together_are_refused(options, others, message):
    with pytest.raises(ValueError, match=message):
        build(
            data_shape=(4,), latent_dim=2, pair="hierarchical-vae", pair_options=options, **others
        )


def test_a_ladder_of_other_posteriors_is_refused():
    pair = build(data_shape=(4,), latent_dim=2, posterior="mixture-of-normals", hidden=(7,),
                 pair="hierarchical-vae")  # fmt: skip
    assert check_pair(pair.model, pair.guide, bits(6)).ok  # two levels take any
    with pytest.raises(ValueError, match="expected a normal with independent dimensions"):
        Ladder(posteriors.FullRankNormal((4,), 4, NET), (2, 2))(bits(3), None)
    with pytest.raises(ValueError, match=r"latent_dim 2 \+ 2 = 4; got 5"):
        Ladder(posteriors.MeanFieldNormal((4,), 5, NET), (2, 2))


def test_parts_that_do_not_fit_are_refused():
    def made(between=2, likelihood=(2, 4), guide=(2, 2), shape=4, skip=True):
        estimates = posteriors.MeanFieldNormal((4,), sum(guide), rungs(NET, guide, 5))
        p_x = likelihoods.Bernoulli(likelihood[0], (shape,), NET, likelihood[1])
        return HierarchicalVAE(
            priors.StandardNormal(2), [priors.ConditionalNormal(2, between, NET)], p_x,
            Ladder(estimates, guide), skip,
        )  # fmt: skip

    assert made(likelihood=(2, 2)).latent_dims == (2, 2)
    with pytest.raises(ValueError, match=r"\(2, 2\) in the model, \(3, 2\) in the guide"):
        made(guide=(3, 2))
    with pytest.raises(ValueError, match=r"p\(z_1\|...\) of context_dim 2.*got 3"):
        made(between=3)
    with pytest.raises(ValueError, match="a likelihood of latent_dim 2; got 3"):
        made(likelihood=(3, 2))
    with pytest.raises(ValueError, match=r"data_shape \(4,\); got \(5,\)"):
        made(shape=5)
