"""Models beside one another by log p(x), in ArviZ's form. Knows no torch."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


def compare_evidence(evidences: Mapping[str, Any]) -> "pd.DataFrame":
    """Return ArviZ's comparison table of models, best first, from log p(x) of each datum.

    It takes the place of `az.compare`, whose leave-one-out estimate is wrong for a pair: see `loo`.
    `az.plot_compare` draws it. On data that no model was trained on the sum of log p(x) is the
    logarithmic score of Vehtari et al. (2017), elpd, and needs no leaving out.

    As in ArviZ's tables figures are *sums* over the N data, in nats, N times the means of
    everything else in this library:

    | column | |
    |---|---|
    | rank | 0 for the best |
    | log_evidence | sum_n log p(x_n) |
    | elpd_diff | that less the best's: 0, then below |
    | weight | stacking: argmax_w sum_n log sum_m w_m p_m(x_n), w on the simplex |
    | se | of log_evidence over the data: sqrt N sd |
    | dse | of elpd_diff, paired: sqrt N sd of the differences |
    | mcse | of log_evidence by its own sampling, contained in se; NaN where it is not known |
    | scale | "log", always |
    | elpd_loo or elpd | log_evidence again, by the name that the installed plot_compare reads |

    sd is the one with N - 1 (ArviZ: N). The weights are those of Yao et al. (2018).

    Args:
        evidences: for each model log p(x_n) (N,), of the same data in the same order: a tensor or
            array, or a result of an estimator in `evidence`.

    Raises:
        ValueError: fewer than two models or data, other shapes, or values that are not finite.

    Example:
        >>> table = compare_evidence({"a": np.array([-1.0, -3.0]), "b": np.array([-2.0, -5.0])})
        >>> table[["rank", "log_evidence", "elpd_diff"]].values.tolist()
        [[0.0, -4.0, 0.0], [1.0, -7.0, -3.0]]
    """
    import pandas as pd

    log_p = {name: _array(getattr(e, "log_evidence", e)) for name, e in evidences.items()}
    shapes = {values.shape for values in log_p.values()}
    if len(log_p) < 2 or len(shapes) > 1 or any(len(s) != 1 or s[0] < 2 for s in shapes):
        raise ValueError(
            "expected log p(x) of two models or more, each (N,) of the same N >= 2 data; got "
            f"shapes { {name: values.shape for name, values in log_p.items()} }"
        )
    for name, values in log_p.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"expected finite log p(x) of {name!r}; got {values[~np.isfinite(values)][0]} at "
                f"index {int(np.flatnonzero(~np.isfinite(values))[0])}: leave that datum out of all"
            )
    order = sorted(log_p, key=lambda name: -log_p[name].sum())
    best = log_p[order[0]]
    weights = stacking(np.stack([log_p[name] for name in order]))
    rows = {
        name: {
            "rank": rank,
            "log_evidence": log_p[name].sum(),
            "elpd_diff": (log_p[name] - best).sum(),
            "weight": weights[rank],
            "se": _error(log_p[name]),
            "dse": _error(log_p[name] - best),
            "mcse": _sampling_error(evidences[name]),
            "scale": "log",
        }
        for rank, name in enumerate(order)
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    alias = "elpd_loo" if int(version("arviz").split(".")[0]) < 1 else "elpd"
    return table.assign(**{alias: table["log_evidence"]})


def stacking(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return argmax_w sum_n log sum_m w_m p_m(x_n), w >= 0, sum w = 1: a concave problem.

    Yao et al. (2018): stacking of predictive distributions by the logarithmic score. The densities
    of each datum are taken relative to those of its best model, which changes the objective by a
    constant: those of images are too small, or too large, for a float.

    Args:
        log_p: log p_m(x_n), (M, N), in nats.

    Returns:
        Weights (M,).
    """
    from scipy.optimize import minimize

    p = np.exp(log_p - log_p.max(0))

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixture = np.maximum(w @ p, np.finfo(float).tiny)
        return -float(np.log(mixture).mean()), -(p / mixture).mean(1)

    models = len(p)
    on_simplex = {
        "type": "eq",
        "fun": lambda w: w.sum() - 1,
        "jac": lambda w: np.ones(models),
    }
    found = minimize(
        loss, np.full(models, 1 / models), jac=True, method="SLSQP",
        bounds=[(0, 1)] * models, constraints=on_simplex, options={"ftol": 1e-12, "maxiter": 1000},
    )  # fmt: skip
    w = np.clip(found.x, 0, None)
    return w / w.sum()


def loo(*results: Any, **options: Any) -> NoReturn:
    """Refuse leave-one-out cross-validation of latents of the datum's own, and say why.

    ArviZ's `loo` estimates log p(x_n | the other data) by 1 / mean_s 1 / p(x_n|z_s), z_s from the
    posterior. The z of a pair is the datum's own: without x_n nothing is known of it but its prior,
    so this is the harmonic mean estimate of log p(x_n), whose variance is infinite wherever x tells
    more of z than the prior does, and which comes out far too high. `az.loo` cannot know, and
    answers. So do `az.waic`, an estimate of the same, and `az.compare`, which calls either.

    Raises:
        ValueError: always; what to use is `compare_evidence`.

    Source: Newton & Raftery (1994), section 7; Vehtari et al. (2017), section 2.
    """
    raise ValueError(
        "expected no leave-one-out estimate of a pair, whose latents are the datum's own: without "
        "x nothing is known of z but its prior, so loo is the harmonic mean estimate of log p(x), "
        "of infinite variance and far too high: take log p(x) itself, evidence.exact or "
        "evidence.iwae, and convert.compare_evidence for models"
    )


def _array(values: Any) -> NDArray[np.float64]:
    """Return a tensor, or an array, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def _error(values: NDArray[np.float64]) -> float:
    return math.sqrt(len(values)) * float(values.std(ddof=1))


def _sampling_error(result: Any) -> float:
    """Return the standard error of a sum of independent estimates."""
    if not hasattr(result, "standard_error"):
        return math.nan
    return float(np.sqrt(np.square(_array(result.standard_error)).sum()))
