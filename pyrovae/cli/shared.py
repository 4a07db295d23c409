"""What every command is: one message in place of a traceback, and an exit status."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and look at variational autoencoders written as Pyro programs.",
)


def main() -> None:
    """Run the command line: exit 0, 1 (it failed), 2 (the request was wrong) or 130 (stopped).

    Of several processes that torchrun started, the first alone talks.
    """
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # to the end of the process
    app()


def command(function: Callable) -> Callable:
    """Make a command of a function: one message in place of a traceback, and its exit status."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            if function.__name__ != "train":  # which makes such directories, and goes on in them
                _refuse_seeds(kwargs.get("run"), *kwargs.get("runs", ()))
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            _fail(error, 2)
        except (RuntimeError, OSError, ArithmeticError, ImportError) as error:
            if isinstance(error, typer.Exit):
                raise
            _fail(error, 1)
        except KeyboardInterrupt as stopped:
            _fail(f"interrupted: {stopped}" if str(stopped) else "interrupted", 130)

    return app.command()(wrapped)


def _refuse_seeds(*runs: Path | None) -> None:
    from pyrovae.training.seeds import refuse_seeds

    for run in runs:
        if run is not None:
            refuse_seeds(run)


def _fail(error: object, code: int) -> None:
    say(f"Error: {error}")
    raise typer.Exit(code) from None


def say(message: str) -> None:
    """Print a line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)
