"""What a report says in words: of each figure what a good one looks like, and the verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyrovae.report.gathering import Gathered, Missing

CLOSE = 2  # standard errors: what is nearer is a close call
RISING = 4  # the last 1 / RISING of the epochs tell whether training had ended
MOST_DIGITS = 4
CROWDED = 0.8  # of log N: above this mutual information, N data are too few to take the KL apart

CAPTIONS = {
    "elbo": (
        "The ELBO as it was trained, by epoch. Good: both curves flatten out before the end, and "
        "the validation curve stays close to the training curve. If both still rise, train longer; "
        "if validation falls while training rises, the model overfits."
    ),
    "terms": (
        "The ELBO's two terms: how well x is rebuilt from z, and what z costs. Good: the upper one "
        "rises and levels off, and KL settles well above zero. KL near zero means that the latents "
        "are ignored (collapse)."
    ),
    "evidence": (
        "How far log p(x) of each datum lies above its ELBO, with 95% intervals. Good: marks that "
        "hug the line at 0, short intervals, few triangles. A triangle is a lower bound alone: its "
        "weights are too uneven for an honest upper end."
    ),
    "gap": (
        "How far the ELBO lies below log p(x), and why: the left part is what no member of the "
        "guide's family could close (approximation), the right part what the network gives away "
        "against the best member (amortization). Good: a bar that is short beside the differences "
        "between models that matter to you. A long left part asks for a richer family, a long "
        "right part for a better encoder."
    ),
    "gaps": (
        "How far the ELBO of each run lies below its log p(x): left what the guide's family costs, "
        "right what the network costs. Good: the run with the best evidence has a short bar too. A "
        "run whose bar is longer by more than its evidence is better has the better model and the "
        "worse guide."
    ),
    "khat": (
        "Pareto k-hat of each datum's importance weights. Good: all bars left of the dashed "
        "threshold. Right of it the guide is too narrow somewhere, and log p(x) is only bounded "
        "from below. A guide that is too wide can have a good k-hat and a loose bound all the "
        "same: k-hat judges the weights, the gap judges the bound."
    ),
    "worst": (
        "The data with the worst k-hat, the worst first, above what the model makes of them. Good: "
        "nothing in common. If they share a trait (a rare class, thick strokes, an outlier), the "
        "guide or the model fails on that kind of datum."
    ),
    "units": (
        "How much the guide's mean of each latent number moves with the data, on a scale of "
        "logarithms. Good: most bars above the dashed line. Bars below it are latent numbers that "
        "the model does not use: a few do no harm, nearly all is posterior collapse."
    ),
    "reconstructions": (
        "Test data, each above its reconstruction from one draw of z. Good: the same content, "
        "perhaps smoother. Blur or another content means that z holds too little."
    ),
    "samples": (
        "Samples: what the model expects at draws of z from the prior. Good: they look like data, "
        "and vary as data do. Smears between kinds of data mean that the prior puts mass where "
        "the guide puts none."
    ),
    "traversals": (
        "One latent number moved at a time, from the 5th to the 95th percentile of where the data "
        "have it, the others held; the most active first. Good: each row changes smoothly and in "
        "one respect. A row that does not change is a number that is not used."
    ),
    "interpolations": (
        "From one test datum (far left) to another (far right), along a straight line in the "
        "latents. Good: every step looks like a datum, and no step jumps."
    ),
    "map": (
        "Where the guide puts test data in the latent plane. Good: like lies near like, without "
        "large holes. Point at a mark, or tap it, to see the datum; the arrow keys move on."
    ),
    "neighbours": (
        "Samples (first row) above the training data nearest to each, with the distance. Good: "
        "alike in kind, and not in every detail. A sample that equals its neighbour is a copy."
    ),
    "copies": (
        "Distances from draws of the model, and from held-out data, to the nearest training datum. "
        "Good: the two histograms lie on one another. Draws further left are copies of training "
        "data (memorisation); draws further right lie off the data."
    ),
    "comparison": (
        "Each run's log p(x) less that of the best run, with two paired standard errors. Good: "
        "whiskers that stay clear of zero, for then the order is no accident of the test data. "
        "Runs whose whiskers reach zero are as good as the best, as far as these data can tell."
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """Nats per datum that one kind of work might win.

    Attributes:
        work: what to do.
        nats: the mean.
        error: its standard error, NaN if not known.
        why: how that is known, in brackets.
    """

    work: str
    nats: float
    error: float
    why: str = ""


def plus_minus(mean: float, error: float | None, digits: int = 2) -> str:
    """Return "mean ± error", the error left out where it is not known.

    Args:
        mean: a number.
        error: its standard error.
        digits: after the point; more where the error needs them.

    Example:
        >>> plus_minus(-1.234, 0.5), plus_minus(2.0, None), plus_minus(0.0213, 0.0014)
        ('−1.23 ± 0.50', '2.00', '0.0213 ± 0.0014')
    """
    known = error is not None and math.isfinite(error)
    if error is not None and 0 < error < 0.1 and digits:
        digits = max(digits, min(MOST_DIGITS, 1 - math.floor(math.log10(error))))
    text = f"{mean:.{digits}f}".replace("-", "−")
    return f"{text} ± {error:.{digits}f}" if known else text


def still_rising(curve: Sequence[float | None]) -> float:
    """Return by how many nats an ELBO rose over the last quarter of its epochs, 0 if it fell.

    Args:
        curve: losses by epoch, -ELBO.
    """
    losses = [v for v in curve if v is not None]
    last = max(1, len(losses) // RISING)
    return max(0.0, losses[-1 - last] - losses[-1]) if len(losses) > last else 0.0


def generalisation(g: Gathered) -> tuple[float, float] | None:
    """Return by how much the training ELBO exceeds that of validation, with its standard error.

    The error takes the spread over the data from the test data's. None without validation data, or
    where the kept epoch's beta was not 1.
    """
    record = g.opened.history.epochs[g.opened.history.best_epoch - 1]
    loss, validation = record["loss"], record["validation_loss"]
    if loss is None or validation is None or record.get("beta") != 1:
        return None
    spread = (g.opened.figures.get("elbo_se") or math.nan) * math.sqrt(g.opened.figures["n"])
    sizes = [len(g.opened.data.train), len(g.opened.data.validation)]
    return validation - loss, spread * math.sqrt(sum(1 / n for n in sizes if n))


def losses(g: Gathered) -> dict[str, Loss]:
    """Return where nats are lost, as far as is known: by training, data, guide and prior."""
    found = {}
    history = g.opened.history
    validated = any(v is not None for v in history["validation_loss"])
    rising = still_rising(history["validation_loss" if validated else "loss"])
    if history.best_epoch == len(history) and rising > 0:
        why = " (what the last quarter of the epochs still brought)"
        found["training"] = Loss("train longer", rising, math.nan, why)
    apart = generalisation(g)
    if apart is not None and apart[0] > CLOSE * apart[1]:
        found["data"] = Loss(
            "make the model generalise (more data, a smaller or more regular decoder)", *apart
        )
    if not isinstance(g.gaps, Missing):
        richer = g.gaps.approximation[0] >= g.gaps.amortization[0]
        work = (
            "give the guide a richer family (full covariance, a flow, a mixture)"
            if richer
            else "give the guide a better encoder (larger, trained longer, or refined by datum)"
        )
        found["guide"] = Loss(work, *(g.gaps.approximation if richer else g.gaps.amortization))
    if not isinstance(g.units, Missing) and not isinstance(g.units.surgery, Missing):
        s = g.units.surgery
        if s.mutual_information < CROWDED * math.log(s.n):
            found["prior"] = Loss(
                "fit the prior to what the guide produces (VampPrior, a mixture, a flow)",
                s.aggregate_kl, s.aggregate_kl_se,
            )  # fmt: skip
    return found


def verdict(g: Gathered) -> list[str]:
    """Return the verdict in sentences: the model, the guide, and which of them to work on."""
    return [_of_model(g), _of_guide(g), _of_work(g)]


def _of_model(g: Gathered) -> str:
    f = g.opened.figures
    sentence = (
        f"The model gives {f['split']} data log p(x) = "
        f"{plus_minus(f['log_evidence'], f.get('log_evidence_se'))} nats per datum"
    )
    if f.get("bits_per_dim") is not None:
        sentence += f", {f['bits_per_dim']:.3f} bits per dimension"
    sentence += (
        f" (mean of {f['n']:,} data ± one standard error). That figure has no absolute scale: it "
        "ranks models of the same data."
    )
    apart = generalisation(g)
    if apart is not None:
        sentence += (
            f" Its ELBO of training data less that of validation data is {plus_minus(*apart)} nats"
        )
        sentence += (
            ": more than chance, so it fits the data it was trained on better than new ones."
            if apart[0] > CLOSE * apart[1]
            else ": no overfitting that is more than chance."
        )
    if not isinstance(g.copies, Missing):
        test = g.copies.test
        sentence += (
            f" Its draws are nearer to training data than held-out data are in {test.closer:.0%} "
            "of pairs (50% if the laws are one): "
        )
        if test.p_value < 1e-3:
            sentence += "too often for chance, so it may copy training data."
        elif test.closer < 0.5 - CLOSE * test.closer_se:
            sentence += "no sign of copying, but its draws lie further off than real data."
        else:
            sentence += "no sign of copying."
    return sentence


def _of_guide(g: Gathered) -> str:
    if isinstance(g.gaps, Missing):
        f = g.opened.figures
        sentence = (
            f"The guide's ELBO lies {f['log_evidence'] - f['elbo']:.2f} nats below the estimate of "
            "log p(x); what of it is the family's and what the network's is not known."
        )
    else:
        sentence = (
            f"The guide's ELBO lies {plus_minus(*g.gaps.total)} nats below log p(x) on {g.gaps.n} "
            f"data: {plus_minus(*g.gaps.approximation)} for its family and "
            f"{plus_minus(*g.gaps.amortization)} for its network."
        )
    if isinstance(g.bounds, Missing):
        return sentence
    above, n = int(g.bounds.above.sum()), len(g.bounds.khat)
    sentence += f" k-hat is above its threshold for {above} of {n} data"
    if above == 0:
        sentence += ", so the importance weights are to be trusted"
    else:
        sentence += f" ({above / n:.0%}): there log p(x) is bounded from below alone, and may be"
        sentence += " higher than the estimate"
    return sentence + (
        ". A good k-hat is no proof of a tight bound: a guide that is too wide has well-behaved "
        "weights and a loose bound."
    )


def _of_work(g: Gathered) -> str:
    ranked = sorted(losses(g).values(), key=lambda loss: loss.nats, reverse=True)
    if not ranked:
        return "Which of the two to work on, these figures do not tell."
    errors = [0.0 if math.isnan(loss.error) else loss.error for loss in ranked[:2]]
    clear = len(ranked) == 1 or ranked[0].nats - ranked[1].nats > CLOSE * math.hypot(*errors)
    head = (
        f"{ranked[0].work.capitalize()}, before anything else."
        if clear
        else f"Too close to call between two: {ranked[0].work}, or {ranked[1].work}."
    )
    listed = "; ".join(
        f"{loss.work}, {plus_minus(loss.nats, loss.error)}{loss.why}" for loss in ranked
    )
    return f"{head} What each might win, in nats per datum: {listed}."
