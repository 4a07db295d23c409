"""Instructions of one training step: a figure that a noisy machine does not move.

    PYTHONPATH=tests python -m benchmarks.instructions          # --steps 20 --batch 128

Counted by `perf stat` where it can count them, or else by valgrind's callgrind (minutes, and a
processor without AVX-512, so that products of matrices take another path): of a process that takes
so many steps and of one that takes twice as many; the figure is the difference, a step.

    eager      the steps of `fit(compile="never")` on a 784-400-20 VAE
    pyro       SVI.step
    torch      by hand
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("eager", "pyro", "torch")
WORK = """
import sys, torch
torch.set_num_threads(1)
from benchmarks import step
name, batch, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
vae, batches = step.task(batch, steps)
learner = step.contenders()[name](vae, batches)
learner.train(batches)
"""


def by_perf(command: list[str]) -> float | None:
    """Return the instructions of a command, None where perf cannot count them."""
    if shutil.which("perf") is None:
        return None
    words = ["perf", "stat", "-x,", "-e", "instructions:u", *command]
    told = subprocess.run(words, capture_output=True, text=True).stderr
    found = re.search(r"^(\d+),", told, re.M)
    return float(found[1]) if found else None


def by_callgrind(command: list[str]) -> float | None:
    """Return the instructions of a command, None without valgrind or where it fails."""
    if shutil.which("valgrind") is None:
        return None
    words = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command]
    told = subprocess.run(words, capture_output=True, text=True).stderr
    found = re.search(r"Collected : (\d+)", told)
    return float(found[1]) if found else None


def counted(name: str, batch: int, steps: int) -> float | None:
    """Return the instructions of a step."""
    for count in (by_perf, by_callgrind):
        once, twice = (
            count([sys.executable, "-c", WORK, name, str(batch), str(n)])
            for n in (steps, 2 * steps)
        )
        if once is not None and twice is not None:
            return (twice - once) / steps
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {name: counted(name, options.batch, options.steps) for name in options.names}
    if options.json:
        print(json.dumps(found))
        return
    for name, number in found.items():
        told = "neither perf nor valgrind can count here" if number is None else f"{number:,.0f}"
        print(f"{name:8}{told}")


if __name__ == "__main__":
    main()
