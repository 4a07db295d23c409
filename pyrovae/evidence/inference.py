"""How much of log p(x) a guide loses, by its family and by its network."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from pyrovae.distributions import mixed
from pyrovae.evidence.families import Each, Normals, families
from pyrovae.evidence.progress import by_rows, fingerprint
from pyrovae.evidence.results import Evidence, ExactEvidence
from pyrovae.importance import batched, find_modules, inspect
from pyrovae.optimise import descend

FAMILIES = ("own", "full-rank", "flow")
JUDGES = 200  # draws by which one q is told from a better one, the same each time
STEPS = 25  # between two looks
PATIENCE = 4  # looks without gain that end a round
GAIN = 0.01  # nats, a mean over the data, that count as one
LOOKS = 60  # a round, at the most
RATES = (1.0, 0.2, 0.04)  # of lr, a round each
ROWS = 128
BLOCK = 100  # draws a datum whose weights are held at once


@dataclass(frozen=True)
class Gaps:
    """log p(x) >= best ELBO of a family >= the guide's ELBO, one entry a datum, in nats.

    Attributes:
        log_evidence: log p(x), or a lower bound of it, (N,).
        log_evidence_se: its standard error, (N,).
        best_elbo: of the best q of the family, (N,).
        best_elbo_se: its standard error, (N,).
        elbo: of the guide, (N,).
        elbo_se: its standard error, (N,).
        approximation: log_evidence - best_elbo: what the family loses, (N,).
        approximation_se: its standard error, (N,).
        amortization: best_elbo - elbo: what the guide's network loses, (N,).
        amortization_se: its standard error, paired: both ELBOs are of the same noise, (N,).
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    best_elbo: Tensor
    best_elbo_se: Tensor
    elbo: Tensor
    elbo_se: Tensor
    approximation: Tensor
    approximation_se: Tensor
    amortization: Tensor
    amortization_se: Tensor

    def means(self) -> dict[str, tuple[float, float]]:
        """Return the mean over the data of each figure, and its standard error over the data."""
        names = ("log_evidence", "best_elbo", "elbo", "approximation", "amortization")
        columns = {name: getattr(self, name).double() for name in names}
        n = len(self.elbo)
        return {
            name: (float(t.mean()), float(t.std() / math.sqrt(n)) if n > 1 else math.inf)
            for name, t in columns.items()
        }


def gaps(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    family: str = "own",
    log_evidence: Tensor | Evidence | ExactEvidence | None = None,
    num_particles: int = 1000,
    lr: float = 0.05,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
    modules: Sequence[nn.Module] = (),
) -> Gaps:
    """Return log p(x) - ELBO(q*), and ELBO(q*) - ELBO(q(z|x)), q* being the best of a family.

    Cremer et al. (2018), eq. 5: the approximation gap is what even the best q of the family would
    lose, the amortization gap what the guide's network adds to it. q* is found for each datum by
    Adam from the guide's own q, with a smaller rate wherever it no longer gains, until that gains
    nothing either; where it never gained, q* is the guide's. A normal guide's q has parameters of
    its own for each datum; of any other guide a copy is trained on each datum in turn.

    A search that stopped short of q* makes the approximation gap larger and the amortization gap
    smaller by as much: their sum does not depend on it.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c), every site with `rsample`.
        x: data (N, ...).
        *c: context, N rows each.
        family: "own", the guide's; "full-rank", normals; "flow", eight planar maps of full-rank
            normals: both from a normal guide of one site.
        log_evidence: log p(x) (N,), or what an estimator of it returned; by default the importance
            estimate of q*'s draws, a lower bound on average.
        num_particles: draws a datum of which ELBOs and that estimate are made.
        lr: learning rate of the first round, in standard deviations of a normal guide; of the
            weights of another a fiftieth of it.
        seed: of the draws.
        progress: tell what there is to do, and show a bar, on stderr.
        resume: a .safetensors file that keeps what is done, and from which to go on.
        modules: those that the functions hold in their closures.

    Returns:
        Gaps.

    Raises:
        ValueError: no valid pair, bad data, an unknown family or one that the guide has not, or an
            option out of its range.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> found = gaps(vae.model, vae.guide, torch.ones(3, 4), num_particles=100)
        >>> bool((found.amortization >= -3 * found.amortization_se).all())
        True
    """
    if family not in FAMILIES:
        raise ValueError(f"expected family to be one of {', '.join(FAMILIES)}; got {family!r}")
    if not isinstance(num_particles, int) or num_particles < 2:
        raise ValueError(f"expected num_particles to be a whole number >= 2; got {num_particles!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"expected lr to be positive and finite; got {lr!r}")
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    inspect(model, guide, x[:2], *(t[:2] for t in c), modules=modules).check()
    known = _known(log_evidence, len(x))

    def solve(rows: slice) -> Gaps:
        data, context = x[rows], [t[rows] for t in c]
        parts = []
        with pyro.get_param_store().scope():  # which copies of the guide would fill
            for some, each in families(model, guide, data, context, family, modules):
                own = mixed(seed, rows.start, some.start)
                before = _log_weights(each, num_particles, own)
                _ascend(each, lr, own)
                if family == "flow" and isinstance(each, Normals):
                    each.bend()
                    _ascend(each, lr, own)
                parts.append((before, _log_weights(each, num_particles, own)))
        before, after = (torch.cat(t, 1) for t in zip(*parts, strict=True))
        return _gaps(before, after, None if known is None else [t[rows] for t in known])

    steps = len(RATES) * LOOKS * STEPS * (2 if family == "flow" else 1)
    return by_rows(
        Gaps, solve, len(x), ROWS,
        cost=f"gaps: {len(x):,} data x {Each.draws} draws or more x at most {steps:,} steps",
        progress=progress, resume=resume,
        request=lambda: fingerprint(
            "gaps", family, num_particles, lr, seed, x, *c, *(known or ()), *found
        ),
    )  # fmt: skip


def generalisation(train: Gaps, test: Gaps) -> tuple[float, float]:
    """Return mean amortization gap on test data less that on training data, and its error.

    What the guide's network lost by being trained on other data: its inference generalisation gap
    (Cremer et al. 2018, section 5.4).

    Args:
        train: of data that the guide was trained on.
        test: of data that it was not.
    """
    (first, first_se), (second, second_se) = (g.means()["amortization"] for g in (train, test))
    return second - first, math.hypot(first_se, second_se)


def _known(
    log_evidence: Tensor | Evidence | ExactEvidence | None, n: int
) -> tuple[Tensor, Tensor] | None:
    if log_evidence is None:
        return None
    if isinstance(log_evidence, Tensor):
        value, error = log_evidence, torch.zeros_like(log_evidence)
    else:
        value, error = log_evidence.log_evidence, log_evidence.standard_error
    if tuple(value.shape) != (n,):
        raise ValueError(f"expected log_evidence of shape ({n},); got {tuple(value.shape)}")
    return value.detach().double().cpu(), error.detach().double().cpu()


def _ascend(each: Each, lr: float, seed: int) -> None:
    """Leave the parameters of the best q found, datum by datum, in `each`."""
    judged = _judged(each, seed)
    # constant weights: q is the posterior, and what looks better is noise
    rounding = 1e-8 + 10 * torch.finfo(judged.dtype).eps * judged[0].abs()
    settled = judged.amax(0) - judged.amin(0) <= rounding
    best = [p.detach().clone() for p in each.parameters]
    steps_done = itertools.count()
    last, stale = float(judged.mean()), 0

    def step() -> float:
        loss = -each.log_weights(each.draws, mixed(seed, 2, next(steps_done))).mean()
        found = torch.autograd.grad(loss, each.parameters, allow_unused=True)
        for p, gradient in zip(each.parameters, found, strict=True):
            p.grad = gradient  # of these alone: the model keeps its own as they are
        return float(loss.detach())

    def look(epoch: int, loss: float, rate: float) -> bool:
        nonlocal best, judged, last, stale
        now = _judged(each, seed)
        gain = now - judged
        better = (gain.mean(0) > gain.std(0) / math.sqrt(len(gain))) & ~settled
        best = [_chosen(better, p.detach(), b) for p, b in zip(each.parameters, best, strict=True)]
        judged = torch.where(better, now, judged)
        gained = float(judged.mean()) > last + GAIN
        last, stale = (float(judged.mean()), 0) if gained else (last, stale + 1)
        return stale >= PATIENCE

    for factor in RATES:
        if bool(settled.all()):
            return
        stale = 0
        descend(
            lambda epoch: [(step, 1.0)] * STEPS, each.parameters,
            epochs=LOOKS, steps_per_epoch=STEPS, lr=lr * factor * each.unit,
            after_epoch=look,
        )  # fmt: skip
        with torch.no_grad():
            for p, b in zip(each.parameters, best, strict=True):
                p.copy_(b)


def _judged(each: Each, seed: int) -> Tensor:
    with torch.no_grad():
        return each.log_weights(JUDGES, mixed(seed, 1))


def _log_weights(each: Each, k: int, seed: int) -> Tensor:
    blocks = []
    with torch.no_grad():
        for i, start in enumerate(range(0, k, BLOCK)):
            blocks.append(each.log_weights(min(BLOCK, k - start), mixed(seed, i)))
    return torch.cat(blocks).double().cpu()


def _chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return new where `rows`, old elsewhere; one row chooses tensors of any shape."""
    return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old).reshape(new.shape)


def _gaps(before: Tensor, after: Tensor, known: Sequence[Tensor] | None) -> Gaps:
    k = len(after)
    elbo, best = before.mean(0), after.mean(0)
    if known is None:
        log_evidence = after.logsumexp(0) - math.log(k)
        share = (after - log_evidence).exp()  # w / mean w
        error = share.std(0) / math.sqrt(k)
        both = (share - after).std(0) / math.sqrt(k)  # of log mean w - mean log w, by one draw
    else:
        log_evidence, error = known
        both = (error.square() + after.var(0) / k).sqrt()
    return Gaps(
        log_evidence=log_evidence,
        log_evidence_se=error,
        best_elbo=best,
        best_elbo_se=after.std(0) / math.sqrt(k),
        elbo=elbo,
        elbo_se=before.std(0) / math.sqrt(k),
        approximation=log_evidence - best,
        approximation_se=both,
        amortization=best - elbo,
        amortization_se=(after - before).std(0) / math.sqrt(k),
    )
