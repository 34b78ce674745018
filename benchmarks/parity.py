"""What is saved predicts what was trained: `python benchmarks/parity.py`.

Trains on each bundled sample for one epoch, saves, and lets a new process load the model and predict the test rows
from the user's own table. The bar is a difference of 1e-6 in any probability, and of 1e-6 of the value in any number.
The figures go to results/parity.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import fathom
from fathom.data import read

BAR = 1e-6
ROWS = 2_000  # of each sample's table are predicted
AGAIN = "import sys, fathom, polars as pl; fathom.load(sys.argv[1]).predict(sys.argv[2]).write_parquet(sys.argv[3])"


def main() -> None:
    differences = {sample["name"]: difference(sample["name"]) for sample in fathom.list_samples()}
    for name, value in differences.items():
        print(f"{name:<10}  largest difference {value:.2e}")
    record = {"what": "largest difference of saved and loaded predictions", "bar": BAR}
    record |= {"reached": max(differences.values()) <= BAR, "differences": differences}
    path = Path(__file__).parent / "results" / "parity.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def difference(sample: str) -> float:
    """Return the largest difference between the training process's predictions and a new process's."""
    options = {"engine": {"epochs": 1}, "evaluate": {"baselines": False}}
    with tempfile.TemporaryDirectory() as folder:
        model = fathom.fit(sample, out=f"{folder}/model", config=options)
        read(sample).frame.head(ROWS).write_parquet(f"{folder}/rows.parquet")
        rows = read(f"{folder}/rows.parquet")
        prepared = model.artifact.preprocess.transform(rows.frame)
        ours = model.artifact.outputs(prepared.store)
        again = Path(folder) / "again.parquet"
        command = [sys.executable, "-c", AGAIN, f"{folder}/model", f"{folder}/rows.parquet", str(again)]
        subprocess.run(command, check=True)
        theirs = pl.read_parquet(again)
    (target,) = model.artifact.spec.targets
    if target.kind == "number":
        values = ours[target.name]
        return float(np.max(np.abs(values - theirs["prediction"].to_numpy()) / np.maximum(1, np.abs(values))))
    loaded = np.stack([theirs[f"probability.{name}"].to_numpy() for name in target.classes], 1)
    return float(np.max(np.abs(ours[target.name] - loaded)))


if __name__ == "__main__":
    main()
