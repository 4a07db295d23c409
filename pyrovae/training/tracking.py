"""What follows a training elsewhere: TensorBoard, MLflow, Weights & Biases.

A tracker is a callback of `fit` that may be closed: `tracker(epoch, record)` after every epoch, and
`tracker.close()` when training ends, however it does. To write another, write a class like these.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pyrovae.evidence.progress import write
from pyrovae.nets.naming import by_name
from pyrovae.training.loop import Callback

LOG = logging.getLogger(__name__)

KEPT = "tracking.json"  # in the run's directory: the names of its runs elsewhere


class Tracker(Protocol):
    """Where an epoch's record goes."""

    def __call__(self, epoch: int, record: Mapping[str, float | None]) -> None:
        """Take the record of an epoch, counted from 1."""

    def close(self) -> None:
        """Finish."""


class TensorBoard:
    """Scalars by epoch, in RUN/tensorboard: `tensorboard --logdir runs`.

    Args:
        run: the run's directory.
        config: of the run.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        with _extra("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.make, self.folder = SummaryWriter, run / "tensorboard"
        self.writer: Any = None

    def __call__(self, epoch: int, record: Mapping[str, float | None]) -> None:
        """Take the record of an epoch; what an earlier process wrote of it or later goes."""
        if self.writer is None:
            self.writer = self.make(str(self.folder), purge_step=epoch)
        for name, value in _numbers(record).items():
            self.writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Finish."""
        if self.writer is not None:
            self.writer.close()


class MLflow:
    """Parameters, and metrics by epoch, where MLFLOW_TRACKING_URI says, by default here.

    Args:
        run: the run's directory.
        config: of the run.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        with _extra("mlflow"):
            import mlflow
        known = _known(run).get("mlflow")
        began = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=run.name)
        if known is None:
            mlflow.log_params(dict(_flat(config)))
            _keep(run, mlflow=began.info.run_id)
        self.mlflow = mlflow

    def __call__(self, epoch: int, record: Mapping[str, float | None]) -> None:
        """Take the record of an epoch."""
        self.mlflow.log_metrics(_numbers(record), step=epoch)

    def close(self) -> None:
        """Finish."""
        self.mlflow.end_run()


class Wandb:
    """Weights & Biases: configuration, and metrics by epoch; WANDB_MODE=offline needs no network.

    Args:
        run: the run's directory.
        config: of the run.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        with _extra("wandb"):
            import wandb
        self.run = wandb.init(
            project="pyrovae", name=run.name, dir=str(run), config=dict(config), resume="allow",
            id=_known(run).get("wandb"),
        )  # fmt: skip
        _keep(run, wandb=self.run.id)

    def __call__(self, epoch: int, record: Mapping[str, float | None]) -> None:
        """Take the record of an epoch."""
        self.run.log(_numbers(record), step=epoch)

    def close(self) -> None:
        """Finish."""
        self.run.finish()


TRACKERS = {"TensorBoard": TensorBoard, "MLflow": MLflow, "Wandb": Wandb}


@contextlib.contextmanager
def trackers(
    names: Sequence[str], run: Path, config: Mapping[str, Any]
) -> Iterator[list[Callback]]:
    """Make trackers by name for the block, and close them at its end.

    What goes wrong with one later, as a network that is down, is a warning: training goes on.

    Args:
        names: tensorboard, mlflow or wandb.
        run: the run's directory.
        config: of the run, as JSON-able data.

    Raises:
        ValueError: an unknown name.
        ImportError: a package is not installed; the message names the extra.
        RuntimeError: one cannot be begun.
    """
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            kind = by_name("tracker", name, TRACKERS)
            try:
                tracker: Tracker = kind(run, config)
            except ImportError:
                raise
            except Exception as error:  # of a package's own kinds
                raise RuntimeError(
                    f"{name} cannot be begun: {error}: mend it, or leave it out"
                ) from error
            stack.callback(_guarded(name, tracker.close))
            made.append(_guarded(name, tracker))
        yield made


def _guarded(name: str, function: Callable) -> Callable:
    """Return a function whose errors are warnings."""

    def call(*args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            LOG.warning("%s does not follow: %s", name, error)

    return call


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"expected {name} to be installed for --track {name}; it is not ({error}): "
            f"pip install 'pyrovae[{name}]'"
        ) from None


def _numbers(record: Mapping[str, float | None]) -> dict[str, float]:
    return {k: float(v) for k, v in record.items() if v is not None and k != "epoch"}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("build.prior", "standard-normal") and its like."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _known(run: Path) -> dict[str, str]:
    path = run / KEPT
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _keep(run: Path, **names: str) -> None:
    content = json.dumps(_known(run) | names, indent=2) + "\n"
    write(run / KEPT, lambda path: path.write_text(content))
