"""From what was gathered to the sections of the page: figures, tables and words."""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae import likelihoods, plots, posteriors, priors
from pyrovae.nets.naming import by_name, hyphenated
from pyrovae.pairs.names import exported, split_masked
from pyrovae.plots.mosaics import is_image
from pyrovae.report.gathering import COLUMNS, Gathered, Missing
from pyrovae.report.page import Drawn, Pointed, Section, code, note, paragraph, table
from pyrovae.report.wording import CAPTIONS, plus_minus, verdict
from pyrovae.training.catalogue import entry
from pyrovae.training.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODULES = {"prior": priors, "likelihood": likelihoods, "posterior": posteriors}
SYMBOLS = {"prior": "p(z)", "likelihood": "p(x|z)", "posterior": "q(z|x)"}
SHOWN = 8  # numbers of a table's row that are written out


def sections(g: Gathered, prefix: str) -> list[Section]:
    """Return the sections of one run.

    Args:
        g: what was gathered of it.
        prefix: of the names of its places and files.
    """
    found = {
        "verdict": ("In short", _verdict(g)),
        "trained": ("What was trained", _trained(g)),
        "training": ("The ELBO over training", _training(g)),
        "bound": ("Evidence and its bound", _evidence(g)),
        "guide": ("Are the importance weights to be trusted?", _guide(g)),
        "latents": ("The latents", _latents(g)),
        "pictures": ("What the model makes", _pictures(g)),
        "memory": ("Copies of the training data?", _copies(g)),
    }

    def placed(block: str | Drawn) -> str | Drawn:
        return block if isinstance(block, str) else replace(block, name=prefix + block.name)

    return [
        Section(prefix + name, title, [placed(block) for block in blocks])
        for name, (title, blocks) in found.items()
    ]


def compared(comparison: Comparison | Missing, all_of: Sequence[Gathered]) -> Section:
    """Return the section that sets runs beside one another."""
    blocks: list[str | Drawn] = []
    if isinstance(comparison, Missing):
        blocks.append(note("Comparison", comparison.reason))
    else:
        how = comparison.evidence
        if how == "iwae":
            how = f"{comparison.num_particles:,} importance samples"
        rows = [
            [
                row.run, plus_minus(row.log_evidence, row.log_evidence_se),
                plus_minus(row.difference, row.difference_se) if place else "–",
                plus_minus(row.elbo, None), plus_minus(row.kl, None),
                "–" if row.bits_per_dim is None else f"{row.bits_per_dim:.4f}",
                str(row.epochs), f"{row.parameters:,}",
                row.parts,
            ]
            for place, row in enumerate(comparison.rows)
        ]  # fmt: skip
        head = ["run", "log p(x)", "less the best's", "ELBO", "KL", "bits/dim", "epochs"]
        head += ["parameters", "prior, likelihood, posterior"]
        caption = (
            f"{comparison.n:,} {comparison.split} data, log p(x) by {how}; nats per datum ± one "
            "standard error, that of a difference paired; the best first"
        )
        blocks.append(table(caption, head, rows))
        blocks.append(_drawn("comparison", "The runs' evidence", plots.comparison_bars(comparison)))
    measured = [(g.opened.run.name, g.gaps) for g in all_of if not isinstance(g.gaps, Missing)]
    if measured:
        figure = plots.gap_bars(
            [name for name, _ in measured],
            [gaps.approximation for _, gaps in measured],
            [gaps.amortization for _, gaps in measured],
        )
        blocks.append(_drawn("gaps", "The runs' inference gaps", figure))
    return Section("compared", "Evidence and gaps", blocks)


def _drawn(
    name: str, title: str, figure: "Figure", extra: str = "", pointed: Pointed | None = None
) -> Drawn:
    return Drawn(name, title, CAPTIONS[name] + extra, figure, pointed)


def _of_labels(g: Gathered, words: str) -> str:
    """Return words on a picture that are true of a pair given labels alone."""
    return f" {words}" if g.opened.vae.takes_labels else ""


def _verdict(g: Gathered) -> list[str | Drawn]:
    heads = ("Model.", "Guide.", "Next.")
    lines = "".join(
        f"<p><b>{head}</b> {escape(words)}</p>"
        for head, words in zip(heads, verdict(g), strict=True)
    )
    return [f'<div class="verdict">{lines}</div>']


def _trained(g: Gathered) -> list[str | Drawn]:
    config, data = g.opened.config, g.opened.data
    pair = type(g.opened.vae)
    rows = [["pair", hyphenated(pair.__name__), _formula("pair", pair)]]
    for part, module in MODULES.items():
        if not hasattr(g.opened.vae, part):
            continue
        name = config["build"][part]
        masked, inner = split_masked(name) if part == "likelihood" else (False, name)
        chosen = by_name(part, inner, exported(module))
        suffix = ", of the entries that are observed" if masked else ""
        rows.append([f"{part}, {SYMBOLS[part]}", name, _formula(part, chosen) + suffix])
    sizes = ", ".join(f"{n:,} {split}" for split, n in data.record["sizes"].items() if n)
    trained = sum(p.numel() for p in g.opened.vae.parameters())
    build, training = config["build"], config["training"]
    net = f"{build['net']}, hidden {', '.join(map(str, build['hidden']))}"
    rows += [
        ["latents", str(build["latent_dim"]), f"numbers; nets: {net}; {trained:,} parameters"],
        [
            "data",
            data.name,
            f"{sizes}; a datum is {' × '.join(map(str, data.data_shape))} numbers",
        ],
        [
            "training",
            training["objective"],
            f"{_options_of(training)}{len(g.opened.history)} epochs, batches of "
            f"{training['batch_size']}, learning rate {training['lr']:g} "
            f"({training.get('optimizer', 'adam')}, {training.get('schedule', 'constant')}), seed "
            f"{training['seed']}; the weights are those of epoch "
            f"{g.opened.history.best_epoch}",
        ],
    ]
    versions = ", ".join(f"{k} {v}" for k, v in config.get("versions", {}).items())
    return [
        table("The run", ["", "choice", "meaning"], rows),
        paragraph(f"This command trains it once more ({versions}):"),
        code(g.opened.command),
    ]


def _options_of(training: dict[str, Any]) -> str:
    """Say with what options the objective was made."""
    options = training.get("objective_options", {})
    return "".join(f"{key} = {value}; " for key, value in options.items())


def _formula(kind: str, part: type) -> str:
    return entry(kind, part.__name__, part).formula.replace("`", "")


def _training(g: Gathered) -> list[str | Drawn]:
    return [
        _drawn("elbo", "The bound", plots.elbo_curve(g.opened.history)),
        _drawn("terms", "Its two terms", plots.term_curves(g.opened.history)),
    ]


def _evidence(g: Gathered) -> list[str | Drawn]:
    f = g.opened.figures
    method = f.get("method", f"{f['num_particles']:,} importance samples")
    rows = [
        [name, plus_minus(f[key], f.get(f"{key}_se"), 3)]
        for name, key in {
            "ELBO": "elbo", "E_q log p(x|z)": "reconstruction", "KL(q(z|x) || p(z))": "kl",
            "log p(x)": "log_evidence",
        }.items()
    ]  # fmt: skip
    if f.get("bits_per_dim") is not None:
        rows.append(["bits per dimension", f"{f['bits_per_dim']:.4f}"])
    units = "" if f["measure"] == "mass" else f", a {f['measure']}, x in {f['units']} units"
    caption = (
        f"As `pyrovae evaluate` left them: {f['n']:,} {f['split']} data, log p(x) by {method}"
        f"{units}; nats per datum ± one standard error over the data"
    )
    blocks: list[str | Drawn] = [table(caption.replace("`", ""), ["", "mean"], rows)]
    b = g.bounds
    if isinstance(b, Missing):
        blocks.append(note("Evidence datum by datum", b.reason))
    else:
        closed = int(b.high.isfinite().sum())
        figure = plots.evidence_intervals(b.elbo, b.log_evidence, b.low, b.high)
        extra = (
            f" Here: {len(b.elbo)} test data, {b.num_particles:,} importance samples each; "
            f"{closed} have an interval that is closed above."
        )
        blocks.append(_drawn("evidence", "log p(x), datum by datum", figure, extra))
    if isinstance(g.gaps, Missing):
        blocks.append(note("The inference gap", g.gaps.reason))
    else:
        figure = plots.gap_bars([g.opened.run.name], [g.gaps.approximation], [g.gaps.amortization])
        extra = (
            f" Here, on {g.gaps.n} data: {plus_minus(*g.gaps.approximation)} and "
            f"{plus_minus(*g.gaps.amortization)} nats, {plus_minus(*g.gaps.total)} together."
        )
        blocks.append(_drawn("gap", "The inference gap", figure, extra))
    return blocks


def _guide(g: Gathered) -> list[str | Drawn]:
    b = g.bounds
    if isinstance(b, Missing):
        return [note("k-hat", b.reason)]
    above = int(b.above.sum())
    extra = f" Here: {above} of {len(b.khat)} data ({above / len(b.khat):.0%}) are above."
    histogram = _drawn("khat", "k-hat", plots.khat_histogram(b.khat, b.threshold), extra)
    labels = [[f"{k:.2f}" for k in b.worst.khat.tolist()], []]
    rows = [b.worst.x, b.worst.reconstructed]
    figure = plots.mosaic(rows, ["datum, k-hat", "reconstruction"], labels, least=COLUMNS)
    return [histogram, _drawn("worst", "The worst k-hat", figure)]


def _latents(g: Gathered) -> list[str | Drawn]:
    blocks: list[str | Drawn] = []
    u = g.units
    if isinstance(u, Missing):
        blocks.append(note("Active units", u.reason))
    else:
        if isinstance(u.surgery, Missing):
            blocks.append(note("The KL taken apart", u.surgery.reason))
        else:
            s = u.surgery
            rows = [
                ["KL(q(z|x) || p(z))", plus_minus(s.kl, s.kl_se), "what z costs, a datum"],
                [
                    "mutual information of datum and z",
                    plus_minus(s.mutual_information, s.mutual_information_se),
                    "what z tells of which datum it is; at most log N = "
                    f"{math.log(s.n):.2f}, and where it comes near that, N is too small",
                ],
                [
                    "KL(q(z) || p(z))",
                    plus_minus(s.aggregate_kl, s.aggregate_kl_se),
                    "what a better prior could save at the most",
                ],
            ]
            caption = f"The KL is the sum of two; {s.n:,} test data, nats ± one standard error"
            blocks.append(table(caption, ["", "nats", "meaning"], rows))
        a, d = u.active, len(u.active.variance)
        extra = f" Here: {a.count} of {d} are active"
        if not isinstance(u.collapsed, Missing):
            extra += f", and {u.collapsed.count} are collapsed by their KL"
        figure = plots.unit_bars(a.variance, a.active, a.threshold)
        blocks.append(_drawn("units", "Active units", figure, f"{extra} ({u.n:,} test data)."))
    m = g.map
    if isinstance(m, Missing):
        return [*blocks, note("The latent map", m.reason)]
    figure, at = plots.latent_map(m.points, m.axis_names, m.labels)
    pointed = Pointed(at, [_of_datum(g, i) for i in range(len(at))], m.x)
    extra = _of_labels(
        g,
        "Here the label is known to guide and model, so z need not tell it: classes that lie on "
        "one another are good.",
    )
    blocks.append(_drawn("map", "The latent map", figure, extra, pointed))
    return blocks


def _of_datum(g: Gathered, i: int) -> str:
    """Say which datum of the map this is."""
    assert not isinstance(g.map, Missing)
    first, second = (f"{v:.2f}".replace("-", "−") for v in g.map.points[i].tolist())
    words = f"test datum {i}"
    if g.map.labels is not None:
        words += f", label {g.map.labels[i].item()}"
    words += f", at ({first}, {second})"
    if not is_image(g.map.x.shape[1:]):
        x = g.opened.data.original(g.map.x[i]).flatten().tolist()
        more = ", …" if len(x) > SHOWN else ""
        words += f": x = {', '.join(f'{v:.4g}' for v in x[:SHOWN])}{more}".replace("-", "−")
    return words


def _pictures(g: Gathered) -> list[str | Drawn]:
    x = g.rows[: len(g.reconstructed)]
    pairs = [
        t
        for some in zip(x.split(COLUMNS), g.reconstructed.split(COLUMNS), strict=True)
        for t in some
    ]
    names = ["data", "reconstruction"] * (len(pairs) // 2)
    blocks: list[str | Drawn] = []
    if not is_image(x.shape[1:]):
        scaled = ", standardised" if g.opened.data.scale is not None else ""
        blocks.append(
            paragraph(f"These data are no images: each box draws one datum's numbers{scaled}.")
        )
    blocks += [
        _drawn("reconstructions", "Reconstructions", plots.mosaic(pairs, names, least=COLUMNS)),
        _drawn(
            "samples",
            "Samples",
            plots.mosaic(g.samples.split(COLUMNS), least=COLUMNS),
            _of_labels(g, "Here: of the labels 0, 1, ... in turn."),
        ),
    ]
    if isinstance(g.traversal, Missing):
        blocks.append(note("Traversals", g.traversal.reason))
    else:
        t = g.traversal
        figure = plots.mosaic(list(t.x), [f"z[{i}]" for i in t.dims], least=COLUMNS)
        extra = _of_labels(g, "Here: all given the label of the first test datum.")
        blocks.append(_drawn("traversals", "Traversals", figure, extra))
    if isinstance(g.interpolated, Missing):
        blocks.append(note("Interpolations", g.interpolated.reason))
    else:
        figure = plots.mosaic(list(g.interpolated), least=COLUMNS)
        extra = _of_labels(g, "Here: all in between given the label of the datum far left.")
        blocks.append(_drawn("interpolations", "Interpolations", figure, extra))
    return blocks


def _copies(g: Gathered) -> list[str | Drawn]:
    c = g.copies
    if isinstance(c, Missing):
        return [note("The training data nearest to samples", c.reason)]
    k = c.nearest.shape[1]
    names = ["sample", *(f"neighbour {i + 1}" for i in range(k))]
    rows: list[Any] = [c.samples, *(c.nearest[:, i] for i in range(k))]
    labels = [[], *_words(c.distances.T)]
    test = c.test
    extra = (
        f" Here: draws are the nearer in {plus_minus(100 * test.closer, 100 * test.closer_se, 0)}%"
        f" of pairs (50% if the laws are one); test for copies: p = {test.p_value:.2g}."
    )
    return [
        _drawn("neighbours", "Nearest training data", plots.mosaic(rows, names, labels)),
        _drawn("copies", "Distances to training data", plots.copy_distances(test), extra),
    ]


def _words(distances: Tensor) -> list[list[str]]:
    return [[f"{d:.3g}" for d in row] for row in distances.tolist()]
