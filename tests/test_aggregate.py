"""Aggregate posteriors: total correlation and MMD of normals, where both are known."""

import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from benchmarks import batch_size
from fixed_noise import Noisy, batch, evaluated

from pyrovae import diagnostics
from pyrovae.distributions import seeded
from pyrovae.importance import Latent, Particles, particles
from pyrovae.objectives import MMD, BetaTC
from pyrovae.objectives.aggregate import mmd2

LEVELS = 4.0  # standard errors, a failure with probability 6e-5; 3e-4 where they are of 40 means


class LinearNormal:
    """x ~ N(0, C), q(z|x) = N(A x, diag s^2): q(z) = N(0, A C A' + diag s^2). p(x|z) = N(0, I)."""

    C = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.2, -0.3], [0.0, -0.3, 0.8]]).double()
    A = torch.tensor([[1.2, 0.3, 0.0], [0.9, 0.4, 0.5]]).double()
    S = torch.tensor([1.0, 0.9]).double()

    @property
    def covariance(self):
        return self.A @ self.C @ self.A.T + self.S.square().diag()

    def data(self, n, generator):
        noise = torch.randn(n, 3, generator=generator).double()
        return noise @ torch.linalg.cholesky(self.C).T

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.A.T, self.S).to_event(1))

    def known(self):
        """Mutual information, total correlation and dimension-wise KL of infinitely many data."""
        sigma = self.covariance
        variances, log_det = sigma.diagonal(), sigma.logdet()
        return torch.stack([
            0.5 * log_det - self.S.log().sum(),
            0.5 * (variances.log().sum() - log_det),
            0.5 * (variances - 1 - variances.log()).sum(),
        ])  # fmt: skip

    def parts(self, x, objective):
        """The three terms by datum, (3, N), as by `particles` but sooner."""
        q = dist.Normal(x @ self.A.T, self.S).to_event(1)
        p = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        nothing = x.new_zeros(1, len(x))
        latent = Latent("z", q, p, q.rsample(), 1.0, None)
        found = Particles(nothing, nothing, nothing, None, 1.0, 1.0, (latent,))
        return torch.stack(objective.decomposed(found))


def measured(values):
    """Mean and standard error of rows."""
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


def test_all_the_data_give_the_known_total_correlation():
    """40 data sets of 800; a bias of some 1/800 nats is less than their standard errors."""
    pair, generator = LinearNormal(), torch.Generator().manual_seed(1234)
    found = [pair.parts(pair.data(800, generator), BetaTC()).mean(1) for _ in range(40)]
    mean, error = measured(found)
    assert ((mean - pair.known()).abs() < LEVELS * error).all()
    assert error.max() < 0.02
    swapped = pair.known()[[1, 0, 2]]  # negative control
    assert ((mean - swapped).abs() > LEVELS * error)[:2].all()


def test_all_the_data_give_what_the_diagnostic_does():
    pair, generator = LinearNormal(), torch.Generator().manual_seed(1234)
    x = pair.data(400, generator)
    mean, error = measured([pair.parts(x, BetaTC()).mean(1) for _ in range(50)])
    found = diagnostics.total_correlation(pair.model, pair.guide, x, num_draws=50)
    theirs = found.mutual_information, found.total_correlation, found.dimension_wise_kl
    errors = (
        found.mutual_information_se, found.total_correlation_se, found.dimension_wise_kl_se
    )  # fmt: skip
    both = (error**2 + torch.tensor(errors) ** 2).sqrt()
    assert ((mean - torch.tensor(theirs)).abs() < LEVELS * both).all()


def biases(pair, x, b, estimator, batches):
    """The bias of the three terms' means by batches of b of the data x, and its standard error."""
    objective = BetaTC(estimator=estimator, num_data=len(x))
    generator = torch.Generator().manual_seed(77)
    chosen = [x[torch.randperm(len(x), generator=generator)[:b]] for _ in range(batches)]
    mean, error = measured([pair.parts(some, objective).mean(1) for some in chosen])
    whole, of_whole = measured([pair.parts(x, BetaTC()).mean(1) for _ in range(20)])
    return mean - whole, (error**2 + of_whole**2).sqrt()


def test_batches_bias_the_weighted_estimate_and_less_the_stratified():
    """Of 500 data in batches of 10 and 50: I is too large, by some log N where it is weighted."""
    pair = LinearNormal()
    x = pair.data(500, torch.Generator().manual_seed(1234))
    stratified, error = biases(pair, x, 10, "stratified", 600)
    larger, _ = biases(pair, x, 50, "stratified", 300)
    weighted, _ = biases(pair, x, 10, "weighted", 600)
    assert stratified[0] > LEVELS * error[0] and stratified[2] < -LEVELS * error[2]
    assert (larger.abs() < 0.5 * stratified.abs()).all()
    assert (stratified.abs() < 0.05 * weighted.abs()).all()
    assert math.log(500 / 10) < weighted[0] < math.log(500)
    # but for its constants it is biased the other way: a batch tells apart no more than its own
    assert (weighted[0] - math.log(500)) / error[0] < -LEVELS


def test_the_stratified_estimate_of_the_density_has_no_bias():
    """Over all 10 batches of 3 of 6 data that hold x_0; the weighted one's mean is another."""
    pair = LinearNormal()
    x = pair.data(6, torch.Generator().manual_seed(1234))
    q = dist.Normal(x @ pair.A.T, pair.S).to_event(1)
    density = q.log_prob(torch.tensor([0.3, -0.2]).double()).exp()
    found = {}
    for estimator in ("stratified", "weighted"):
        weights = BetaTC(estimator=estimator)._log_weights(3, 6)[0].exp()
        batches = [(0, *others) for others in itertools.combinations(range(1, 6), 2)]
        found[estimator] = torch.stack([(weights * density[list(i)]).sum() for i in batches]).mean()
    assert found["stratified"].item() == pytest.approx(density.mean().item(), rel=1e-12)
    assert found["weighted"].item() != pytest.approx(density.mean().item(), rel=0.5)


def test_the_stratified_weights_are_the_papers_in_the_mean():
    """1/N of its own, (N-M)/(NM) of one other and 1/M of the rest, M = B - 1 (appendix C.2)."""
    b, n = 5, 40
    m = b - 1
    papers = torch.zeros(m, b).double()
    for small in range(m):
        papers[small] = 1 / m
        papers[small, 0] = 1 / n
        papers[small, 1 + small] = (n - m) / (n * m)
    ours = BetaTC(estimator="stratified")._log_weights(b, n).exp()
    torch.testing.assert_close(ours[0], papers.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.sum(1), torch.ones(b).double())


def test_the_weighted_estimate_is_the_batchs_mixture_but_for_constants():
    """So its gradient does not know N."""
    pair, x = LinearNormal(), batch()[0][:, :3]
    with seeded(1):
        alone = pair.parts(x, BetaTC())
    with seeded(1):
        of_many = pair.parts(x, BetaTC(num_data=1000))
    shift = math.log(1000) * torch.tensor([1.0, 2 - 1, -2]).double().unsqueeze(1)
    torch.testing.assert_close(of_many - alone, shift.expand_as(alone), rtol=1e-10, atol=1e-10)
    data = batch()
    one, other = (evaluated(Noisy(), BetaTC(num_data=n), *data)[1] for n in (20, 1000))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    stratified = evaluated(Noisy(), BetaTC(estimator="stratified", num_data=1000), *data)[1]
    assert not torch.allclose(stratified, one, rtol=1e-3)


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
@pytest.mark.parametrize("num_data", [None, 1000])
def test_factors_of_one_are_the_elbo_of_each_datum(estimator, num_data):
    data, pair = batch(), Noisy()
    found = particles(pair.model, pair.guide, *data)
    value = BetaTC(1.0, 1.0, 1.0, estimator, num_data).estimate(pair.model, pair.guide, *data).value
    torch.testing.assert_close(value, found.log_weight[0], rtol=1e-12, atol=1e-12)
    other = BetaTC(1.1, 1.0, 1.0, estimator, num_data).estimate(pair.model, pair.guide, *data).value
    assert not torch.allclose(other, found.log_weight[0], rtol=1e-3)


# maximum mean discrepancy


def known_mmd2(first, second, h):
    """MMD^2 of N(0, first) and N(0, second): E k(x, y) = |I + (S + T)/h^2|^(-1/2)."""
    eye = torch.eye(len(first)).double()

    def mean(s, t):
        return torch.linalg.det(eye + (s + t) / h**2) ** -0.5

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


@pytest.mark.parametrize(("b", "batches"), [(4, 8000), (64, 1500)])
def test_the_mean_of_mmd2_is_the_known_one_at_any_batch_size(b, batches):
    pair, generator = LinearNormal(), torch.Generator().manual_seed(1234)
    root = torch.linalg.cholesky(pair.covariance)
    h = math.sqrt(2)
    unbiased, biased = [], []
    for _ in range(batches):
        x, y = torch.randn(2, b, 2, generator=generator).double()
        unbiased.append(mmd2(x @ root.T, y))
        biased.append((1 - 1 / b) * unbiased[-1] + 2 / b)  # nearly: pairs of itself, k = 1
    known = known_mmd2(pair.covariance, torch.eye(2).double(), h)
    mean, error = measured(unbiased)
    assert (mean - known).abs() < LEVELS * error and known > 0.01
    mean, error = measured(biased)
    assert (mean - known).abs() > LEVELS * error  # negative control


def test_the_objectives_mmd2_has_the_known_mean():
    """p(x|z) = N(0, I) is known, and the rest is the penalty."""
    pair, generator = LinearNormal(), torch.Generator().manual_seed(1234)
    found = []
    for _ in range(600):
        x = pair.data(6, generator)
        value = MMD(10.0, bandwidth=1.1).estimate(pair.model, pair.guide, x).value
        likelihood = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1).log_prob(x)
        found.append((likelihood - value).mean() / 10)
    mean, error = measured(found)
    known = known_mmd2(pair.covariance, torch.eye(2).double(), 1.1)
    assert (mean - known).abs() < LEVELS * error and error < 0.2 * known


class GivenContext:
    """p(z|c) = N(0.9 c, 0.5^2), q(z|x, c) = N(1.1 c, 0.4^2), c ~ N(0, 1)."""

    def model(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * c, 0.5).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), obs=x)

    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.1 * c, 0.4).to_event(1))


def test_a_conditional_prior_is_compared_over_all_c():
    """Draws of one c are no two at random: with them the mean at B = 3 is another."""
    pair, generator = GivenContext(), torch.Generator().manual_seed(1234)
    known = known_mmd2(*(torch.tensor([[v]]).double() for v in (1.1**2 + 0.16, 0.81 + 0.25)), 1.0)
    ours, naive = [], []
    for _ in range(800):
        c = torch.randn(3, 1, generator=generator).double()
        x = torch.zeros_like(c)
        value = MMD(1.0, bandwidth=1.0).estimate(pair.model, pair.guide, x, c).value
        ours.append(-0.5 * math.log(2 * math.pi) - value.mean())
        z, y = 1.1 * c + 0.4 * torch.randn_like(c), 0.9 * c + 0.5 * torch.randn_like(c)
        naive.append(mmd2(z, y, 1.0))
    mean, error = measured(ours)
    assert (mean - known).abs() < LEVELS * error
    mean, error = measured(naive)
    assert (mean - known).abs() > LEVELS * error  # negative control


def test_mmd2_is_the_two_sample_tests_and_has_its_gradient():
    generator = torch.Generator().manual_seed(1234)
    x, y = (torch.randn(n, 3, generator=generator).double() for n in (9, 6))
    found = diagnostics.two_sample(x, y, bandwidth=1.7, num_permutations=1)
    assert mmd2(x, y, 1.7).item() == pytest.approx(found.mmd2, rel=1e-10)
    assert mmd2(x, y).item() == pytest.approx(mmd2(x, y, math.sqrt(3)).item(), rel=1e-12)
    x.requires_grad_(True), y.requires_grad_(True)
    assert torch.autograd.gradcheck(mmd2, (x, y))
    assert torch.autograd.gradcheck(lambda a, b: mmd2(a[:6], b, 1.2, paired=True), (x, y))


# the benchmark


def test_the_benchmark_measures_batches_and_all_the_data(monkeypatch, capsys):
    vae, x = batch_size.task(1)
    monkeypatch.setattr(batch_size, "task", lambda epochs: (vae, x[:60]))
    batch_size.main(["--batches", "30", "--sizes", "6", "--json"])
    found = json.loads(capsys.readouterr().out)
    few, whole = found["6"], found["60"]
    assert whole["capacity"][0] == pytest.approx(0, abs=1e-4)
    assert few["capacity"][0] > LEVELS * few["capacity"][1]
    for term in ("", " I", " TC", " KL_i"):
        assert whole[f"weighted{term}"] == pytest.approx(whole[f"stratified{term}"], rel=1e-4)
    assert few["weighted"][0] != pytest.approx(few["stratified"][0], rel=0.1)
    assert math.log(60) < few["weighted I"][0] < math.log(60 * 6) + 1e-4
    batch_size.main(["--batches", "2", "--sizes", "6"])
    assert capsys.readouterr().out.split()[:2] == ["batch", "free-bits"]
