"""Pairs as ArviZ's objects, against closed forms, rescoring and ArviZ's own figures.

Under ArviZ 1.x, which needs an interpreter of its own, tests/arviz_one.py runs where PYROVAE_ARVIZ1
names one (`PYROVAE_ARVIZ1=/path/to/python`, with arviz>=1, matplotlib and netCDF4).
"""

import importlib.util
import os
import subprocess
import warnings
from pathlib import Path

import arviz_one
import matplotlib
import numpy as np
import pairs_of_users as users
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

from pyrovae import build, convert, diagnostics, evidence, importance, log_weights, pairs, to_arviz
from pyrovae.convert import arrays, tables
from pyrovae.importance import weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

az = arrays.load_arviz()
arvizs_own_warnings = pytest.mark.filterwarnings(  # of ArviZ 0.2x with the newest of the others
    "ignore:Passing a dict or None as alias_mapping to normalize_kwargs is deprecated",
    "ignore:support for DataArrays will be deprecated:FutureWarning",
)
S, N, D, Q = 400, 12, 5, 2


def data(n=N, d=D):
    generator = torch.Generator().manual_seed(1234)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


@pytest.fixture(scope="module")
def linear():
    """A pair whose guide is the exact posterior, and its data."""
    x = data()
    return pairs.ppca(x, Q), x


@pytest.fixture(scope="module")
def result(linear):
    vae, x = linear
    return to_arviz(vae.model, vae.guide, x, num_samples=S)


def values(result, group, name):
    return torch.as_tensor(result[group][name].values)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class TestEitherArviZ:
    def test_content(self):
        arviz_one.check_content(arviz_one.convert(arrays))

    def test_other_content_is_told_apart(self):
        """The control: one value, or one label, that differs."""
        for change in (
            lambda r: r["prior"]["z"].values.__setitem__((0, 3, 1, 0), 9.0),
            lambda r: r["observed_data"]["x"].values.__setitem__((0, 0), 9.0),
            lambda r: r["log_likelihood"].attrs.update(note="other"),
        ):
            one, other = (arviz_one.convert(arrays) for _ in range(2))
            change(other)
            with pytest.raises(AssertionError):
                arviz_one.check_content(other)
            if one["log_likelihood"].attrs["note"] == other["log_likelihood"].attrs["note"]:
                with pytest.raises(AssertionError):
                    arviz_one.check_equal(one, other)

    def test_table(self):
        arviz_one.check_table(tables)

    def test_arviz_1(self):
        python = os.environ.get("PYROVAE_ARVIZ1")
        if not python:
            pytest.skip("PYROVAE_ARVIZ1 names no Python interpreter with ArviZ 1.x")
        script = Path(arviz_one.__file__)
        done = subprocess.run([python, "-I", script], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(line.startswith("OK ") for line in done.stdout.splitlines())


class TestSaved:
    def test_netcdf(self, result, tmp_path):
        result.to_netcdf(str(tmp_path / "a.nc"))
        arviz_one.check_equal(result, az.from_netcdf(str(tmp_path / "a.nc")))

    def test_zarr(self, result, tmp_path):
        """By xarray's own DataTree: ArviZ 0.2x writes Zarr 2 alone, and xarray reads 3 alone."""
        if importlib.util.find_spec("zarr") is None:
            pytest.skip("the package zarr is not installed")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            result.to_datatree().to_zarr(tmp_path / "a.zarr")
        found = xarray.open_datatree(tmp_path / "a.zarr", engine="zarr")
        arviz_one.check_equal(result, az.InferenceData.from_datatree(found))


class TestDraws:
    def test_groups_and_shapes(self, result):
        assert arviz_one.groups_of(result) == set(arviz_one.EXPECTED)
        for group, name, event in (("posterior", "z", Q), ("prior", "z", Q)):
            assert result[group][name].shape == (1, S, N, event)
            assert result[group][name].dims == ("chain", "draw", "data", "z_dim_0")
        for group in ("posterior_predictive", "prior_predictive"):
            assert result[group]["x"].shape == (1, S, N, D)
        assert result["log_likelihood"]["x"].dims == ("chain", "draw", "data")

    def test_densities_are_those_of_the_draws(self, linear, result):
        """Scored again, at the draws that are kept."""
        vae, x = linear
        z = {"z": values(result, "posterior", "z")[0]}
        joint = importance.log_joint(vae.model, z, x)
        close(values(result, "sample_stats", "log_joint")[0], joint.detach())
        log_q = importance.log_joint(vae.guide, z, x).detach()
        close(values(result, "sample_stats", "log_guide")[0], log_q)
        likelihood = importance.site_log_probs(vae.model, z, x)["x"].detach()
        close(values(result, "log_likelihood", "x")[0], likelihood)
        close(values(result, "sample_stats", "log_weight")[0], (joint - log_q).detach())
        assert (likelihood - values(result, "log_likelihood", "x")[0].roll(1, 0)).abs().max() > 1

    @pytest.mark.parametrize("rows", [2**16, 40, 5])
    def test_weights_are_those_of_log_weights(self, monkeypatch, rows):
        """Whatever the passes; and the context goes along."""
        monkeypatch.setattr(weights, "MAX_ROWS", rows)
        model, guide = users.conditional(*users.networks())
        x, c = users.batch(6)
        options = {"num_samples": 33, "seed": 3}
        found = to_arviz(model, guide, x, c, **options)
        expected = log_weights(model, guide, x, c, num_particles=33, seed=3).detach()
        log_w = values(found, "sample_stats", "log_weight")[0]
        torch.testing.assert_close(log_w, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(values(found, "constant_data", "context_0"), c)
        assert torch.equal(values(found, "observed_data", "x"), x)
        assert log_w.dtype == x.dtype
        other = to_arviz(model, guide, x, c, num_samples=33, seed=4)
        assert not torch.allclose(log_w, values(other, "sample_stats", "log_weight")[0])

    def test_passes_fill_every_place(self, monkeypatch, linear):
        """Draws of z, x' and the prior have the moments they have in one pass: no row twice."""
        vae, x = linear
        monkeypatch.setattr(weights, "MAX_ROWS", 7)
        found = to_arviz(vae.model, vae.guide, x, num_samples=50)
        for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
            for name in found[group].data_vars:
                flat = values(found, group, name)[0].flatten(0, 1)
                assert len(flat.unique(dim=0)) == len(flat) == 50 * N

    def test_posterior_of_a_linear_pair(self, linear, result):
        """z ~ N(m, V) of the exact posterior; 5 standard errors, N Q of them: p < 1e-4."""
        vae, x = linear
        exact = evidence.exact(vae.model, vae.guide, x)
        z = values(result, "posterior", "z")[0]
        error = (exact.covariance.diagonal(dim1=1, dim2=2) / S).sqrt()
        assert ((z.mean(0) - exact.mean).abs() < 5 * error).all()
        assert ((z.mean(0).roll(1, 0) - exact.mean).abs() > 5 * error).any()  # other data's: no

    def test_predictive_of_a_linear_pair(self, linear, result):
        """x' ~ N(W m + mu, W V W' + sigma^2 I) after x, N(mu, W W' + sigma^2 I) before it."""
        vae, x = linear
        layer = vae.likelihood.net.output
        w, mu = layer.weight.detach(), layer.bias.detach()
        noise = vae.decode(torch.zeros(1, Q, dtype=x.dtype)).variance.detach().mean()
        exact = evidence.exact(vae.model, vae.guide, x)
        after = exact.mean @ w.T + mu
        spread = (w @ exact.covariance @ w.T).diagonal(dim1=1, dim2=2) + noise
        before = (w @ w.T).diagonal() + noise
        drawn = values(result, "posterior_predictive", "x")[0]
        prior = values(result, "prior_predictive", "x")[0]
        assert ((drawn.mean(0) - after).abs() < 5 * (spread / S).sqrt()).all()
        assert ((drawn.var(0) / spread - 1).abs() < 5 * (2 / S) ** 0.5).all()
        assert ((prior.mean((0, 1)) - mu).abs() < 5 * (before / S / N).sqrt()).all()
        assert ((prior.var((0, 1)) / before - 1).abs() < 5 * (2 / S / N) ** 0.5).all()
        assert ((prior.mean(0) - after).abs() > 5 * (spread / S).sqrt()).any()  # the control

    @pytest.mark.parametrize("group", ["posterior", "prior"])
    def test_x_is_drawn_at_its_own_z(self, linear, result, group):
        """x' - W z - mu is noise of variance sigma^2, which it is not at another draw's z."""
        vae, _ = linear
        layer = vae.likelihood.net.output
        z, x = values(result, group, "z")[0], values(result, f"{group}_predictive", "x")[0]
        noise = vae.decode(z[:1, 0]).variance.detach().mean()
        for shift, own in ((0, True), (1, False)):
            rest = x - (z.roll(shift, 0) @ layer.weight.T + layer.bias).detach()
            ratio = rest.square().mean() / noise
            assert (abs(ratio - 1) < 5 * (2 / rest.numel()) ** 0.5) == own

    def test_khat(self):
        model, guide = users.conditional(*users.networks())
        x, c = users.batch(6)
        found = to_arviz(model, guide, x, c, num_samples=200)
        expected = diagnostics.khat(model, guide, x, c, num_particles=200).khat
        torch.testing.assert_close(
            values(found, "constant_data", "pareto_k"), expected, rtol=1e-3, atol=1e-3
        )
        few = to_arviz(model, guide, x, c, num_samples=29)
        assert set(few["constant_data"].data_vars) == {"context_0"}
        vae = build(data_shape=(4,), latent_dim=2)
        bare = to_arviz(vae.model, vae.guide, torch.ones(3, 4), num_samples=5)
        assert arviz_one.groups_of(bare) == set(arviz_one.EXPECTED) - {"constant_data"}


class TestOtherPairs:
    def test_several_sites(self):
        """Two latents, one of them a category; two observed sites, drawn together; what follows
        from others is no variable."""

        def model(x, y):
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Categorical(logits=torch.zeros(3)))
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.deterministic("sum", z.sum(-1))
                label = pyro.sample("y", dist.Normal(10.0, 1.0), obs=y)
                loc = (z[..., :1] + k.unsqueeze(-1) + label.unsqueeze(-1)).expand(-1, 4)
                pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

        def guide(x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Categorical(logits=torch.zeros(len(x), 3)))
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

        x, y = torch.ones(7, 4), torch.zeros(7)
        found = to_arviz(model, guide, x, y, num_samples=100)
        assert set(found["posterior"].data_vars) == set(found["prior"].data_vars) == {"k", "z"}
        assert found["posterior"]["k"].dtype == np.int64
        for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
            assert set(found[group].data_vars) == {"x", "y"}
        assert set(found["observed_data"].data_vars) == {"x", "y"}
        drawn = {n: values(found, "posterior_predictive", n)[0] for n in ("x", "y")}
        assert abs(drawn["y"].mean() - 10) < 5 / 700**0.5
        z, k = (values(found, "posterior", n)[0] for n in ("z", "k"))
        rest = drawn["x"] - (z[..., :1] + k.unsqueeze(-1) + drawn["y"].unsqueeze(-1))
        assert rest.abs().max() < 0.1 * 5.5  # x' is about y', 10 from y; 2,800 draws: p < 1e-3
        joint = sum(values(found, "log_likelihood", n) for n in ("x", "y"))
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - np.log(3)
        torch.testing.assert_close(values(found, "sample_stats", "log_joint"), joint + prior)

    def test_missing_data(self):
        vae = build(data_shape=(4,), latent_dim=2, likelihood="masked:bernoulli")
        x = torch.tensor([[1.0, torch.nan, 0.0, 1.0], [0.0, 1.0, 1.0, torch.nan]])
        found = to_arviz(vae.model, vae.guide, x, num_samples=40)
        seen = values(found, "observed_data", "x")
        assert torch.equal(seen.isnan(), x.isnan())
        assert set(values(found, "posterior_predictive", "x").unique().tolist()) == {0.0, 1.0}

    def test_a_factor_counts_but_is_no_variable(self):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(1))

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.factor("f", torch.full((len(x),), 2.5))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        x = torch.ones(3, 2)
        found = to_arviz(model, guide, x, num_samples=10)
        for group in ("prior_predictive", "posterior_predictive", "observed_data"):
            assert set(found[group].data_vars) == {"x"}
        assert set(found["prior"].data_vars) == {"z"}
        prior = dist.Normal(0.0, 1.0).log_prob(values(found, "posterior", "z")).sum(-1)
        expected = prior + values(found, "log_likelihood", "x") + 2.5
        torch.testing.assert_close(values(found, "sample_stats", "log_joint"), expected)

    def test_a_model_without_latents(self):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x)

        found = to_arviz(model, users.empty_guide, torch.ones(3, 4), num_samples=40)
        groups = set(arviz_one.EXPECTED) - {"posterior", "prior"}
        assert arviz_one.groups_of(found) == groups
        assert (found["sample_stats"]["log_guide"].values == 0).all()

    def test_the_callers_generator_and_modes_are_left_alone(self):
        vae = build(data_shape=(4,), latent_dim=2).train()
        before = torch.get_rng_state()
        first, second = (
            to_arviz(vae.model, vae.guide, torch.ones(3, 4), num_samples=5) for _ in range(2)
        )
        assert torch.equal(before, torch.get_rng_state()) and vae.training
        arviz_one.check_equal(first, second)


class TestNames:
    def test_of_dimensions_and_labels(self):
        vae = build(data_shape=(2, 3), latent_dim=2)
        dims = {"x": ["row", "column"], "z": ["latent"]}
        coords = {"data": ["a", "b"], "column": [10, 20, 30]}
        found = to_arviz(
            vae.model, vae.guide, torch.ones(2, 2, 3), num_samples=5, dims=dims, coords=coords
        )
        assert found["observed_data"]["x"].dims == ("data", "row", "column")
        assert found["prior_predictive"]["x"].dims == ("chain", "draw", "data", "row", "column")
        assert found["posterior"]["z"].dims == ("chain", "draw", "data", "latent")
        assert found["log_likelihood"]["x"].dims == ("chain", "draw", "data")
        assert found["posterior"]["data"].values.tolist() == ["a", "b"]
        one = found["posterior_predictive"]["x"].sel(data="b", column=20, row=0)
        assert torch.equal(
            torch.as_tensor(one.values), values(found, "posterior_predictive", "x")[:, :, 1, 0, 1]
        )

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({"dims": {"w": ["a"]}}, r"dims of the variables .*got \['w'\]"),
            ({"dims": {"x": ["row"]}}, r"dims of 'x' to be 2 different names .*\(2, 3\)"),
            ({"dims": {"x": ["row", "row"]}}, "2 different names"),
            ({"dims": {"x": ["draw", "row"]}}, "other than chain, draw, data"),
            ({"dims": {"x": ["a", "b"], "z": ["b"]}}, "'b' to have one length; got"),
            ({"coords": {"rows": [1]}}, r"coords of the dimensions .*got \['rows'\]"),
            ({"coords": {"data": [1]}}, "2 labels in coords for 'data'; got 1"),
        ],
    )
    def test_that_do_not_fit(self, names, message):
        vae = build(data_shape=(2, 3), latent_dim=2)
        with pytest.raises(ValueError, match=message):
            to_arviz(vae.model, vae.guide, torch.ones(2, 2, 3), num_samples=5, **names)


def test_refusals(linear):
    vae, x = linear
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match="num_samples to be a positive"):
            to_arviz(vae.model, vae.guide, x, num_samples=wrong)
        with pytest.raises(ValueError, match="num_draws to be a positive"):
            importance.prior_draws(vae.model, x, num_draws=wrong)
    with pytest.raises(ValueError, match="expected x to be finite"):
        to_arviz(vae.model, vae.guide, x / 0)
    with pytest.raises(ValueError, match="outside the data's plate"):
        to_arviz(users.outside_model, users.outside_guide, users.batch()[0])

    def blind(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="a model with an observed site; got none"):
        to_arviz(blind, blind, torch.ones(3, 4))


@arvizs_own_warnings
def test_arvizs_figures_and_plots(result):
    summary = az.summary(result, var_names=["z"], round_to="none", kind="stats")
    means = values(result, "posterior", "z").mean((0, 1)).flatten()
    np.testing.assert_allclose(summary["mean"].to_numpy(float), means)
    one = result.sel(data=[3])
    model, guide = users.conditional(*users.networks())
    x, c = users.batch(6)
    loose = to_arviz(model, guide, x, c, num_samples=50)
    for plot in (
        lambda: az.plot_posterior(one, var_names=["z"]),
        lambda: az.plot_dist_comparison(one, var_names=["z"]),
        lambda: az.plot_ppc(result, num_pp_samples=20),
        lambda: az.plot_ppc(result, num_pp_samples=20, group="prior"),
        lambda: az.plot_khat(loose.constant_data["pareto_k"]),
        lambda: az.plot_khat(result.constant_data["pareto_k"]),
    ):
        plot()
        assert plt.get_fignums()
        plt.close("all")


class TestPosteriorOfOneDatum:
    def test_content(self):
        generator = torch.Generator().manual_seed(5)
        samples = {
            "z": torch.randn(4, 30, 2, generator=generator),
            "s": torch.randn(4, 30, generator=generator),
        }
        stats = {"lp": samples["s"] - 1, "diverging": samples["s"] > 2}
        found = convert.posterior_to_arviz(samples, stats, datum=7, dims={"z": ["latent"]})
        assert arviz_one.groups_of(found) == {"posterior", "sample_stats"}
        assert found["posterior"]["z"].dims == ("chain", "draw", "data", "latent")
        assert torch.equal(values(found, "posterior", "z")[:, :, 0], samples["z"])
        assert torch.equal(values(found, "posterior", "s")[:, :, 0], samples["s"])
        assert found["posterior"]["data"].values.tolist() == [7]
        assert found["sample_stats"]["diverging"].dims == ("chain", "draw")
        assert found["sample_stats"]["diverging"].dtype == bool
        assert torch.equal(values(found, "sample_stats", "lp"), stats["lp"])
        alone = convert.posterior_to_arviz(samples)
        assert arviz_one.groups_of(alone) == {"posterior"}

    @arvizs_own_warnings
    def test_is_drawn_against_the_guide(self, linear, result):
        """Labels agree, so the two share their axes: 2 numbers of z, two lines each."""
        vae, x = linear
        exact = evidence.exact(vae.model, vae.guide, x[3:4])
        law = torch.distributions.MultivariateNormal(exact.mean[0], exact.covariance[0])
        chain = convert.posterior_to_arviz({"z": law.sample((4, 100))}, datum=3)
        one = result.sel(data=[3])
        pair, names = [one, chain], ["guide", "chain"]
        axes = az.plot_density(pair, group="posterior", var_names=["z"], data_labels=names)
        assert axes.size == 2
        for panel in axes.ravel():
            assert len({line.get_color() for line in panel.get_lines()}) == 2
        az.plot_forest(pair, model_names=names, var_names=["z"])
        plt.close("all")
        other = convert.posterior_to_arviz({"z": law.sample((4, 100))}, datum=4)
        apart = az.plot_density([one, other], group="posterior", var_names=["z"])
        assert apart.size >= 4  # the control: another datum's are panels of their own
        plt.close("all")

    @pytest.mark.parametrize(
        ("samples", "stats", "message"),
        [
            ({}, None, "'samples' of shape"),
            ({"z": torch.zeros(3)}, None, r"'z' of shape .*got \(3,\)"),
            ({"z": torch.zeros(3, 0)}, None, "'z' of shape"),
            ({"z": torch.zeros(2, 5), "y": torch.zeros(2, 4)}, None, "'y' .* same chains"),
            ({"z": torch.zeros(2, 5)}, {"lp": torch.zeros(2, 5, 1)}, r"'lp' of shape \(.*draws\)"),
            ({"z": torch.full((2, 5), torch.nan)}, None, "values of 'z' that are finite"),
        ],
    )  # fmt: skip
    def test_refusals(self, samples, stats, message):
        with pytest.raises(ValueError, match=message):
            convert.posterior_to_arviz(samples, stats)
