"""How well LeNet-5 learns: `python benchmarks/lenet.py [--minutes M] [--seeds N] [--threads T]`.

Trains the network of 1998 by its recipe on all 60,000 images of Fashion-MNIST, where the Debian package
`dataset-fashion-mnist` is installed, and judges the 10,000 of the original test set once, after training. The figures
go to results/lenet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

import fashion
import numpy as np
import torch

import fathom

RESULTS = fashion.HERE / "results" / "lenet.json"
BAR = 0.90  # accuracy


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--minutes", type=float, help="the most that training may take; by default the recipe's epochs"
    )
    options.add_argument("--seeds", type=int, default=1, help="runs, with seeds 0, 1, …")
    options.add_argument("--threads", type=int, default=0, help="to train with; 0: measured")
    given = options.parse_args()
    source, test = fashion.whole_set()
    runs = [run(source, test, given.minutes, seed, given.threads) for seed in range(given.seeds)]
    record = {
        "what": "LeNet-5 on Fashion-MNIST, full",
        "bar": {"accuracy": BAR},
        "reached": all(r["accuracy"] >= BAR for r in runs),
        "mean_accuracy": float(np.mean([r["accuracy"] for r in runs])),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def run(source: Any, test: Any, minutes: float | None, seed: int, threads: int) -> dict[str, Any]:
    """Train once and return the figures."""
    model = fathom.fit(
        source,
        target="label",
        test=test,
        model="lenet5",
        minutes=minutes,
        seed=seed,
        sets=[f"engine.threads={threads}", "evaluate.baselines=false"],
        progress=True,
    )
    return fashion.figures(model, seed)


if __name__ == "__main__":
    main()
