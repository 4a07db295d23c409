"""What `evaluate` found, for people to read."""

from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 42  # of the names' column


def describe_figures(figures: Mapping[str, Any]) -> str:
    """Return a run's figures as a table: ELBO, its terms and log p(x), with standard errors.

    Args:
        figures: what `evaluation.evaluate` returns.
    """
    return "\n".join(_lines(figures))


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    sampled = f"log p(x), {figures['num_particles']:,} importance samples"
    evidence = f"log p(x), by {figures['method']}" if "method" in figures else sampled
    rows = {
        "ELBO": "elbo",
        "  E_q log p(x|z)": "reconstruction",
        "  KL(q(z|x) || p(z))": "kl",
        evidence: "log_evidence",
    }
    units = {"unit": ", x in [0, 1]", "original": ", x in original units"}[figures["units"]]
    if figures["measure"] == "mass":
        units = ""
    n = f"{figures['n']:,}"
    rows_of = (
        f"{figures['data']}, {n} data" if "data" in figures else f"{figures['split']} data, {n}"
    )
    context = f"; {figures['context']} are given" if figures.get("context") else ""
    yield f"{rows_of}; nats per datum, +- standard error{units}{context}"
    for label, key in rows.items():
        error = figures[f"{key}_se"]
        yield _line(label, f"{figures[key]:.3f}", "" if error is None else f" +- {error:.3f}")
    if "method" in figures:
        yield from _beside_exact(figures)
    if figures["bits_per_dim"] is not None:
        yield _line("bits per dimension", f"{figures['bits_per_dim']:.4f}")


def _beside_exact(figures: Mapping[str, Any]) -> Iterator[str]:
    particles = f"{figures['num_particles']:,}"
    estimate = f"{figures['importance_log_evidence']:.3f}"
    yield _line(f"  the same by {particles} importance samples", estimate)
    kind = "standard error" if figures["method"] == "ais" else "error"
    yield _line(f"  largest {kind} of the former", f"{figures['log_evidence_error']:.1e}")
    n, trusted = figures["n"], figures["khat_below_half"]
    for label, key in (
        (f"  {trusted} of {n} with k-hat < 0.5: differ by", "importance_z"),
        (f"  {n - trusted} of {n}: a lower bound, exceeds by", "importance_excess_z"),
    ):
        if figures[key] is not None:
            yield _line(label, f"{figures[key]:.2f}", " standard errors at the most")


def _line(label: str, number: str, words: str = "") -> str:
    return f"{label:<{WIDTH}}{number:>11}{words}"
