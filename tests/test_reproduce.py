"""The commands of the published tables, on a few small images."""

import json
import math

import pytest
import torch
from reproduce import frey_faces, gaps, iwae, nets, ppca, tables, vamp_prior

from pyrovae import data, testing
from pyrovae.data import Data

SHAPE = (4, 4)
COMMON = ["--limit", "5", "--num-particles", "20", "--json"]
TABLES = {  # the command, its arguments, and the rows that it prints
    "vamp-prior": (
        vamp_prior.main, ["--epochs", "2", "--warm-up", "1"],
        [*vamp_prior.ROWS, *vamp_prior.DIFFERENCES],
    ),
    "vamp-prior by a cosine": (
        vamp_prior.main,
        ["--epochs", "2", "--warm-up", "1", "--lr", "1e-3", "--schedule", "cosine",
         "--rows", "standard-normal"],
        ["standard-normal"],
    ),
    "iwae": (iwae.main, ["--stages", "2"], [*iwae.ROWS, *iwae.DIFFERENCES]),
    "iwae by a cosine": (iwae.main, ["--cosine", "2", "--rows", "iwae-1"], ["iwae-1"]),
    "frey-faces": (
        frey_faces.main, ["--epochs", "2", "--warm-up", "1"],
        ["standard-normal", "vamp-prior", "standard-normal less vamp-prior"],
    ),
    "gaps": (
        gaps.main, ["--stages", "1", "--warm-up", "1", "--chains", "4", "--temperatures", "5"],
        list(gaps.ROWS),
    ),
}  # fmt: skip


def small(name, *, values="unit", binarize="none", validation=None, seed=0, dtype=torch.float32):
    """What `data.load` gives, of 40 images and 10 more for each of the others."""
    generator = torch.Generator().manual_seed(1234)
    grey = torch.rand(60, *SHAPE, generator=generator, dtype=dtype)
    drawn = (grey * 255).round() if values == "levels" else grey
    if binarize != "none":
        drawn = data.binarize(grey, generator)
    train = grey if binarize == "dynamic" else drawn
    transform = data.binarize if binarize == "dynamic" else None
    return Data(name, train[:40], drawn[40:50], drawn[50:], transform=transform)


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(data, "load", small)
    yield
    torch.set_num_threads(1)


def printed(capsys, main, arguments, runs):
    main([*arguments, *COMMON, "--runs", str(runs)])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_its_rows_and_is_done_once(table, capsys, tmp_path, monkeypatch):
    main, arguments, rows = TABLES[table]
    first = printed(capsys, main, arguments, tmp_path)
    assert [row["row"] for row in first["rows"]] == rows
    assert first["setting"]["seed"] == 0 and first["setting"]["images"] == 5
    for row in first["rows"]:
        assert row["error"] > 0 and row["differs"]
        if row["published"] is not None:
            assert row["difference"] == row["ours"] - row["published"]
    trained = [row for row in first["rows"] if row["epochs"] is not None]
    assert trained and all(row["training_seconds"] > 0 for row in trained)
    assert all(row["epochs"] == {"iwae": 4, "gaps": 1}.get(table, 2) for row in trained)

    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr(tables, "fit", refuse)
    for name in ("iwae", "ais", "gaps"):
        monkeypatch.setattr(tables.evidence, name, refuse)
    assert printed(capsys, main, arguments, tmp_path) == first
    with pytest.raises(AssertionError, match="done again"):  # another seed is another run
        main([*arguments, *COMMON, "--runs", str(tmp_path), "--seed", "1"])


def test_a_table_is_for_people_too(capsys, tmp_path):
    main, arguments, _ = TABLES["frey-faces"]
    main([*arguments, *COMMON[:-1], "--runs", str(tmp_path), "--rows", "standard-normal"])
    lines = capsys.readouterr().out.splitlines()
    heads = "ours +- published +- difference epochs training evaluation"
    assert lines[3].split() == heads.split()
    assert lines[4].startswith("standard-normal ") and " 4.630 " in lines[4] and len(lines) == 6
    assert "epochs at the most 2 (published 2000)" in lines[5] and "random split" in lines[5]


def test_a_row_that_was_stopped_is_gone_on_with(capsys, tmp_path, monkeypatch):
    main, arguments, _ = TABLES["iwae"]
    arguments = [*arguments, "--rows", "iwae-5"]
    whole = printed(capsys, main, arguments, tmp_path / "whole")["rows"][0]

    def stopping(*args, **options):
        def stop(epoch, record):
            if epoch == 2:
                raise KeyboardInterrupt

        return fit(*args, callbacks=[stop], checkpoint_seconds=0, **options)

    fit = tables.fit
    with monkeypatch.context() as patch:
        patch.setattr(tables, "fit", stopping)
        with pytest.raises(SystemExit) as stopped:
            tables.command(lambda: printed(capsys, main, arguments, tmp_path / "parts"))
        assert stopped.value.code == 130 and "same command" in capsys.readouterr().err
    assert not list((tmp_path / "parts").glob("**/training.json"))
    done = []

    def counted(*args, **options):
        return fit(*args, callbacks=[lambda epoch, record: done.append(epoch)], **options)

    monkeypatch.setattr(tables, "fit", counted)
    parts = printed(capsys, main, arguments, tmp_path / "parts")["rows"][0]
    assert done[-1] == 4 and 1 not in done
    assert parts["ours"] == whole["ours"] and parts["epochs"] == whole["epochs"] == 4
    # negative control: another seed gives another figure
    other = printed(capsys, main, [*arguments, "--seed", "1"], tmp_path / "whole")["rows"][0]
    assert other["ours"] != whole["ours"]


def test_evaluations_of_other_sizes_are_other_evaluations(capsys, tmp_path):
    main, arguments, _ = TABLES["iwae"]
    arguments = [*arguments, "--rows", "iwae-1"]
    printed(capsys, main, arguments, tmp_path)
    main([*arguments, *COMMON, "--runs", str(tmp_path), "--limit", "3"])
    assert json.loads(capsys.readouterr().out)["setting"]["images"] == 3
    names = sorted(p.name for p in tmp_path.glob("**/evaluation-*.json"))
    assert names == ["evaluation-3x20.json", "evaluation-5x20.json"]


def test_ppca_is_the_maximum_of_the_likelihood(capsys):
    ppca.main(["--q", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    images = small("mnist", dtype=torch.float64)
    x, test = images.train.flatten(1), images.test.flatten(1)
    s = torch.cov(x.T, correction=0)
    values, u = torch.linalg.eigh(s)
    noise = values[:-2].mean()
    c = noise * torch.eye(16, dtype=torch.float64)
    c = c + u[:, -2:] @ torch.diag(values[-2:] - noise) @ u[:, -2:].T
    p = torch.distributions.MultivariateNormal(x.mean(0), c)
    expected = [float(noise), float(p.log_prob(x).mean()), float(p.log_prob(test).mean())]
    ours = [row["ours"] for row in found["rows"]]
    assert ours == pytest.approx(expected, rel=1e-9)
    assert [row["published"] for row in found["rows"]] == list(ppca.REFERENCE[2])
    assert found["setting"]["largest difference of two draws"] < 1e-9
    # negative control: the covariance's own noise, of one number less, is seen
    assert ours[0] != pytest.approx(float(values[:-3].mean()), rel=1e-3)


def test_means_errors_and_paired_differences():
    a = {"log_evidence": [-100.0, -80.0, -60.0], "seconds": 2.0}
    b = {"log_evidence": [-101.0, -82.0, -63.0]}
    line = tables.of_run("a", {"epochs": 3, "seconds": 1.0}, a, (79.0, 0.5), differs="seed")
    assert (line.ours, line.difference, line.published_error) == (80.0, 1.0, 0.5)
    assert line.error == pytest.approx(20 / math.sqrt(3))
    bits = tables.of_run("a", {"epochs": 3, "seconds": 1.0}, a, (2.0, None), -1 / math.log(2))
    assert bits.ours == pytest.approx(80 / math.log(2))
    paired = tables.of_pairs("b - a", b, a, published=1.5)
    assert paired.ours == 2.0 and paired.error == pytest.approx(1 / math.sqrt(3))
    assert paired.difference == 0.5
    assert paired.error < line.error / 10  # negative control: what unpaired errors would say
    assert tables.of_pairs("none", b, a, published=None).difference is None
    assert tables.departures({"epochs": (2, 3), "seed": (0, 0)}, "x") == "epochs 2 (published 3); x"


def test_stages_and_warm_up():
    stages = tables.Stages(8)
    assert stages.epochs == 3280
    steps = 7  # of an epoch
    for i in range(8):
        first = (3**i - 1) // 2
        for epoch, factor in ((first, i), (first + 3**i - 1, i)):
            for step in (0, steps - 1):
                progress = (epoch * steps + step) / (stages.epochs * steps)
                assert stages(progress) == pytest.approx(10 ** (-factor / 7))
    assert stages(1.0) < stages(0.99)
    assert [tables.warm_up(4)(e) for e in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert tables.warm_up(0)(0) == 1.0


@pytest.mark.parametrize("main", [vamp_prior.main, frey_faces.main])
def test_a_warm_up_that_would_not_end_is_refused(main, capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        main(["--runs", str(tmp_path), "--epochs", "5"])
    assert refused.value.code == 2
    assert "expected --warm-up of at most the 5 epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--runs", str(tmp_path), "--epochs", "0"])
    assert "expected --epochs to be 1 or more; got 0" in capsys.readouterr().err


def test_adam_of_means_takes_the_steps_of_adam_of_sums():
    gradient = 1e-4 * torch.randn(50, generator=torch.Generator().manual_seed(1234))

    def stepped(make, gradient):
        p = torch.nn.Parameter(torch.zeros(50))
        optimizer = make([p])
        for _ in range(3):
            p.grad = gradient.clone()
            optimizer.step()
        return p.detach()

    def theirs(parameters):
        return torch.optim.Adam(parameters, lr=1e-3, betas=(0.99, 0.999), eps=1e-4)

    wanted = stepped(theirs, gradient)
    torch.testing.assert_close(stepped(lambda p: iwae.adam(p, 1e-3), gradient / 20), wanted)
    wrong = stepped(theirs, gradient / 20)  # negative control: the epsilon as it is
    assert float((wrong - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def test_two_levels_are_a_valid_pair():
    pair = vamp_prior.two_levels(SHAPE, vamp=False)
    report = testing.check_pair(pair.model, pair.guide, small("mnist", binarize="static").train[:3])
    assert report.ok, report


def test_log_variances_are_clipped():
    x = small("mnist", binarize="static").train[:6]
    q1, q2 = vamp_prior.two_levels(SHAPE, vamp=False).posterior.parts
    outputs = {q1: q1.net.net.joint.output, q2: q2.net.net.output}
    for q, output in outputs.items():
        for value, scale in ((50.0, math.e), (-50.0, math.exp(-3))):
            torch.nn.init.constant_(output.bias, value)
            with torch.no_grad():
                normal = (q(x, torch.zeros(6, 40)) if q is q1 else q(x)).base_dist
            torch.testing.assert_close(normal.scale, torch.full((6, 40), scale))
            assert float(normal.loc.abs().min()) > 10  # negative control: means are not clipped


def test_pixels_are_bounded_and_pseudo_inputs_step_by_levels():
    levels = small("frey-faces", values="levels").train[:6]
    vae = frey_faces.pair(SHAPE, vamp=True)
    assert testing.check_pair(vae.model, vae.guide, levels).ok
    with torch.no_grad():
        pixels = vae.decode(100 * torch.ones(1, 40)).base_dist
    assert float(pixels.scale.min()) >= math.exp(-4.5) and float(pixels.scale.max()) <= 1.0001
    assert 0 <= float(pixels.loc.min()) and float(pixels.loc.max()) <= 1
    made = frey_faces.optimizer(vae)(list(vae.parameters()), lr=1e-3)
    assert [group["lr"] for group in made.param_groups] == [1e-3, 0.255]
    assert made.param_groups[1]["params"][0] is vae.prior.pseudo_inputs
    plain = frey_faces.pair(SHAPE, vamp=False)
    assert len(frey_faces.optimizer(plain)(list(plain.parameters()), lr=1e-3).param_groups) == 1


def test_joined_reads_both_of_its_inputs():
    net = nets.joined(2)((5,), (2, 3))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1234))
    for column in (0, 4):
        moved = x.clone()
        moved[:, column] += 1
        assert not torch.equal(net(moved), net(x))
    assert net(x).shape == (4, 2, 3)
    assert [layer[0].in_shape for layer in net.first] == [(3,), (2,)]
