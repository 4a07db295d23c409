"""The evidence from importance weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrovae.distributions import mixed
from pyrovae.evidence import pareto
from pyrovae.evidence.progress import by_rows, fingerprint
from pyrovae.evidence.results import TRUSTED_KHAT, TRUSTED_SIZE, Evidence
from pyrovae.importance import CompiledPasses, Terms, batched, find_modules, log_terms
from pyrovae.importance.weights import rows_of_a_pass
from pyrovae.nets.compiling import WORTH

BLOCK = 1000  # particles a datum whose weights are held at once
FLOPS_A_NUMBER = 2  # of a row and a parameter
PASS = 2**19  # numbers of x in one pass: 2 MB in float32, which a cache holds
CHUNK = 2**22  # rows x particles that are done before they are kept


@dataclass(frozen=True)
class Summary:
    """The bound, its terms and the evidence, one entry a datum, in nats.

    Attributes:
        reconstruction: E_q[log p(x|z)], (N,).
        kl: KL(q(z|x) || p(z)), (N,), a mean over the draws.
        elbo: reconstruction - kl, (N,).
        evidence: the estimate of log p(x) from the same draws.
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor
    evidence: Evidence

    @property
    def khat(self) -> Tensor | None:
        """Pareto k-hat of the weights, (N,), if it was asked for."""
        return self.evidence.khat


def iwae(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    target_error: float | None = None,
    smooth: bool = False,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
    modules: Sequence[nn.Module] = (),
    compile: str = "auto",
) -> Evidence:
    """Return log (1/K) sum_k w_k, w_k = p(x, z_k) / q(z_k|x): a lower bound of log p(x) on average.

    Burda et al. (2016), eq. 8. The standard error is the delta method's, sd(w) / (mean(w) sqrt K),
    rounding included; where k-hat < 1/2 the law fitted to the largest weights says what they add to
    the variance, as draws that fell short of them would say too little. `Evidence.trusted` says
    where it is to be trusted. Weights are streamed: the memory does not grow with K.

    Args:
        model: Pyro model of (x, *c).
        guide: Pyro guide of (x, *c).
        x: data (N, ...).
        *c: context, N rows each.
        num_particles: number K of draws a datum, at the most.
        target_error: standard error, in nats, at which a datum needs no more draws, looked at after
            every 1,000 and where the error is to be trusted.
        smooth: replace the largest weights by quantiles of their fitted generalized Pareto law
            (Vehtari et al. 2024): less variance and a little bias; no bound any more.
        seed: of the draws.
        progress: tell what there is to do, and show a bar, on stderr.
        resume: a .safetensors file that keeps what is done, and from which to go on.
        modules: those that the functions hold in their closures.
        compile: "auto", compile the passes where there is work enough to be worth it and they can
            be compiled; "always", whatever the work, or complain; or "never". The draws are the
            same, and log p(x) is but for rounding.

    Returns:
        Evidence; `lower` is -inf with `smooth`.

    Raises:
        ValueError: no valid pair, bad data, a count or an error that is not positive, or a file of
            other work.

    Example:
        >>> import torch
        >>> from pyrovae import build
        >>> vae = build(data_shape=(4,), latent_dim=2)
        >>> iwae(vae.model, vae.guide, torch.ones(3, 4), num_particles=100).log_evidence.shape
        torch.Size([3])
    """
    _check(num_particles, target_error, smooth or target_error is not None)
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    options = (num_particles, target_error, smooth, seed)
    passes = _compiled(model, guide, found, len(x) * num_particles, compile)

    def solve(rows: slice) -> Evidence:
        return _streamed(
            model, guide, x[rows], [t[rows] for t in c], num_particles, mixed(seed, rows.start),
            modules, passes, target_error=target_error, smooth=smooth,
        ).evidence  # fmt: skip

    return by_rows(
        Evidence, solve, len(x), _evenly(len(x), min(CHUNK // num_particles, _rows_of_a_pass(x))),
        cost=f"iwae: {len(x):,} data x {num_particles:,} draws = {len(x) * num_particles:,} passes "
        "through the model",
        progress=progress, resume=resume,
        request=lambda: fingerprint("iwae", options, x, *c, *found),
    )  # fmt: skip


def summarise(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *c: Tensor,
    num_particles: int = 1000,
    seed: int = 0,
    modules: Sequence[nn.Module] = (),
    with_khat: bool = False,
    compile: str = "auto",
    of: int | None = None,
) -> Summary:
    """Return the ELBO, its terms and `iwae`'s evidence, all from the same draws z ~ q(z|x).

    Arguments and errors: see `iwae`; `with_khat` fits Pareto k-hat, from 30 draws on; `of` is how
    many data there are in all, where these are a part, to see whether compiling is worth it.
    """
    _check(num_particles, None, with_khat)
    found = find_modules(model, guide, modules=modules)
    x, c = batched(x, c, found)
    passes = _compiled(model, guide, found, (of or len(x)) * num_particles, compile)
    return _streamed(model, guide, x, c, num_particles, seed, modules, passes, with_khat=with_khat)


def _compiled(
    model: Callable, guide: Callable, modules: Sequence[nn.Module], rows: int, mode: str
) -> CompiledPasses | None:
    """Return compiled passes if they are wanted; `rows` are those of all passes."""
    if mode not in ("auto", "always", "never"):
        raise ValueError(f"expected compile to be auto, always or never; got {mode!r}")
    work = FLOPS_A_NUMBER * rows * sum(p.numel() for m in modules for p in m.parameters())
    if mode == "never" or (mode == "auto" and work <= WORTH):
        return None
    return CompiledPasses(model, guide, must=mode == "always")


def _rows_of_a_pass(x: Tensor) -> int:
    return min(rows_of_a_pass(x), max(1, PASS // max(1, math.prod(x.shape[1:]))))


def _evenly(n: int, most: int) -> int:
    """Return the size of parts of n, `most` at the most, whose last is about as long as the rest.

    Example:
        >>> _evenly(10, 4)
        4
        >>> _evenly(9, 8)
        5
    """
    return math.ceil(n / math.ceil(n / max(1, most)))


def _dividing(n: int, most: int) -> int:
    """Return the largest divisor of n up to `most`, or `most` if there is none in its upper half.

    Example:
        >>> _dividing(1000, 26), _dividing(101, 26)
        (25, 26)
    """
    return next((m for m in range(most, most // 2, -1) if n % m == 0), most)


def _check(num_particles: int, target_error: float | None, tail: bool) -> None:
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(
            f"expected num_particles to be a positive whole number; got {num_particles!r}"
        )
    if tail and num_particles < pareto.MIN_DRAWS:
        raise ValueError(
            f"expected num_particles of at least {pareto.MIN_DRAWS}, for the tail of the weights "
            f"to be fitted; got {num_particles}"
        )
    if target_error is not None and not 0 < target_error < math.inf:
        raise ValueError(f"expected target_error to be positive and finite; got {target_error!r}")


class _Stream:
    """What is kept of the weights of N data as their draws go by: sums in float64.

    Attributes:
        count: draws so far, (N,).
        log_sum: log sum w.
        log_sum_squares: log sum w^2.
        reconstruction: sum of log p(x|z).
        kl: sum of log q(z|x) - log p(z).
        largest: the largest log weights, in descending order, (tail, N).
    """

    def __init__(self, n: int, tail: int, dtype: torch.dtype) -> None:
        self.count, self.reconstruction, self.kl = torch.zeros(3, n, dtype=torch.float64)
        self.log_sum, self.log_sum_squares = torch.full((2, n), -math.inf, dtype=torch.float64)
        self.largest = torch.full((tail, n), -math.inf, dtype=dtype)

    def add(self, terms: Terms, rows: Tensor) -> None:
        """Take the draws (k, n) of some rows in."""
        log_w = terms.log_weight.double().cpu()
        self.count[rows] += len(log_w)
        self.log_sum[rows] = self.log_sum[rows].logaddexp(log_w.logsumexp(0))
        self.log_sum_squares[rows] = self.log_sum_squares[rows].logaddexp((2 * log_w).logsumexp(0))
        self.reconstruction[rows] += terms.log_likelihood.double().cpu().sum(0)
        self.kl[rows] += (terms.log_guide - terms.log_prior).double().cpu().sum(0)
        if len(self.largest):
            both = torch.cat([self.largest[:, rows], log_w.to(self.largest)])
            self.largest[:, rows] = both.topk(len(self.largest), 0).values

    def effective_sample_size(self) -> Tensor:
        """Return (sum w)^2 / sum w^2, (N,)."""
        return (2 * self.log_sum - self.log_sum_squares).exp()

    def fit(self, smooth: bool) -> tuple[Tensor, Tensor]:
        """Return Pareto k-hat, and log sum w^2 with the fitted law's in place of the tail's own.

        `smooth` puts the law's quantiles in the place of the largest weights.
        """
        khat, log_square = torch.empty_like(self.count), self.log_sum_squares.clone()
        for count in self.count.unique():
            rows = (self.count == count).nonzero().flatten()
            before = self.largest[: pareto.tail_size(int(count)) + 1, rows]
            tail = pareto.fit_tail(before)
            khat[rows] = tail.khat
            own = before[:-1].double()
            log_square[rows] = _replaced(log_square[rows], 2 * own, tail.log_square[None])
            if smooth:
                self.log_sum[rows] = _replaced(self.log_sum[rows], own, tail.smoothed)
                squares = self.log_sum_squares[rows]
                self.log_sum_squares[rows] = _replaced(squares, 2 * own, 2 * tail.smoothed)
        return khat, log_square


def _replaced(log_sum: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return log sum with some of its terms, logarithms too, replaced: none can overflow."""
    gain = (new - log_sum).exp().sum(0) - (old - log_sum).exp().sum(0)
    return log_sum + gain.clamp(min=-1).log1p()


def _streamed(
    model: Callable,
    guide: Callable,
    x: Tensor,
    c: Sequence[Tensor],
    num_particles: int,
    seed: int,
    modules: Sequence[nn.Module],
    passes: CompiledPasses | None,
    *,
    with_khat: bool = True,
    target_error: float | None = None,
    smooth: bool = False,
) -> Summary:
    fits = with_khat and num_particles >= pareto.MIN_DRAWS
    stream = _Stream(len(x), pareto.tail_size(num_particles) + 1 if fits else 0, x.dtype)
    rows = torch.arange(len(x))
    for block, start in enumerate(range(0, num_particles, BLOCK)):
        draws, most = min(BLOCK, num_particles - start), _rows_of_a_pass(x)
        if len(rows) <= most:  # passes of one shape
            most = len(rows) * _dividing(draws, min(draws, most // len(rows)))
        with torch.no_grad():
            terms = log_terms(
                model, guide, x[rows], *(t[rows] for t in c),
                num_particles=draws, seed=mixed(seed, block), max_rows=most, modules=modules,
                compiled=passes if len(rows) == len(x) else None,
            )  # fmt: skip
        stream.add(terms, rows)
        if target_error is not None:
            shape, log_square = stream.fit(smooth=False)
            error = _standard_error((2 * stream.log_sum - log_square).exp(), stream.count)
            trusted = (shape < TRUSTED_KHAT) & (stream.effective_sample_size() > TRUSTED_SIZE)
            rows = rows[((error > target_error) | ~trusted)[rows]]
            if not len(rows):
                break
    k = stream.count
    khat, log_square = stream.fit(smooth) if fits else (None, stream.log_sum_squares)
    log_evidence = stream.log_sum - k.log()
    size = stream.effective_sample_size()
    precision = torch.finfo(terms.log_prior.dtype).eps
    error = _standard_error((2 * stream.log_sum - log_square).exp(), k).maximum(
        precision * (1 + log_evidence.abs())
    )
    evidence = Evidence(
        log_evidence=log_evidence,
        standard_error=error,
        lower=torch.full_like(log_evidence, -math.inf) if smooth else log_evidence,
        effective_sample_size=size,
        num_particles=k.long(),
        khat=khat,
    )
    reconstruction, kl = stream.reconstruction / k, stream.kl / k
    return Summary(reconstruction, kl, reconstruction - kl, evidence)


def _standard_error(size: Tensor, k: Tensor) -> Tensor:
    """Return that of log mean w: var(w) / mean(w)^2 = k / size - 1, over k - 1 for the mean's."""
    return ((k / size - 1).clamp(min=0) / (k - 1)).sqrt().nan_to_num(math.inf)
