"""Trackers: what they are told, by name, of a run that goes on, and when they fail.

The packages are stood in for by records of the calls; with the real ones (tensorboard, mlflow,
wandb offline) `pyrovae train --track` was run by hand.
"""

import csv
import json
import logging
import sys
from types import SimpleNamespace

import pytest

from pyrovae.training import experiment, tracking

CALLS = []


class Recorder:
    """A module, or an object of it, every function of which writes its call down."""

    def __init__(self, name, **given):
        self.name = name
        self.__dict__.update(given)

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)

        def function(*args, **kwargs):
            CALLS.append((f"{self.name}.{attribute}", args, kwargs))
            return Recorder(self.name, id="id of it", info=SimpleNamespace(run_id="run of it"))

        return function


@pytest.fixture(autouse=True)
def packages(monkeypatch, tmp_path):
    CALLS.clear()
    monkeypatch.chdir(tmp_path)
    writer = Recorder("tensorboard").SummaryWriter
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)
    )
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, Recorder(name))


def run(tmp_path, track, **options):
    request = dict(
        data="digits", data_dir=None, download=False, binarize="none", dequantize=False,
        standardize=True, validation=None, prior="standard-normal", likelihood=None,
        posterior="mean-field-normal", objective="trace-mean-field", latent_dim=2,
        prior_options={}, likelihood_options={}, posterior_options={}, epochs=2, batch_size=500,
        lr=1e-3, seed=0, net="mlp", hidden=(4,),
    )  # fmt: skip
    return experiment.train(
        device=None, run=tmp_path / "a", say=lambda line: None, track=track, **request | options
    )


def calls(name):
    return [(args, kwargs) for called, args, kwargs in CALLS if called == name]


def test_each_epoch_goes_to_every_tracker(tmp_path):
    run(tmp_path, ["tensorboard", "mlflow", "wandb"])
    with (tmp_path / "a" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    scalars = [args for args, _ in calls("tensorboard.add_scalar") if args[0] == "loss"]
    assert scalars == [("loss", losses[0], 1), ("loss", losses[1], 2)]
    for name in ("mlflow.log_metrics", "wandb.log"):
        assert [(args[0]["loss"], kwargs["step"]) for args, kwargs in calls(name)] == [
            (losses[0], 1), (losses[1], 2)
        ]  # fmt: skip
        assert all("epoch" not in args[0] for args, _ in calls(name))
    ((parameters,), _) = calls("mlflow.log_params")[0]
    assert parameters["build.prior"] == "standard-normal" and parameters["training.epochs"] == 2
    assert calls("wandb.init")[0][1]["config"]["build"]["latent_dim"] == 2
    for closing in ("tensorboard.close", "mlflow.end_run", "wandb.finish"):
        assert len(calls(closing)) == 1
    kept = json.loads((tmp_path / "a" / tracking.KEPT).read_text())
    assert kept == {"mlflow": "run of it", "wandb": "id of it"}


def test_a_run_that_goes_on_goes_on_there(tmp_path):
    run(tmp_path, ["mlflow", "wandb"])
    CALLS.clear()
    run(tmp_path, ["mlflow", "wandb"], resume=True)
    assert calls("mlflow.start_run") == [((), {"run_id": "run of it"})]
    assert not calls("mlflow.log_params") and calls("wandb.init")[0][1]["id"] == "id of it"


def test_trackers_are_closed_whatever_happens(tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["mlflow"])
    assert len(calls("mlflow.end_run")) == 1
    assert not (tmp_path / "a" / "config.json").exists()


def test_a_tracker_that_fails_is_a_warning(tmp_path, caplog, monkeypatch):
    def log_metrics(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", log_metrics, raising=False)
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        assert len(run(tmp_path, ["mlflow"]).history) == 2
    told = [r.getMessage() for r in caplog.records if r.name.startswith("pyrovae")]
    assert told == ["mlflow does not follow: no network"] * 2


def test_what_cannot_be_begun_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="expected tracker to be one of mlflow, tensor-board, wandb"
    ):
        run(tmp_path, ["comet"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ImportError, match=r"--track wandb; it is not .*pip install 'pyrovae\[wandb\]'"
    ):
        run(tmp_path, ["wandb"])

    def start_run(*args, **kwargs):
        raise KeyError("a store")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", start_run, raising=False)
    with pytest.raises(RuntimeError, match="mlflow cannot be begun: 'a store'"):
        run(tmp_path, ["mlflow"])
    assert not (tmp_path / "a").exists()
