"""All benchmarks, one after the other, with their figures: half an hour of an idle machine.

PYROVAE_DATA=FOLDER PYTHONPATH=tests python -m benchmarks --out FOLDER     # --quick for a look
"""

import argparse
from pathlib import Path

from benchmarks import bound, cost, evidence, ranks, step, streams


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rounds = ["--rounds", "1"] if options.quick else []
    batches = ["--batch", "128"] if options.quick else []
    for model in step.MODELS:
        print(f"\n# a step: {model}")
        step.main(["--model", model, "--png", f"{options.out}/step-{model}.png", *rounds, *batches])
    print("\n# evidence")
    evidence.main(rounds)
    print("\n# its memory")
    evidence.main(["--memory"])
    print("\n# exponents of cost")
    cost.main(["--png", f"{options.out}/cost.png", *(["--rounds", "2"] if options.quick else [])])
    print("\n# seconds to a bound, and memory")
    bound.main([])
    print("\n# two processes")
    ranks.main([*rounds, *(["--rows", "128"] if options.quick else [])])
    print("\n# data on disk")
    streams.main([*rounds, *batches])


if __name__ == "__main__":
    main()
