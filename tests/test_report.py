"""The report: what it computes, what its page holds, and the command that it says repeats a run."""

import base64
import copy
import io
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_experiment import trained
from typer.testing import CliRunner

from pyrovae import data, evidence, load, plots, report
from pyrovae.cli import app
from pyrovae.evidence import inference
from pyrovae.report import gathering, repeating, wording, write_report
from pyrovae.training import rundir

QUICK = {"limit": 12, "gap_data": 2, "num_particles": 100}
VOID = {"meta", "link", "img", "br", "circle"}


@pytest.fixture(scope="module", autouse=True)
def _short_search():
    """The search for the best q has tests of its own; here a few steps of it will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "LOOKS", 2)
        patch.setattr(inference, "RATES", (1.0,))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on the digits in a latent plane, another with another prior, and one on a table."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(5)
    x = generator.normal(size=(150, 2)) @ generator.normal(size=(2, 4)) * [1, 3, 9, 27]
    np.savetxt(
        folder / "t.csv", x + generator.normal(size=x.shape), delimiter=",", header="a,b,c,d"
    )
    trained(run=folder / "flat", epochs=3, hidden=(32,))
    trained(run=folder / "vamp", prior="vamp-prior", prior_options={"num_components": 5})
    trained(
        run=folder / "table",
        data=str(folder / "t.csv"),
        likelihood="normal",
        latent_dim=3,
        epochs=2,
    )
    return folder


@pytest.fixture(scope="module")
def flat(runs):
    opened = gathering.open_run(runs / "flat")
    return gathering.gather(opened, **QUICK, seed=0, say=lambda line: None)


@pytest.fixture(scope="module")
def pages(runs):
    """The reports, by name: a whole one, one with latents and pictures, and one of two runs."""
    write_report([runs / "flat"], **QUICK)
    write_some([runs / "table"], runs / "table/report.html", slice(5, 7))
    write_some([runs / "flat", runs / "vamp"], runs / "both.html", slice(2))
    files = {"flat": "flat/report.html", "table": "table/report.html", "both": "both.html"}
    return {name: Page(runs / file) for name, file in files.items()}


def write_some(runs, file, which):
    """Write a report by the command, with some sections alone: to draw them all takes seconds."""
    sections = report.sections
    words = ["--out", file, "--limit", 12, "--gap-data", 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "sections", lambda *args: sections(*args)[which])
        result = CliRunner().invoke(app, [str(word) for word in ["report", *runs, *words]])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.strip() == str(file)
    return file


class Page(HTMLParser):
    """A page as its elements: (tag, attributes), and its text."""

    def __init__(self, path):
        super().__init__()
        self.path, self.html = path, path.read_text(encoding="utf-8")
        self.elements, self.words, self.open = [], [], []
        self.feed(self.html)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        if not {"style", "script"} & set(self.open):
            self.words.append(words)

    def all(self, tag, kind=None):
        return [a for t, a in self.elements if t == tag and kind in (None, a.get("class"))]


def decoded(uri):
    """The bytes of a data URI, and whether they are what it says."""
    head, content = uri.split(",", 1)
    found = base64.b64decode(content, validate=True)
    start = {"data:image/png;base64": b"\x89PNG", "data:image/svg+xml;base64": b"<?xml"}[head]
    assert found.startswith(start)
    return found


@pytest.mark.parametrize("name", ["flat", "table", "both"])
def test_the_page_holds_all_that_it_needs(pages, name):
    page = pages[name]
    assert page.html.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert any("width=device-width" in a.get("content", "") for a in page.all("meta"))
    assert "prefers-color-scheme: dark" in page.html
    assert not re.search(r"https?:|url\((?!data:)|@import", page.html)
    for tag, attributes in page.elements:
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), (tag, attributes[key][:80])
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize(("name", "figures"), [("flat", 14), ("table", 6), ("both", 2)])
def test_every_figure_is_there_in_words_and_on_disk(pages, name, figures):
    page = pages[name]
    images = page.all("img")
    assert len(images) == figures == len(page.all("figure"))
    for image in images:
        decoded(image["src"])
        assert " Good: " in image["alt"] and image["alt"] in page.text.replace(" . ", ". ")
        assert int(image["width"]) > 0 and int(image["height"]) > 0
    folder = page.path.with_name(f"{page.path.stem}_files")
    names = {a["id"] for a in page.all("figure")}
    assert {p.name for p in folder.iterdir()} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    for path in folder.iterdir():
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)


def test_what_the_page_says(pages, flat):
    text = pages["flat"].text
    figures = flat.opened.figures
    shown = f"{figures['log_evidence']:.3f} ± {figures['log_evidence_se']:.3f}".replace("-", "−")
    assert shown in text and f"{figures['bits_per_dim']:.4f}" in text
    above = int(flat.bounds.above.sum())
    assert f"{above} of 12 data ({above / 12:.0%}) are above" in text
    assert "a guide that is too wide has well-behaved weights and a loose bound" in text
    assert flat.opened.command in text
    assert wording.plus_minus(*flat.gaps.total) in text
    assert (
        "These data are no images" in pages["table"].text and "standardised" in pages["table"].text
    )
    both = pages["both"].text
    assert "Comparison" in both and "less the best's" in both and "vamp-prior" in both


def test_the_map_shows_each_datum_where_it_lies(pages, flat):
    page = pages["flat"]
    circles = page.all("circle", "point")
    x = data.load("digits", values="levels").test
    assert len(circles) == len(x) == 179
    # where it lies: the picture's axes are straight, the vertical one upwards
    at = np.array([[float(a["cx"]), float(a["cy"])] for a in circles])
    vae = load(flat.opened.run)
    with torch.no_grad():
        z = vae.encode(x).mean.double().numpy()
    for axis, sign in ((0, 1), (1, -1)):
        slope, start = np.polyfit(z[:, axis], at[:, axis], 1)
        assert sign * slope > 0
        np.testing.assert_allclose(at[:, axis], start + slope * z[:, axis], atol=0.1)  # printed so
    # what is shown of it
    (thumb,) = page.all("div", "thumb")
    columns, rows = int(thumb["data-columns"]), int(thumb["data-rows"])
    image = picture(decoded(thumb["style"].split("url(")[1].removesuffix(")")))
    assert image.shape == (rows * 8, columns * 8)
    for i, circle in enumerate(circles):
        assert int(circle["data-cell"]) == i
        top, left = 8 * (i // columns), 8 * (i % columns)
        ink = 1 - image[top : top + 8, left : left + 8]
        np.testing.assert_allclose(ink, x[i].numpy() / 16, atol=1 / 255)
    labels = data.load("digits", values="levels").labels["test"]
    assert all(f"label {n}," in a["data-text"] for n, a in zip(labels, circles, strict=True))


def picture(png):
    """The red channel of a PNG, from 0 to 1."""
    from matplotlib.image import imread

    return imread(io.BytesIO(png))[..., 0]


def test_a_table_s_map_says_the_numbers(pages, runs):
    circles = pages["table"].all("circle", "point")
    x = data.load(runs / "t.csv", dtype=torch.float64).test
    assert len(circles) == len(x) == 15 and not pages["table"].all("div", "thumb")
    for row, circle in zip(x.tolist(), circles, strict=True):
        numbers = circle["data-text"].split("x = ")[1].replace("−", "-").split(", ")
        np.testing.assert_allclose([float(n) for n in numbers], row, rtol=1e-3)


def test_the_same_arguments_give_the_same_file(pages, runs):
    both, file = [runs / "flat", runs / "vamp"], runs / "again.html"
    again = write_some(both, file, slice(2)).read_text(encoding="utf-8")
    assert again == pages["both"].html.replace("both_files", "again_files")
    opened = gathering.open_run(runs / "flat")
    first, same, other = (
        gathering.bounds_of(opened, (opened.data.test[:3],), 50, seed).log_evidence
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


PROBE = """
<script>
addEventListener("error", event => { document.title = "error: " + event.message; });
addEventListener("load", () => {
  const images = Array.from(document.images);
  const broken = images.filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt);
  const svg = document.querySelector(".map svg"), words = document.querySelector(".readout p");
  const thumb = document.querySelector(".thumb"), seen = [];
  for (const i of [3, 20]) {
    const box = svg.querySelectorAll(".point")[i].getBoundingClientRect();
    const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
    svg.dispatchEvent(new PointerEvent("pointermove", at));
    seen.push(words.textContent, getComputedStyle(thumb).visibility,
              getComputedStyle(thumb).backgroundPosition);
  }
  svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  seen.push(words.textContent);
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent =
    JSON.stringify({broken, seen, wide, width: innerWidth, title: document.title});
});
</script>
"""


def test_in_a_browser(pages, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium to open the report in")
    path = tmp_path / "probed.html"
    path.write_text(pages["flat"].html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    words = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=500,900",
        "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(done.stdout.split('<pre id="found">')[1].split("</pre>")[0])
    assert found["broken"] == [] and found["wide"] <= 0 and found["title"].startswith("pyrovae")
    texts = [a["data-text"] for a in pages["flat"].all("circle", "point")]
    first, seen, place, second, seen_too, other, third = found["seen"]
    assert (first, second) == (texts[3], texts[20]) and third in texts and third != second
    assert seen == seen_too == "visible" and place != other


def test_bounds_are_in_original_units(runs):
    opened = gathering.open_run(runs / "table")
    x = opened.data.test
    found = gathering.bounds_of(opened, (x,), 2000, 1)
    mean, error = gathering.mean_and_error(found.log_evidence)
    figures = opened.figures
    assert mean == pytest.approx(figures["log_evidence"], abs=0.1)
    assert error == pytest.approx(figures["log_evidence_se"], abs=0.05)
    vae, gain = opened.vae, opened.data.log_jacobian(x)
    assert abs(float(gain.mean())) > 1, "or the test shows nothing"
    plain = evidence.iwae(vae.model, vae.guide, x, num_particles=2000, seed=7).log_evidence
    torch.testing.assert_close(found.log_evidence, plain + gain, atol=0.2, rtol=0)
    assert bool((found.low <= found.log_evidence).all() and (found.high > found.low).all())
    assert torch.equal(found.worst.khat, found.khat.sort(descending=True).values[:8])
    assert torch.equal(found.worst.x[0], x[found.khat.argmax()])


def test_gaps_are_means_with_errors(flat):
    vae = flat.opened.vae
    each = evidence.gaps(vae.model, vae.guide, flat.rows[:2], seed=0)
    total = (each.approximation + each.amortization).double()
    assert flat.gaps.total == pytest.approx((float(total.mean()), float(total.std()) / 2**0.5))
    assert flat.gaps.n == 2 and flat.gaps.amortization[0] >= -3 * flat.gaps.amortization[1]


def test_interpolations_go_from_datum_to_datum(flat):
    vae, rows = flat.opened.vae, flat.interpolated
    x = flat.opened.data.test
    torch.testing.assert_close(rows[:, 0], x[:10:2])
    torch.testing.assert_close(rows[:, -1], x[1:10:2])
    with torch.no_grad():
        z = vae.encode(x[:2]).mean
        expected = vae.decode(torch.lerp(z[0], z[1], 3 / 5)).mean
    torch.testing.assert_close(rows[0, 4], expected)


def test_copies_are_found(flat):
    class Parrot:
        """It says what it was trained on."""

        takes_labels = False

        def sample(self, n, seed=0, mean=False):
            return flat.opened.data.train[seed : seed + n]

    honest, parrot = flat, replace(flat, copies=gathering.copies_of(Parrot(), flat.opened.data, 0))
    assert torch.equal(parrot.copies.nearest[:, 0], parrot.copies.samples)
    assert bool((parrot.copies.distances[:, 0] == 0).all())
    assert "it may copy training data" in " ".join(wording.verdict(parrot))
    assert "it may copy training data" not in " ".join(wording.verdict(honest))


def gap(approximation, amortization, error=0.1):
    return gathering.Gaps(
        (approximation + amortization, error), (approximation, error), (amortization, error), 20
    )


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        (gap(90.0, 1.0), "Give the guide a richer family"),
        (gap(1.0, 90.0), "Give the guide a better encoder"),
        (gap(0.1, 0.1), "Train longer"),
    ],
)
def test_the_verdict_names_the_largest_loss(flat, gaps, said):
    words = wording.verdict(replace(flat, gaps=gaps))[2]
    assert words.startswith(said) and "before anything else" in words


def test_the_verdict_is_careful(flat):
    rising = wording.losses(flat)["training"].nats
    close = replace(flat, gaps=gap(rising, 0.0, error=rising))
    assert wording.verdict(close)[2].startswith("Too close to call")
    unknown = replace(flat, gaps=gathering.Missing("why"))
    assert "is not known" in wording.verdict(unknown)[1]
    good = replace(flat.bounds, khat=torch.full((12,), -torch.inf))
    assert "are to be trusted" in wording.verdict(replace(flat, bounds=good))[1]
    bad = replace(flat.bounds, khat=torch.tensor([torch.inf, torch.nan, *[0.1] * 10]))
    words = wording.verdict(replace(flat, bounds=bad))[1]
    assert "2 of 12 data (17%)" in words and "may be higher than the estimate" in words


def test_what_training_still_brought():
    assert wording.still_rising([9.0, 7, 6, 5.5, 5.25, 5, 4.5, 4]) == 1.0  # of the last two epochs
    assert wording.still_rising([4.0, 4, 4, 5]) == wording.still_rising([3.0]) == 0.0


def test_generalisation(flat):
    history = copy.deepcopy(flat.opened.history)
    history.epochs[history.best_epoch - 1] |= {"loss": 10.0, "validation_loss": 14.0, "beta": 1.0}
    figures = flat.opened.figures | {"elbo_se": 2.0, "n": 100}  # 20 over the data
    found = replace(flat, opened=replace(flat.opened, history=history, figures=figures))
    mean, error = wording.generalisation(found)
    assert (mean, error) == pytest.approx((4.0, 20 * (1 / 1439 + 1 / 179) ** 0.5))
    history.epochs[history.best_epoch - 1]["beta"] = 0.5
    assert wording.generalisation(found) is None


def test_best_epoch_is_that_of_fit(runs, tmp_path):
    history = trained(run=tmp_path / "a", epochs=6, lr=0.05).history
    assert gathering.read_history(tmp_path / "a").best_epoch == history.best_epoch
    history = trained(run=tmp_path / "b", epochs=2, validation=0).history
    assert gathering.read_history(tmp_path / "b").best_epoch == 2


CHOICES = {
    "none": {},
    "many": {
        "prior": "VampPrior", "prior_options": {"num_components": 7, "init": [0.1, 0.02]},
        "net": "gated-mlp", "hidden": (12, 8), "binarize": "dynamic", "validation": 100, "seed": 3,
        "posterior": "full_rank_normal", "objective": "trace", "lr": 0.01, "batch_size": 200,
    },
    "text as a value": {
        "likelihood": "normal", "dequantize": True, "hidden": (), "validation": 0,
        "likelihood_options": {"variance": "fixed:0.2"}, "net_options": {"activation": "tanh"},
    },
    "another split": {"seed": 3, "split_seed": 5},
    "a table": {"data": "t.csv", "likelihood": "masked:normal"},
    "a table as it is": {"data": "t.csv", "likelihood": "normal", "standardize": False},
}  # fmt: skip


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_the_command_repeats_the_run(runs, tmp_path, monkeypatch, choices):
    shutil.copy(runs / "t.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save_all", lambda *args: [])  # they take longer than the training
    trained(run=tmp_path / "a", **choices)
    config = rundir.read_config("a")
    words = shlex.split(repeating.command(config, load("a")))
    assert words[:2] == ["pyrovae", "train"]
    result = CliRunner().invoke(app, [*words[1:], "--run", "b"])
    assert result.exit_code == 0, result.output
    assert rundir.read_config("b") == config
    first, second = load_file("a/model.safetensors"), load_file("b/model.safetensors")
    assert all(torch.equal(first[k], second[k]) for k in first) and set(first) == set(second)
    changed = copy.deepcopy(config)
    changed["training"]["lr"] *= 2
    changed["build"]["prior_options"]["k"] = "1"
    other = repeating.command(changed, load("a"))
    assert shlex.split(other) != words and "--prior-option 'k=\"1\"'" in other


def spoil(name, content):
    def change(run):
        (run / name).write_bytes(content)

    return change


def remove(name):
    return lambda run: (run / name).unlink()


def without_training(run):
    config = json.loads((run / "config.json").read_text())
    del config["training"], config["sha256"]
    (run / "config.json").write_text(json.dumps(config))


WRONG = {
    "no run": (["none"], None, "run directory with config.json"),
    "no figures": (["a"], remove("metrics.json"), "run `pyrovae evaluate a`"),
    "no figure of each": (["a"], remove("evaluation.safetensors"), "run `pyrovae evaluate a`"),
    "damaged figures": (["a"], spoil("metrics.json", b"{"), "run `pyrovae evaluate a`"),
    "few figures": (["a"], spoil("metrics.json", b'{"elbo": 1}'), "run `pyrovae evaluate a`"),
    "damaged tensors": (["a"], spoil("evaluation.safetensors", b"x"), "are damaged"),
    "no history": (["a"], remove("history.csv"), "history in a/history.csv"),
    "damaged history": (["a"], spoil("history.csv", b"epoch,loss\nx,y\n"), "csv is damaged"),
    "empty history": (["a"], spoil("history.csv", b""), "csv is damaged"),
    "damaged weights": (["a"], spoil("model.safetensors", b"x"), "safetensors is damaged"),
    "no weights": (["a"], remove("model.safetensors"), "the run did not finish"),
    "damaged config": (["a"], spoil("config.json", b"{"), "config.json is damaged"),
    "a run of fit": (["a"], without_training, "without 'training'"),
    "twice": (["a", "a/../a"], None, "none of them twice"),
    "limit": (["a", "--limit", "0"], None, "limit to be a whole number >= 1; got 0"),
    "gap data": (["a", "--gap-data", "-1"], None, "gap_data to be a whole number >= 1"),
    "ending": (["a", "--out", "x.pdf"], None, "ending in .html"),
    "folder": (["a", "--out", "no/x.html"], None, "a folder that exists; got 'no/x.html'"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "damage", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused_in_one_message(runs, tmp_path, monkeypatch, words, damage, message):
    shutil.copytree(runs / "vamp", tmp_path / "a", ignore=shutil.ignore_patterns("report*"))
    monkeypatch.chdir(tmp_path)
    if damage is not None:
        damage(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["report", *words])
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in result.stderr and "Traceback" not in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_are_not_alike_are_shown_and_not_ranked(runs, flat):
    from pyrovae.report.drawing import compared

    found = compared(gathering.Missing("they differ"), [flat, flat])
    assert "they differ" in found.blocks[0] and found.blocks[1].name == "gaps"


def test_what_cannot_be_shown_says_why(flat):
    from pyrovae.report.drawing import sections

    missing = gathering.Missing("because <of> this")
    names = ("bounds", "gaps", "units", "traversal", "interpolated", "map", "copies")
    found = sections(replace(flat, **dict.fromkeys(names, missing)), "p-")
    notes = [b for s in found for b in s.blocks if isinstance(b, str) and "not shown" in b]
    assert len(notes) == len(names) + 1  # evidence and k-hat are both of the bounds
    assert all("because &lt;of&gt; this" in b for b in notes)
