"""What is on disk is what was written, or an error says what is wrong; one writer."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import stat
import struct

import pytest
import torch
from safetensors.torch import load_file, save
from test_killed import stop_after, train

from pyrovae import build, fit, load
from pyrovae.training import checkpoints, locking, rundir
from pyrovae.training.checkpoints import CheckpointError, load_newest

X = (torch.rand(40, 4, generator=torch.Generator().manual_seed(1234)) > 0.3).float()


def make(**options):
    return build(**{"data_shape": (4,), "latent_dim": 2, "hidden": (8,), "seed": 0} | options)


def fitted(run=None, vae=None, data=X, **options):
    vae = make() if vae is None else vae
    return vae, fit(
        vae.model, vae.guide, data, **{"epochs": 2, "batch_size": 16, "run": run} | options
    )


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, stopped under way."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", callbacks=[stop_after(3)])
    return tmp_path / "a"


def newest(run):
    return max((run / checkpoints.FOLDER).iterdir())


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


# The state


def test_any_state_comes_back(tmp_path):
    optimizer = torch.optim.LBFGS([torch.ones(2, requires_grad=True)])
    state = {
        "a": [1, 2.5, None, True, "b", (3, [4.0])], "of": {1: torch.arange(3), "$tensor": 2},
        "inf": float("inf"), "empty": {}, "bytes": torch.rand(2, 3).to(torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.float64), "lbfgs": optimizer.state_dict(),
    }  # fmt: skip
    checkpoints.save(tmp_path, 3, state)
    path, found = load_newest(tmp_path)
    assert path.name == "00000003" and equal(found, state)
    with pytest.raises(TypeError, match="got set at of.1"):
        checkpoints.save(tmp_path, 4, {"of": [0, {1}]})
    assert [p.name for p in (tmp_path / checkpoints.FOLDER).iterdir()] == ["00000003"]


def test_the_last_two_are_kept_and_litter_is_swept(tmp_path):
    for step in (5, 9, 100, 1000):
        checkpoints.save(tmp_path, step, {"step": step})
        (tmp_path / checkpoints.FOLDER / f"{checkpoints.LITTER}x").mkdir()
    assert load_newest(tmp_path)[1] == {"step": 1000}
    names = {p.name for p in (tmp_path / checkpoints.FOLDER).iterdir()}
    assert names == {"00000100", "00001000"}


def test_others_may_read_what_the_umask_lets_them(run):
    before = os.umask(0o027)
    try:
        checkpoints.save(run, 999, {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(newest(run).stat().st_mode) == 0o750
    modes = {stat.S_IMODE(p.stat().st_mode) for p in newest(run).iterdir()}
    assert modes == {0o640}


# Damage


def rewritten(path, **changes):
    """Change a file of a checkpoint, and let the manifest say that it is right."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, content in changes.items():
        name = {"state": checkpoints.STATE, "tensors": checkpoints.TENSORS}[name]
        (path / name).write_bytes(content)
        told = {"bytes": len(content), "sha256": checkpoints._digest(content)}
        manifest["files"][name] = told
    (path / "manifest.json").write_text(json.dumps(manifest))


def flipped(path, name, at):
    content = bytearray((path / name).read_bytes())
    content[at] ^= 1
    (path / name).write_bytes(content)


def with_manifest(change):
    def damage(path):
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damage


DAMAGE = {
    "truncated": lambda p: os.truncate(p / checkpoints.TENSORS, 100),
    "empty": lambda p: os.truncate(p / checkpoints.STATE, 0),
    "empty manifest": lambda p: os.truncate(p / "manifest.json", 0),
    "flipped in the tensors": lambda p: flipped(p, checkpoints.TENSORS, -5),
    "flipped in the state": lambda p: flipped(p, checkpoints.STATE, 40),
    "missing": lambda p: (p / checkpoints.TENSORS).unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "another format": with_manifest(lambda m: m.update(format=99)),
    "no files": with_manifest(lambda m: m.update(files={})),
    "a list": lambda p: (p / "manifest.json").write_text("[1]"),
    "a path that leaves": with_manifest(
        lambda m: m.update(files={"../../../etc/passwd": m["files"][checkpoints.STATE]})
    ),
    "a giant header": lambda p: rewritten(p, tensors=struct.pack("<Q", 2**62) + b"{}"),
    "no safetensors": lambda p: rewritten(p, tensors=b"\x80\x04K\x01."),  # a pickle
    "a tensor too few": lambda p: rewritten(p, tensors=save({"a": torch.ones(1)})),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_and_the_one_before_is_taken(run, kind):
    DAMAGE[kind](newest(run))
    path, _ = load_newest(run)
    assert [p.name for p in (run / checkpoints.FOLDER).iterdir()] == [path.name]
    DAMAGE[kind](path)
    with pytest.raises(
        CheckpointError, match="no checkpoint of .* is whole: .* damaged: .*train anew"
    ):
        load_newest(run)
    with pytest.raises(CheckpointError, match="is damaged"):
        train(run, resume=True)


def test_a_checkpoint_of_another_pair_is_refused(run):
    state = load_newest(run)[1]
    name = next(n for n in state["weights"] if n.endswith("weight"))
    good = state["weights"][name]
    for value, message in (
        (good[:-1], "expected .* got"),
        (good.double(), "torch.float32; got .* torch.float64"),
        (good * torch.nan, "is not finite"),
    ):
        state["weights"][name] = value
        shutil.rmtree(run / checkpoints.FOLDER)
        checkpoints.save(run, 15, state)
        with pytest.raises(CheckpointError, match=message):
            train(run, resume=True)
    del state["weights"][name]
    shutil.rmtree(run / checkpoints.FOLDER)
    checkpoints.save(run, 15, state)
    with pytest.raises(
        CheckpointError, match="is in one of the two alone: build the pair as it was"
    ):
        train(run, resume=True)


def corrupted(run, chance):
    """Change some bytes of some file of a run, cut it, or empty it."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "lock")
    path = chance.choice(files)
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "bytes", "cut", "zeros", "insert", "remove"])
    at = chance.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "bytes":
        content[at : at + 8] = chance.randbytes(len(content[at : at + 8]))
    elif kind == "cut":
        content = content[:at]
    elif kind == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif kind == "insert":
        content[at:at] = chance.randbytes(3)
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    return path


def weights_of(run):
    return dict(load(run).state_dict())


def taken(run):
    return load_newest(run)[1]


def test_a_thousand_corruptions_load_equal_or_not_at_all(tmp_path):
    """Of a run that has ended, and of its checkpoints; some of either kind must have occurred."""
    train(tmp_path / "a", epochs=2)
    weights, config = weights_of(tmp_path / "a"), rundir.read_config(tmp_path / "a")
    before, state = (
        checkpoints._read(path) for path in sorted((tmp_path / "a" / checkpoints.FOLDER).iterdir())
    )
    chance, told, same = random.Random(1234), 0, 0
    for i in range(1000):
        run = tmp_path / "b"
        shutil.copytree(tmp_path / "a", run)
        path = corrupted(run, chance)
        for what, expected in ((weights_of, weights), (rundir.read_config, config), (taken, None)):
            try:
                found = what(run)
            except (CheckpointError, FileNotFoundError) as error:
                assert str(run) in str(error), i
                told += 1
                continue
            if expected is None:  # the newest, or the one before
                expected = state if found["descent"]["step"] == state["descent"]["step"] else before
            assert equal(found, expected), (i, path)
            same += 1
        shutil.rmtree(run)
    assert told > 200 and same > 1000


def test_numbers_that_changed_under_an_old_file_are_not_found(tmp_path):
    """Negative control: without the digest a flipped byte of a weight goes unseen."""
    fitted(tmp_path / "a")
    content = bytearray((tmp_path / "a" / rundir.WEIGHTS).read_bytes())
    content[-3] ^= 1
    (tmp_path / "a" / rundir.WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: it is not what was written"):
        load(tmp_path / "a")
    without = bytes(content).replace(rundir.DIGEST.encode(), b"nothing")
    without = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 1) + without[8:]
    (tmp_path / "a" / rundir.WEIGHTS).write_bytes(without)
    load(tmp_path / "a")


def test_a_flipped_byte_of_tensors_is_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    rundir.write_tensors(path, {"log_evidence": torch.arange(5.0)})
    assert torch.equal(rundir.read_tensors(path)["log_evidence"], torch.arange(5.0))
    flipped(tmp_path, path.name, -2)
    assert len(load_file(path)["log_evidence"]) == 5  # negative control: safetensors sees nothing
    with pytest.raises(CheckpointError, match="not what was written"):
        rundir.read_tensors(path)


def test_epochs_whose_state_was_not_kept_are_written_down_once(tmp_path):
    """Killed after an epoch's row and before any checkpoint: the history begins anew."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / rundir.HISTORY).write_text("epoch,loss\n1,2.0\n2,1.0\n")
    rows = []

    def count(epoch, record):
        rows.append((tmp_path / "a" / rundir.HISTORY).read_text().count("\n"))

    train(tmp_path / "a", resume=True, every=1000.0, epochs=3, callbacks=[count])
    assert rows == [2, 3, 4]  # a header, and each epoch once


# One writer


def hold(run, ready, leave):
    with locking.locked(run):
        ready.set()
        leave.wait()


def test_one_directory_has_one_writer(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, leave))
    process.start()
    ready.wait()
    with pytest.raises(ValueError, match=f"one writer; process {process.pid} of .*, since"):
        fitted(tmp_path)
    process.kill()
    process.join()
    assert (tmp_path / "lock").exists(), "it is stale now"
    fitted(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_a_lock_without_the_systems_help(tmp_path, monkeypatch):
    """Where there is no flock the process that the file names is looked for."""
    monkeypatch.setitem(__import__("sys").modules, "fcntl", None)
    (tmp_path / "lock").write_text(
        json.dumps({"pid": 1, "host": locking.socket.gethostname(), "since": "x"})
    )
    with pytest.raises(ValueError, match="process 1 of"):
        fitted(tmp_path)
    gone = {"pid": 2**22 - 3, "host": locking.socket.gethostname(), "since": "x"}
    (tmp_path / "lock").write_text(json.dumps(gone))
    fitted(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lock").write_text(json.dumps(gone | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match="of elsewhere"):
        fitted(tmp_path / "b")


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        fitted(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write to .*: name another --run"):
        fitted(tmp_path / "file" / "a")
    if os.geteuid() == 0:
        with pytest.raises(OSError, match="cannot write to /proc/a: .*name another"):
            fitted("/proc/a")
        return
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match="Permission denied: name another"):
        fitted(tmp_path / "a")


# Steps that are not finite


def explode(vae, at):
    """Let the decoder's output, or its gradient, be NaN in some steps."""
    count = iter(range(10**6))

    def hook(module, args, output):
        if not module.training:
            return output
        return output * (torch.nan if next(count) in at else 1.0)

    vae.likelihood.net.register_forward_hook(hook)
    return vae


def weights(vae):
    return torch.cat([p.detach().flatten().clone() for p in vae.parameters()])


def test_a_step_that_is_not_finite_is_not_taken_and_the_site_is_named(tmp_path):
    vae = explode(make(), at={5, 6, 7, 8})
    with pytest.raises(FloatingPointError) as error:
        fitted(tmp_path / "a", vae, epochs=3)
    told = str(error.value)
    assert "the loss is nan in epoch" in told and "try a lower lr" in told
    assert (
        "first at site " in told
        and "log p of the model is nan in 16 of the batch's 16 rows" in told
    )
    kept = load_newest(tmp_path / "a")[1]["weights"]
    assert all(torch.equal(kept[f"0:{name}"], p) for name, p in vae.named_parameters())
    assert weights(vae).isfinite().all()


def test_steps_are_left_out_up_to_a_number(caplog):
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        vae, history = fitted(vae=explode(make(), at={3, 6}), epochs=3, nonfinite="skip:4")
    assert weights(vae).isfinite().all() and len(history) == 3
    told = [r.getMessage() for r in caplog.records if "Left out" in r.getMessage()]
    assert 1 <= len(told) <= 4 and all("epoch" in line for line in told)
    with pytest.raises(FloatingPointError, match=r"\(after skip:1\)"):
        fitted(vae=explode(make(), at=range(3, 20)), epochs=3, nonfinite="skip:1")


def test_backing_off_halves_the_rate():
    _, history = fitted(vae=explode(make(), at={3}), epochs=3, nonfinite="back-off:3", lr=0.008)
    assert history["lr"][-1] == pytest.approx(0.004)
    _, plain = fitted(epochs=3, lr=0.008, nonfinite="skip:3")
    assert plain["lr"][-1] == 0.008


def test_a_gradient_that_is_not_finite_is_found():
    """sqrt at 0: the loss is finite, its gradient is not."""
    vae = make()
    vae.likelihood.net.register_forward_hook(
        lambda m, a, out: out + (out.detach() * 0 + (out - out).abs()).sqrt()
    )
    with pytest.raises(FloatingPointError, match="gradient is not finite .* gradient of "):
        fitted(vae=vae)


@pytest.mark.parametrize("policy", ["", "skip", "skip:0", "skip:x", "raise:3", "back-off:-1", "no"])
def test_other_policies_are_refused(policy):
    with pytest.raises(ValueError, match="raise, skip:N or back-off:N, N a positive"):
        fitted(nonfinite=policy)


def test_data_that_are_not_finite_are_refused_at_the_door(tmp_path):
    x = X.clone()
    x[7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"(?s)nan.*\(7, 2\)"):
        fitted(tmp_path / "a", data=x)
    assert not (tmp_path / "a").exists()
