"""How well Fathom tells the genre of a verse, against TF-IDF with logistic regression.

    python benchmarks/verses.py [--seeds N] [--models auto transformer …]

All methods learn from the training rows of the bundled sample `verses` and are judged once on its test rows. Fathom
keeps its own validation rows from the training rows; the linear models learn from all of them. Each linear model is
scikit-learn's with its defaults but for what its name says; the bar is the best of them by test accuracy, which is
more than they could know of themselves. Intervals are of the bootstrap over test rows, 95 %. The figures go to
results/verses.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import fathom
from fathom.data._samples import find

RESULTS = Path(__file__).parent / "results" / "verses.json"
RESAMPLES = 1000
LINEAR = [(longest, strength) for longest in (1, 2) for strength in (1.0, 10.0, 30.0)]  # words in an n-gram, C


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3, help="runs of each model, with seeds 0, 1, …")
    options.add_argument("--models", nargs="+", default=["auto"], help="models to train")
    given = options.parse_args()
    verses = pl.read_parquet(find("verses").path)
    train, test = verses.filter(pl.col("split") == "train"), verses.filter(pl.col("split") == "test")
    linear = [by_words(train, test, longest, strength) for longest, strength in LINEAR]
    fitted = [by_fathom(test, name, seed) for name in given.models for seed in range(given.seeds)]
    bar = max(found["accuracy"] for found in linear)
    own = {name: [f["accuracy"] for f in fitted if f["asked"] == name] for name in given.models}
    record = {
        "what": f"genre of a verse: {train.height:,} to learn from, {test.height:,} to test on",
        "bar": bar,
        "mean_accuracy": {name: float(np.mean(found)) for name, found in own.items()},
        "reached": min(own[given.models[0]]) >= bar,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "runs": linear + fitted,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    show(record)


def by_words(train: pl.DataFrame, test: pl.DataFrame, longest: int, strength: float) -> dict[str, Any]:
    """Train a logistic regression on TF-IDF of words and phrases of up to `longest` words."""
    begun = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, longest))
    learned = LogisticRegression(C=strength, max_iter=1000)
    learned.fit(vectorizer.fit_transform(train["text"].to_list()), train["genre"].to_numpy())
    seconds = time.perf_counter() - begun
    predicted = learned.predict(vectorizer.transform(test["text"].to_list()))
    return {
        "method": f"TF-IDF of {'words' if longest == 1 else '1 to 2 words'}, logistic regression, C={strength:g}",
        **judged(test["genre"].to_numpy(), predicted),
        "seconds": round(seconds, 1),
    }


def by_fathom(test: pl.DataFrame, name: str, seed: int) -> dict[str, Any]:
    """Train with Fathom's defaults."""
    model = fathom.fit(
        "verses", model=None if name == "auto" else name, seed=seed, sets=["evaluate.baselines=false"], progress=True
    )
    trained = json.loads(model.files["evidence.json"])["run"]
    predicted = model.predict(test.select("text"))["prediction"].to_numpy()
    return {
        "method": f"Fathom, {trained['model']}",
        "asked": name,
        "seed": seed,
        **judged(test["genre"].to_numpy(), predicted),
        "seconds": round(trained["seconds"], 1),
        "epochs": len(trained["epochs"]),
        "parameters": trained["parameters"],
    }


def judged(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return accuracy and macro F1, each with its interval."""
    draws = np.random.default_rng(0).integers(len(truth), size=(RESAMPLES, len(truth)))
    right = truth == predicted
    again = [f1_score(truth[rows], predicted[rows], average="macro") for rows in draws[:200]]  # slow: fewer draws
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": np.quantile(right[draws].mean(1), [0.025, 0.975]).tolist(),
        "macro_f1": float(f1_score(truth, predicted, average="macro")),
        "macro_f1_interval": np.quantile(again, [0.025, 0.975]).tolist(),
    }


def show(record: dict[str, Any]) -> None:
    print(record["what"])
    for run in record["runs"]:
        low, high = run["accuracy_interval"]
        print(
            f"{run['method']:<60} accuracy {run['accuracy']:.4f} ({low:.3f} to {high:.3f})  "
            f"macro F1 {run['macro_f1']:.4f}  {run['seconds']:>6.1f} s"
        )
    print(f"The bar, {record['bar']:.4f}, is {'reached' if record['reached'] else 'missed'}.")


if __name__ == "__main__":
    main()
