"""Training that is killed, stopped or short of room ends, gone on with, as if it had not been."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyrovae import build, fit
from pyrovae.data import binarize
from pyrovae.objectives import BetaELBO
from pyrovae.objectives.schedules import Linear
from pyrovae.optimise import Plateau
from pyrovae.training import checkpoints, loop, stopping
from pyrovae.training.loop import Loop

FORKS = multiprocessing.get_context("forkserver")  # one import of torch for all of them
FORKS.set_forkserver_preload(["torch", "pyrovae", "pyrovae.training"])


def train(run, resume=False, every=0.0, epochs=12, **options):
    """Everything that has a state: warm-up, plateau, validation, rows binarised afresh."""
    x = torch.rand(70, 6, generator=torch.Generator().manual_seed(1234))
    vae = build(data_shape=(6,), latent_dim=2, hidden=(16,), seed=3)
    history = fit(
        vae.model, vae.guide, x, BetaELBO(1.0, Linear(2)), epochs=epochs, batch_size=16, lr=0.01,
        validation=(x[:20] > 0.5).float(), transform=binarize, schedule=Plateau(patience=1),
        run=run, resume=resume, checkpoint_seconds=every, **options,
    )  # fmt: skip
    return vae, history


def kept(run):
    """What a run left: its weights as bytes, and its history without the times."""
    rows = [line.rsplit(",", 1)[0] for line in (run / "history.csv").read_text().splitlines()]
    return (run / "model.safetensors").read_bytes(), rows


def child(run):
    torch.set_num_threads(1)
    train(run, resume=True)


def killed(run, chance):
    """Kill a training at random: while it saves, where chance says so; return whether it lived."""
    process = FORKS.Process(target=child, args=(run,))
    process.start()
    folder = run / checkpoints.FOLDER
    while process.is_alive() and not folder.exists():
        time.sleep(0.001)
    wait = time.monotonic() + chance.uniform(0, 0.25)
    during = chance.random() < 0.6
    while process.is_alive() and time.monotonic() < wait + during * 0.5:
        if during and time.monotonic() > wait and any(folder.glob(checkpoints.LITTER + "*")):
            break
    alive = process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return alive


def killed_runs(tmp_path, number):
    """Kill so many runs; return how many were alive then, and in how many saves they were."""
    chance, alive, saving = random.Random(1234), 0, 0
    train(tmp_path / "whole", every=1000.0)
    for i in range(number):
        run = tmp_path / f"killed-{i}"
        alive += killed(run, chance)
        saving += any((run / checkpoints.FOLDER).glob(checkpoints.LITTER + "*"))
        train(run, resume=True)
        assert kept(run) == kept(tmp_path / "whole"), i
        assert not any((run / checkpoints.FOLDER).glob(checkpoints.LITTER + "*"))
        assert len(list((run / checkpoints.FOLDER).iterdir())) == checkpoints.KEPT
    return alive, saving


def test_killed_runs_end_bit_for_bit(tmp_path):
    alive, _ = killed_runs(tmp_path, 5)
    assert alive >= 3


@pytest.mark.slow
def test_fifty_killed_runs_end_bit_for_bit(tmp_path):
    """`pytest -n 0 -m slow -s -k fifty_killed`."""
    alive, saving = killed_runs(tmp_path, 50)
    print(f"\n50 of 50 as if not killed; {alive} were killed under way, {saving} while they saved")
    assert alive >= 35 and saving >= 10


def test_noise_that_went_on_would_be_found(tmp_path, monkeypatch):
    """Negative control: noise that depends on the process, not on the step."""
    train(tmp_path / "whole")
    monkeypatch.setattr(loop, "mixed", lambda seed, *numbers: seed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", callbacks=[stop_after(2)])
    train(tmp_path / "a", resume=True)
    assert kept(tmp_path / "a") != kept(tmp_path / "whole")


def stop_after(epochs):
    def callback(epoch, record):
        if epoch == epochs:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_end_of_a_step(tmp_path, number, monkeypatch):
    train(tmp_path / "whole", every=1000.0)
    steps, plain = iter(range(99)), Loop._after_step

    def after(self):
        if next(steps) == 7:
            os.kill(os.getpid(), number)
        plain(self)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_after_step", after)
        with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2, after step 3; .*--resume"):
            train(tmp_path / "a", every=1000.0)
    assert signal.getsignal(number) is before
    train(tmp_path / "a", resume=True, every=1000.0)
    assert kept(tmp_path / "a") == kept(tmp_path / "whole")


def test_the_second_signal_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    try:
        _second_signal()
    finally:
        signal.signal(signal.SIGINT, before)


def _second_signal():
    with pytest.raises(KeyboardInterrupt), stopping.asked_to_stop(True) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the second did nothing")
    with stopping.asked_to_stop(False) as asked, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_the_command_line_stops_and_goes_on(tmp_path):
    """Ctrl-C: exit 130 and a checkpoint; --run and --resume alone go on, to the same end."""
    words = [sys.executable, "-m", "pyrovae", "train"]
    options = ["--epochs", "60", "--hidden", "16", "--latent-dim", "2"]
    process = subprocess.Popen(
        [*words, *options, "--run", "a", "--checkpoint-seconds", "0"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "a" / checkpoints.FOLDER).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130, told
    assert "interrupted: stopped in epoch" in told and "--resume" in told, told
    assert "Traceback" not in told
    assert not (tmp_path / "a" / "model.safetensors").exists()
    for run, more in (("a", ["--resume"]), ("b", options)):
        subprocess.run([*words, *more, "--run", run], cwd=tmp_path, check=True, capture_output=True)
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in second)


def full_disk(run):
    train(run, every=1000.0, epochs=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    try:
        train(run.parent / "b", epochs=2)
    except OSError as error:
        (run.parent / "told").write_text(str(error))


def test_a_disk_without_room_loses_nothing(tmp_path):
    """A file may not grow beyond 6,000 bytes: as a disk that is full, in the middle of a save."""
    process = FORKS.Process(target=full_disk, args=(tmp_path / "a",))
    process.start()
    process.join()
    told = (tmp_path / "told").read_text()
    assert "the checkpoint of step 1 cannot be written" in told and "is intact: make room" in told
    assert not any((tmp_path / "b" / checkpoints.FOLDER).iterdir())
    train(tmp_path / "b", resume=True, epochs=2)
    train(tmp_path / "c", epochs=2)
    assert kept(tmp_path / "b") == kept(tmp_path / "c")


def test_a_failed_save_leaves_those_before_it(tmp_path, monkeypatch):
    train(tmp_path / "whole")
    saves, plain = iter(range(99)), os.fsync

    def fsync(handle):
        if next(saves) == 17:
            raise OSError(28, "No space left on device")
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device; what was there before is"):
            train(tmp_path / "a")
    assert len(list((tmp_path / "a" / checkpoints.FOLDER).iterdir())) == checkpoints.KEPT
    train(tmp_path / "a", resume=True)
    assert kept(tmp_path / "a") == kept(tmp_path / "whole")


def test_another_request_is_not_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", callbacks=[stop_after(2)])
    with pytest.raises(ValueError, match="epochs was 12, now asked for 7: leave it as it was"):
        train(tmp_path / "a", resume=True, epochs=7)
    with pytest.raises(ValueError, match="resume=True without run"):
        train(None, resume=True)
    assert len(train(Path(tmp_path / "a"), resume=True)[1]) == 12
