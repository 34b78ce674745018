"""What learning from texts without labels is worth: the genre of verses, learned on from masked tokens or from nothing.

    python benchmarks/masked.py [--epochs 20] [--labels 1000] [--seeds 3]

An encoder first puts back masked tokens in all training verses of the bundled sample `verses`, without their genres;
then it learns the genres of `--labels` of them, beside the same network from first weights with the same settings, and
with those that the model proposes for itself. Judged on the test verses. The figures go to results/masked.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import fathom
from fathom.data._samples import find

RESULTS = Path(__file__).parent / "results" / "masked.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=20, help="passes over the texts without labels")
    options.add_argument("--labels", type=int, default=1000)
    options.add_argument("--test", type=int, default=0, help="test verses at most; 0: all")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--model", default="bert")
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--depth", type=int, default=3)
    options.add_argument("--corruption", default="tokens", choices=["tokens", "spans"])
    options.add_argument("--rows", type=int, default=0, help="texts without labels at most; 0: all")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="sets", help="options of every training of Fathom's"
    )
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path).select("text", "genre", "split")
    train, test = (verses.filter(pl.col("split") == part).drop("split") for part in ("train", "test"))
    test = test.sample(given.test, seed=1) if given.test else test
    texts = train.select("text").head(given.rows) if given.rows else train.select("text")
    sizes = {"name": given.model, "width": given.width, "depth": given.depth}
    with tempfile.TemporaryDirectory() as folder:
        before = fathom.fit(
            texts,
            objective="masked_token",
            epochs=given.epochs,
            out=f"{folder}/pre",
            config={
                "model": sizes,
                "objective": {"corruption": given.corruption},
                "prepare": {"vocabulary": 8192},
                "split": {"test": 0.02, "valid": 0.02},
            },
            progress=True,
            sets=given.sets,
        )
        runs: dict[str, list[float]] = {"learned on": [], "from first weights": [], "its own settings": []}
        for seed in range(given.seeds):
            some = train.sample(given.labels, seed=seed)
            after = fathom.fit(
                some, "genre", test=test, weights=f"{folder}/pre", seed=seed, sets=given.sets, progress=True
            )
            runs["learned on"].append(_accuracy(after))
            reading = {"text_length": before.artifact.spec.texts[0].shape[0], "vocabulary": 8192}
            engine = _engine(after)
            for name, settings in (("from first weights", {"engine": engine}), ("its own settings", {})):
                config = {"model": sizes, "prepare": reading, **settings}
                runs[name].append(
                    _accuracy(fathom.fit(some, "genre", test=test, seed=seed, config=config, sets=given.sets))
                )
    record = {
        "what": f"genre of {len(test):,} verses, from {given.labels:,} labels; {len(texts):,} texts without",
        "settings": vars(given),
        "masked": before.metrics["measures"],
        "accuracy": runs,
        "reached": np.mean(runs["learned on"])
        > max(np.mean(runs["from first weights"]), np.mean(runs["its own settings"])),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2, default=bool) + "\n")
    for name, found in runs.items():
        print(f"{name:<19} {np.mean(found):.3f}  ({', '.join(f'{each:.3f}' for each in found)})")


def _accuracy(model: Any) -> float:
    return model.metrics["test"]["genre"]["metrics"]["accuracy"]["value"]


def _engine(model: Any) -> dict[str, Any]:
    """Return the settings of the engine that a model was trained with, but for what was measured."""
    import tomllib

    found = tomllib.loads(model.files["config.toml"])["engine"]
    kept = ("optimizer", "learning_rate", "weight_decay", "schedule", "warmup", "batch_size", "epochs")
    return {name: found[name] for name in kept if name in found}


if __name__ == "__main__":
    main()
