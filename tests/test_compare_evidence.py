"""Models compared by log p(x), against `paired` and ArviZ's own table; and why not by loo."""

import warnings

import matplotlib
import numpy as np
import pytest
import torch

from pyrovae import convert, evidence, pairs, to_arviz
from pyrovae.convert import arrays, tables
from pyrovae.training.comparison import paired

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

az = arrays.load_arviz()
arvizs_own_warnings = pytest.mark.filterwarnings(  # of ArviZ 0.2x with the newest pandas
    "ignore:The inplace keyword in DataFrame.sort_values is deprecated"
)


def data(n, d=5):
    generator = torch.Generator().manual_seed(1234)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


class TestLeaveOneOut:
    def test_is_refused(self):
        x = data(12)
        vae = pairs.ppca(x, 2)
        result = to_arviz(vae.model, vae.guide, x, num_samples=40)
        with pytest.raises(ValueError, match="harmonic mean .* convert.compare_evidence"):
            convert.loo(result, pointwise=True)
        assert "pyrovae.convert.loo" in result["log_likelihood"].attrs["note"]

    @pytest.mark.parametrize("q", [3, 4])
    def test_what_arviz_would_say_is_wrong(self, q):
        """Latents that tell much of x: loo exceeds the exact mean log p(x) by nats."""
        x = data(60)
        vae = pairs.ppca(x, q)
        exact = float(evidence.exact(vae.model, vae.guide, x).log_evidence.mean())
        found = to_arviz(vae.model, vae.guide, x)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            wrong = az.loo(found).elpd_loo / len(x)
        assert any("shape parameter of Pareto" in str(w.message) for w in said)
        iwae = evidence.iwae(vae.model, vae.guide, x).log_evidence.mean().item()
        assert abs(iwae - exact) < 1e-6  # the same draws, rightly weighted
        assert wrong - exact > 1


class TestComparison:
    @pytest.fixture
    def log_p(self):
        generator = torch.Generator().manual_seed(4)
        a = -20 + 5 * torch.randn(300, dtype=torch.float64, generator=generator)
        other = torch.randn(2, 300, dtype=torch.float64, generator=generator)
        return {"c": a - 0.5 + other[0], "a": a, "b": a - 0.2 + 0.3 * other[1]}

    def test_errors_are_paired(self, log_p):
        table = convert.compare_evidence(log_p)
        best = table.index[0]
        for name, row in table.iterrows():
            mean, error = paired(log_p[name], log_p[best])
            assert row["elpd_diff"] == pytest.approx(300 * mean, abs=1e-9)
            assert row["dse"] == pytest.approx(300 * error, abs=1e-9)
            assert row["log_evidence"] == pytest.approx(float(log_p[name].sum()))
            assert row["se"] == pytest.approx(float(log_p[name].std()) * 300**0.5)
        assert list(table["rank"]) == [0, 1, 2] and table["elpd_diff"].is_monotonic_decreasing
        unpaired = np.hypot(table["se"].iloc[0], table["se"].iloc[1])
        assert table["dse"].iloc[1] < unpaired / 5

    @arvizs_own_warnings
    def test_it_is_arvizs_own(self, log_p):
        """az.compare on the same figures, which it takes for those of loo, but for N - 1."""
        compared = {
            name: az.stats.stats_utils.ELPDData(
                [float(t.sum()), float(t.std(correction=0)) * 300**0.5, 0.0, False, "log",
                 az.convert_to_dataset(t.numpy()[None])["x"].squeeze()],
                ["elpd_loo", "se", "p_loo", "warning", "scale", "loo_i"],
            )
            for name, t in log_p.items()
        }  # fmt: skip
        theirs = az.compare(compared)
        ours = convert.compare_evidence(log_p)
        assert list(ours.index) == list(theirs.index)
        bessel = (300 / 299) ** 0.5
        np.testing.assert_allclose(ours["elpd_loo"], theirs["elpd_loo"])
        np.testing.assert_allclose(ours["elpd_diff"], -theirs["elpd_diff"], atol=1e-9)
        np.testing.assert_allclose(ours["se"], bessel * theirs["se"])
        np.testing.assert_allclose(ours["dse"], bessel * theirs["dse"], atol=1e-9)
        np.testing.assert_allclose(ours["weight"], theirs["weight"], atol=2e-3)
        assert list(ours["scale"]) == list(theirs["scale"])

    @pytest.mark.parametrize("shift", [0.0, 2000.0, -2000.0])
    def test_stacking_weights_are_optimal(self, shift):
        """Kuhn & Tucker: mean_n p_m / sum w p is 1 where w_m > 0, below elsewhere. A concave
        problem, so nothing else is optimal."""
        rng = np.random.default_rng(0)
        for models in (2, 3, 6):
            log_p = shift + rng.normal(size=(models, 400)) + rng.normal(size=(models, 1)) / 3
            w = tables.stacking(log_p)
            assert w.sum() == pytest.approx(1) and (w >= 0).all()
            assert self.slack(log_p, w) < 1e-4
            assert self.slack(log_p, np.full(models, 1 / models)) > 1e-2  # the control

    @staticmethod
    def slack(log_p, w):
        p = np.exp(log_p - log_p.max(0))
        gradient = (p / (w @ p)).mean(1)
        return max((gradient - 1).max(), np.abs((gradient - 1)[w > 1e-6]).max())

    def test_stacking_of_models_far_apart(self):
        """Each best, by more than a float holds, on its own share of the data: that share."""
        log_p = np.zeros((2, 10))
        log_p[0, :3], log_p[1, 3:] = -3000.0, -3000.0
        np.testing.assert_allclose(tables.stacking(log_p), [0.7, 0.3], atol=1e-4)

    def test_estimators_results_are_taken(self):
        x = data(12)
        vae = pairs.ppca(x, 2)
        poor = pairs.ppca(x, 1)
        found = {
            "q=2": evidence.exact(vae.model, vae.guide, x),
            "q=1": evidence.iwae(poor.model, poor.guide, x, num_particles=50),
            "worse": (evidence.exact(vae.model, vae.guide, x).log_evidence - 2).float(),
        }
        table = convert.compare_evidence(found)
        assert table["mcse"]["q=2"] == 0 and np.isnan(table["mcse"]["worse"])
        error = found["q=1"].standard_error.square().sum().sqrt().item()
        assert table["mcse"]["q=1"] == pytest.approx(error)

    @arvizs_own_warnings
    @pytest.mark.parametrize("plot_ic_diff", [False, True])
    def test_it_is_drawn(self, log_p, plot_ic_diff):
        axes = az.plot_compare(convert.compare_evidence(log_p), plot_ic_diff=plot_ic_diff)
        assert [t.get_text() for t in axes.get_yticklabels() if t.get_text()] == ["a", "b", "c"]
        plt.close("all")

    @pytest.mark.parametrize(
        ("evidences", "message"),
        [
            ({}, "two models or more"),
            ({"a": torch.zeros(3)}, "two models or more"),
            ({"a": torch.zeros(3), "b": torch.zeros(4)}, r"same N >= 2 .*\(3,\).*\(4,\)"),
            ({"a": torch.zeros(1), "b": torch.zeros(1)}, "N >= 2"),
            ({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, "N >= 2"),
            (
                {"a": torch.zeros(3), "b": torch.tensor([0, torch.nan, 0])},
                "of 'b'; got nan at .* 1",
            ),
            ({"a": torch.zeros(2), "b": torch.tensor([0, -torch.inf])}, "of 'b'; got -inf"),
        ],
    )
    def test_refusals(self, evidences, message):
        with pytest.raises(ValueError, match=message):
            convert.compare_evidence(evidences)
