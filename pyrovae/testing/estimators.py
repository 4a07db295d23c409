"""The estimators of a pair against one another, with common random numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyrovae import evidence
from pyrovae.distributions import seeded
from pyrovae.importance import (
    analytic_kl_problem,
    enumerate_latents,
    log_weights,
    simulate,
    site_log_probs,
)
from pyrovae.importance.structure import Repeated, samples, traces
from pyrovae.testing.report import Row
from pyrovae.testing.traced import base_support, densities
from pyrovae.testing.work import Work

THRESHOLD = 6.0  # standard errors that alarm, if fresh draws agree
RUNS = 200  # of two estimators that are compared on average
GRADIENT_RUNS = 100
SAME_RUNS = 10  # after which two estimators that were always equal are taken to be
PARTICLES = 8  # of the looped check
EVIDENCE_PARTICLES = 1000
EVIDENCE_ROWS = 8
GRID = 4000  # points of the integral over one latent
EVIDENCE_NUMBERS = 100  # of one datum, above which quadrature would take long
BOUND = 1e-3  # of E[w] / p(x) - 1


def trace_elbo(work: Work) -> Iterator[Row]:
    """Yield Trace_ELBO and one importance weight, against the log-densities of the sites."""
    loss, log_w, per = _by_sites(work, work.seed)
    got = _loss(work, Trace_ELBO(), work.seed)
    spread = [-float(_loss(work, Trace_ELBO(), work.seed + r, grad=False)) / per for r in range(20)]
    yield _same(
        work, "Trace_ELBO", got, loss, per,
        "as scale * (log p - log q) summed over the sites at the same draws",
        value=sum(spread) / len(spread), standard_error=_standard_error(spread),
    )  # fmt: skip
    one = log_weights(
        work.model, work.guide, work.x, *work.c, seed=work.seed, modules=work.modules
    )  # fmt: skip
    n = len(work.x)
    yield _same(
        work, "IWAE-1", -one.sum(), -log_w.sum(), n,
        "log_weights with one particle, as the sites' log p - log q at the same draws",
    )  # fmt: skip


def looped(work: Work) -> Iterator[Row]:
    """Yield the mean of log_weights, whose rows are repeated, against one run a particle."""
    name = f"log_weights, K = {PARTICLES}"
    with torch.no_grad():
        log_w = log_weights(
            work.model, work.guide, work.x, *work.c, num_particles=PARTICLES, seed=work.seed,
            max_rows=PARTICLES * len(work.x), modules=work.modules,
        )  # fmt: skip
    value = float(log_w.mean())
    error = _standard_error(log_w.mean(1).tolist())
    z = work.draws(PARTICLES)
    try:
        runs = [
            _total(densities(work, work.model, one)) - _total(densities(work, work.guide, one))
            for k in range(PARTICLES)
            for one in [{site: v[k : k + 1] for site, v in z.items()}]
        ]
    except (NotImplementedError, KeyError):
        detail = "the guide cannot score a given z: no loop to compare with"
        yield Row(name, "note", detail, value=value, standard_error=error)
        return
    difference = (log_w - torch.cat(runs)).abs() / (1 + log_w.abs())
    if bool((difference <= work.tolerance).all()):
        detail = f"repeated rows as {PARTICLES} looped runs"
        yield Row(name, "ok", detail, value=value, standard_error=error)
    else:
        row = int(difference.amax(0).argmax())
        detail = (
            f"{_named(work.latents)}: the weights of repeated rows differ from those of "
            f"{PARTICLES} looped runs, by {float(difference.max()):.2g} of 1 + |log w| at row {row}"
        )
        yield Row(name, "FAILS", detail, ", ".join(work.latents), value, error)


def mean_field(work: Work) -> Iterator[Row]:
    """Yield TraceMeanField_ELBO against Trace_ELBO, paired over seeds."""
    name = "TraceMeanField_ELBO"
    if work.discrete or not work.reparameterised:
        yield Row(name, "note", "does not apply: a latent is not reparameterised")
        return
    crossed = analytic_kl_problem(work.model, work.guide, work.x, *work.c, modules=work.modules)
    first = _Comparison(work, work.seed)
    alarm = first.alarm() and _Comparison(work, work.seed + 10 * RUNS).alarm()
    known = first.value, first.standard_error, first.gradient
    if alarm:
        cause = crossed or "use Trace_ELBO, unless a failure above explains it"
        detail = f"{_named(work.latents)}: {first.told()}; {cause}"
        yield Row(name, "FAILS", detail, ", ".join(work.latents), *known)
    elif crossed:
        yield Row(name, "note", f"as Trace_ELBO here, {first.told()}; but {crossed}", "", *known)
    else:
        yield Row(name, "ok", f"as Trace_ELBO: {first.told()}", "", *known)


class _Comparison:
    """TraceMeanField_ELBO minus Trace_ELBO, at common draws, RUNS times over.

    Each parameter's gradients are compared along one random direction, so that there is one
    statistic a parameter.
    """

    def __init__(self, work: Work, seed: int) -> None:
        self.tolerance = work.tolerance, work.gradient_tolerance
        leaves = list(work.parameters.values())
        with seeded(seed):
            directions = [torch.randn_like(p) / math.sqrt(max(1, p.numel())) for p in leaves]
        per = _rows_in_all(work)
        values, differences, projected = [], [], []
        total = [torch.zeros_like(p) for p in leaves]
        with seeded(seed):
            for r in range(RUNS):
                grad = r < GRADIENT_RUNS and bool(leaves)
                with torch.random.fork_rng():  # the same draws follow again
                    plain = _loss(work, Trace_ELBO(), grad=grad)
                closed = _loss(work, TraceMeanField_ELBO(), grad=grad)
                values.append(-closed.item() / per)
                differences.append((plain - closed).item() / per)
                if r == 0:
                    norms = [float(g.norm()) for g in _gradients(plain, leaves, keep=True)]
                    size = math.hypot(*norms)
                if grad:
                    gradients = _gradients(closed - plain, leaves)
                    total = [t + g for t, g in zip(total, gradients, strict=True)]
                    each = zip(gradients, directions, strict=True)
                    projected.append([float((g * d).sum()) for g, d in each])
                if r + 1 == SAME_RUNS and self._rounding(values, differences, projected, size):
                    break  # a sampled KL: they are the same estimator
        self.value, self.standard_error = sum(values) / len(values), _standard_error(values)
        self.difference, self.t = sum(differences) / len(values), _t(differences)
        self.equal = len(values) < RUNS
        columns = [c for c in zip(*projected, strict=True) if not self._tiny(sum(c), size)]
        self.gradient_t = max((abs(_t(column)) for column in columns), default=0.0)
        relative = [
            float(t.norm()) / len(projected) / (norm + 1e-3 * size)
            for t, norm in zip(total, norms, strict=True)
            if size
        ]
        self.gradient = max(relative, default=None)

    def _tiny(self, gradient: float, size: float) -> bool:
        return abs(gradient) <= self.tolerance[1] * size

    def _rounding(
        self,
        values: list[float],
        differences: list[float],
        projected: list[list[float]],
        size: float,
    ) -> bool:
        """Are all differences so far mere rounding?"""
        close = (
            abs(d) <= self.tolerance[0] * (1 + abs(v))
            for d, v in zip(differences, values, strict=True)
        )
        return all(close) and all(self._tiny(g, size) for row in projected for g in row)

    def alarm(self) -> bool:
        """Is the value or a gradient off by more than chance allows?"""
        off = not abs(self.difference) <= self.tolerance[0] * (1 + abs(self.value))
        return (off and abs(self.t) > THRESHOLD) or self.gradient_t > THRESHOLD

    def told(self) -> str:
        """The difference in words."""
        if self.equal:
            return "equal at the same draws"
        gradients = f", its gradients' by up to {self.gradient_t:.1f}" if self.gradient_t else ""
        return (
            f"its value differs by {self.difference:.4g}, {abs(self.t):.1f} standard errors"
            f"{gradients}, over {RUNS} runs"
        )


def normalisation(work: Work) -> Iterator[Row]:
    """Yield sides whose density of the one latent, a number, does not integrate to 1.

    The trapezium rule over twice the range of the draws. What half the range or half the points
    change is granted three times over: heavy tails, kinks.
    """
    site = work.structure.sites[work.latents[0]] if len(work.latents) == 1 else None
    if (
        site is None
        or math.prod(site.event_shape) != 1
        or base_support(site.support) != constraints.real
    ):
        return
    some, name = work.rows(slice(EVIDENCE_ROWS)), "density integrates to 1"
    if some.x[0].numel() > EVIDENCE_NUMBERS:
        return
    failed = False
    for side, function in (("guide", work.guide), ("model", work.model)):
        many = some.repeated(GRID // 2)
        z = simulate(function, many.x, *many.c, seed=work.seed, modules=work.modules)[site.name]
        z = z.reshape(GRID // 2, len(some.x))
        centre, reach = (z.amax(0) + z.amin(0)) / 2, z.amax(0) - z.amin(0)
        unit = torch.linspace(-1, 1, GRID + 1, dtype=z.dtype)[:, None]
        at = (centre + 2 * reach * unit)[..., *[None] * len(site.event_shape)]
        q = densities(some, function, {site.name: at})[site.name].exp()
        step = 4 * reach / GRID
        whole, coarse = q.sum(0) * step, q[::2].sum(0) * 2 * step
        inner = q[GRID // 4 : 3 * GRID // 4 + 1].sum(0) * step
        allowed = BOUND + 3 * (whole - coarse).abs() + 3 * (whole - inner).abs()
        off = (whole - 1).abs() > allowed
        if bool(off.any()):
            failed = True
            row = int(off.nonzero()[0])
            detail = (
                f"site {site.name!r}: the {side}'s density integrates to {float(whole[row]):.5g} "
                f"at row {row}, so its log_prob is off by {float(whole[row].log()):.2g}"
            )
            yield Row(name, "FAILS", detail, site.name)
    if not failed:
        yield Row(name, "ok", "in the guide and in the model")


def bounds(work: Work) -> Iterator[Row]:
    """Yield IWAE-K, between the ELBO and log p(x), where that is exact."""
    size = sum(math.prod(work.structure.sites[s].event_shape) for s in work.latents)
    some = work.rows(slice(3 if size == 2 and not work.discrete else EVIDENCE_ROWS))
    exact = _exact(some, size)
    k = EVIDENCE_PARTICLES if exact is not None else EVIDENCE_PARTICLES // 10
    log_w = _log_weights(some, k, work.seed)
    iwae = log_w.logsumexp(0) - math.log(k)
    name, rows = f"IWAE-{k}", f"rows 0..{len(some.x) - 1}"
    value, spread = float(iwae.mean()), _relative_error(log_w)
    elbo = f"ELBO {float(log_w.mean()):.4f} on {rows}"
    if exact is None:
        yield Row(name, "ok", f"{elbo}; log p(x) is not at hand exactly", "", value, spread)
        return
    log_p, allowed = exact.log_evidence, BOUND + float(exact.error.exp().max() - 1)
    excess, error = _excess(log_w, log_p)
    alarm = excess > max(THRESHOLD * error, allowed)
    if alarm:
        excess, error = _excess(_log_weights(some, k, work.seed + 1), log_p)
        alarm = excess > max(THRESHOLD * error, allowed)
    if alarm:
        sites = ", ".join(work.latents)
        detail = (
            f"{_named(work.latents)}: E[w] exceeds p(x) by {excess:.3g} +- {error:.1g} of it, so "
            "this is no lower bound: is the guide's log-density, or the model's, off by a constant?"
        )
        yield Row(name, "FAILS", detail, sites, value, spread)
    else:
        yield Row(name, "ok", f"{elbo}; E[w] does not exceed p(x)", "", value, spread)
    detail = f"exact, by {exact.method}, on {rows}"
    yield Row("log p(x)", "ok", detail, value=float(log_p.mean()))


def _exact(work: Work, size: int) -> Any:
    """Return the exact evidence for `size` latent dimensions, or None where it is not cheap."""
    few = (size <= 2 or work.discrete) and work.x[0].numel() <= EVIDENCE_NUMBERS
    if any(s["mask"] is not None for side in work.run() for s in side.values()):
        return None  # a latent that is masked out has no density to integrate
    try:
        with torch.no_grad():
            if work.discrete:
                values = enumerate_latents(work.model, work.x, *work.c, modules=work.modules)
                few = few and len(next(iter(values.values()))) <= EVIDENCE_PARTICLES
            if few or not work.discrete:
                find = evidence.exact if few else evidence.linear_gaussian
                return find(work.model, work.guide, work.x, *work.c, modules=work.modules)
    except (ValueError, RuntimeError, KeyError):
        pass
    return None


def _log_weights(work: Work, k: int, seed: int) -> Tensor:
    with torch.no_grad():
        return log_weights(
            work.model, work.guide, work.x, *work.c,
            num_particles=k, seed=seed, modules=work.modules,
        ).double()  # fmt: skip


def _excess(log_w: Tensor, log_p: Tensor) -> tuple[float, float]:
    """Return the mean over rows and draws of w / p(x), less 1, and its standard error."""
    ratio = (log_w - log_p).exp().mean(1)
    return float(ratio.mean()) - 1, float(ratio.std()) / math.sqrt(len(ratio))


def _relative_error(log_w: Tensor) -> float:
    """Return the standard error of the mean of log mean w, to first order."""
    w = log_w.softmax(0) * len(log_w)
    return float((w.var(0) / len(w)).sum().sqrt()) / log_w.shape[1]


def _by_sites(work: Work, seed: int) -> tuple[Tensor, Tensor, float]:
    """Return the loss by sites, log w (N,), and the number of data that the loss stands for."""
    with seeded(seed):
        model_trace, guide_trace = traces(work.model, work.guide, work.x, work.c)
    ours, theirs = samples(model_trace), samples(guide_trace)
    z = {name: site["value"][None] for name, site in theirs.items()}
    log_p = site_log_probs(work.model, z, work.x, *work.c, modules=work.modules)
    log_q = {
        name: scale_and_mask(s["fn"].log_prob(s["value"]), mask=s["mask"])
        for name, s in theirs.items()
    }
    loss = sum((theirs[s]["scale"] * v).sum() for s, v in log_q.items()) - sum(
        (ours[s]["scale"] * v[0]).sum() for s, v in log_p.items()
    )
    log_w = sum(v[0] for v in log_p.values()) - sum(log_q.values())
    return torch.as_tensor(loss), torch.as_tensor(log_w), _rows_in_all(work)


def _rows_in_all(work: Work) -> float:
    """Return the number of data that an ELBO is summed over, that of the whole data set."""
    ours, _ = work.run()
    scales = [s["scale"] for s in ours.values() if s["is_observed"]]
    return len(work.x) * float(torch.as_tensor(scales[0]).double().mean()) if scales else 1.0


def _loss(work: Work, elbo: Trace_ELBO, seed: int | None = None, grad: bool = True) -> Tensor:
    with torch.set_grad_enabled(grad), Repeated(), seeded(seed), pyro.validation_enabled(False):
        loss = elbo.differentiable_loss(work.model, work.guide, work.x, *work.c)
    return torch.as_tensor(loss)


def _gradients(loss: Tensor, leaves: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in leaves]
    found = torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves, strict=True)]


def _same(
    work: Work, name: str, got: Tensor, expected: Tensor, per: float, detail: str,
    value: float | None = None, standard_error: float | None = None,
) -> Row:  # fmt: skip
    """Return the row of two losses that must be equal, gradients too."""
    got_value, expected_value = -got.item() / per, -expected.item() / per
    shown = got_value if value is None else value
    sites = ", ".join(work.latents)
    gradient = None
    loss = abs(expected.item())
    if not abs((got - expected).item()) <= work.tolerance * (len(work.x) + loss):
        told = f"{got_value:.8g} where {expected_value:.8g} is expected"
        return Row(name, "FAILS", f"{_named(work.latents)}: {told}: not {detail}", sites, shown)
    if work.reparameterised and work.parameters:
        leaves = list(work.parameters.values())
        pairs = list(
            zip(
                work.parameters,
                _gradients(got, leaves, keep=True),
                _gradients(expected, leaves, keep=True),
                strict=True,
            )
        )
        size = math.hypot(*(float(b.norm()) for _, _, b in pairs))
        if not math.isfinite(size):
            bad = next(p for p, _, b in pairs if not bool(b.isfinite().all()))
            message = f"parameter {bad!r}: its gradient is not finite"
            return Row(name, "FAILS", message, bad, shown, standard_error)
        relative = {
            p: float((a - b).norm()) / (float(b.norm()) + 1e-3 * size) if size else 0.0
            for p, a, b in pairs
        }
        worst = max(relative, key=relative.__getitem__)
        gradient = relative[worst]
        if gradient > work.gradient_tolerance:
            told = f"parameter {worst!r}: its gradient is not that of the sites' log-densities"
            return Row(name, "FAILS", told, worst, shown, standard_error, gradient)
    return Row(name, "ok", detail, "", shown, standard_error, gradient)


def _named(sites: Sequence[str]) -> str:
    """Return "site 'z'" or "sites 'a', 'b'"."""
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(repr, sites))}"


def _total(log_p: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(log_p.values())).sum(0)


def _standard_error(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(len(values))


def _t(values: Sequence[float]) -> float:
    """Return the mean over its standard error; 0 where both are 0, inf where it is not finite."""
    mean, error = sum(values) / len(values), _standard_error(values)
    if not math.isfinite(mean):
        return math.inf
    return mean / max(error, 1e-12 * abs(mean)) if mean else 0.0
