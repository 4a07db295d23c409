"""The command that repeats a run, from its `config.json`."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pyrovae.pairs.base import Pair
from pyrovae.training.support import on_the_real_line

OPTIONS = ("pair", "prior", "likelihood", "posterior", "net")  # each has --NAME and --NAME-option

DEFAULTS = {  # of runs older than the choice
    "optimizer": "adam", "schedule": "constant", "compile": "auto", "nonfinite": "raise",
    "precision": "float32",
}  # fmt: skip
TRAINING = ("epochs", "batch_size", "lr", *DEFAULTS, "seed")


def command(config: Mapping[str, Any], vae: Pair) -> str:
    """Return the `pyrovae train` command that trains a run once more, in a directory of its own.

    It names every choice, defaults too: it stays right where a default changes.

    Args:
        config: of the run, as `rundir.read_config` gives it.
        vae: the pair, which tells what columns of a table might have been standardised.

    Raises:
        ValueError: the configuration says too little.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(8, 8), latent_dim=2, hidden=(16,))
        >>> training = {"objective": "trace", "epochs": 3, "batch_size": 9, "lr": 0.1, "seed": 0}
        >>> data = {"source": "digits", "binarize": "static"}
        >>> command({"build": vae.config, "data": data, "training": training}, vae)[:61]
        'pyrovae train --data digits --binarize static --pair vae --pr'
    """
    try:
        build, data, training = (config[key] for key in ("build", "data", "training"))
        words = ["--data", data["source"]]
        if data.get("data_dir") is not None:
            words += ["--data-dir", data["data_dir"]]
        if data["binarize"] != "none":
            words += ["--binarize", data["binarize"]]
        if data.get("dequantize"):
            words += ["--dequantize"]
        if data.get("stream"):
            words += ["--stream"]
        if data.get("validation") is not None:
            words += ["--validation", data["validation"]]
        words += [] if _standardized(config, vae) else ["--no-standardize"]
        for part in OPTIONS:
            words += [f"--{part}", build[part] if part != "pair" else build.get(part, "vae")]
        options = {part: build.get(f"{part}_options", {}) for part in OPTIONS}
        options["objective"] = training.get("objective_options", {})
        for part, chosen in options.items():
            for key, value in chosen.items():
                words += [f"--{part}-option", f"{key}={_value(value)}"]
        words += ["--hidden", ",".join(map(str, build["hidden"]))]
        words += ["--latent-dim", build["latent_dim"], "--objective", training["objective"]]
        for key in TRAINING:
            value = training.get(key, DEFAULTS[key]) if key in DEFAULTS else training[key]
            words += [f"--{key.replace('_', '-')}", value]
        if data.get("seed", training["seed"]) != training["seed"]:  # one of several seeds
            words += ["--split-seed", data["seed"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a configuration that `pyrovae train` wrote; got one without {error}"
        ) from None
    return "pyrovae train " + shlex.join(map(str, words))


def _standardized(config: Mapping[str, Any], vae: Pair) -> bool:
    """Was the table standardised, or could it not be?"""
    record = config.get("record", {})
    able = len(vae.likelihood.data_shape) == 1 and config["data"].get("values") != "levels"
    return "scale" in record or not (able and bool(on_the_real_line(vae.likelihood).any()))


def _value(value: Any) -> str:
    """Write a value so that the command line reads it back: text as it is, unless JSON reads it."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return value or '""'
    return json.dumps(value)
