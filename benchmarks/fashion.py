"""How well and how fast Fathom learns images: `python benchmarks/fashion.py [--full] [--minutes M] [--seeds N]`.

Within the time of the bar it trains on the bundled sample (10,000 images, 2,000 to test on); with --full on all
60,000, tested on the 10,000 of the original test set, where the Debian package `dataset-fashion-mnist` is installed.
All other settings are Fathom's defaults. The test images are judged once, after training. The figures go to
results/fashion.json.

    python benchmarks/fashion.py --full --model lenet5                  # a network of a paper, by its own recipe
    python benchmarks/fashion.py --full --model resnet18_cifar --epochs 2 --out resnet18 --resume

With --out the run keeps checkpoints there, and --resume goes on from the last.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

import fathom

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fashion.json"
CUT = runpy.run_path(str(HERE.parent / "scripts" / "samples" / "fashion.py"))  # reads the files of the whole set
BARS = {"sample": (0.90, 90), "full": (0.935, 900)}  # accuracy, seconds of training on two cores
MODELS = {"lenet5": 0.90, "resnet18_cifar": 0.945}  # accuracy after their recipes' epochs, on all images


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--full", action="store_true", help="train on all 60,000 images")
    options.add_argument(
        "--minutes", type=float, help="the most that training may take; by default 14, of the sample 1.4"
    )
    options.add_argument("--seeds", type=int, default=1, help="runs, with seeds 0, 1, …")
    options.add_argument("--model", choices=MODELS, help="a network, instead of the one that Fathom chooses")
    options.add_argument("--epochs", type=int, help="passes over the images, instead of those of the recipe")
    options.add_argument("--set", nargs="+", action="extend", default=[], help="settings, such as engine.batch_size=64")
    options.add_argument("--out", type=Path, help="a folder for the run and its checkpoints (one seed)")
    options.add_argument("--resume", action="store_true", help="go on from the last checkpoint in it")
    given = options.parse_args()
    record = {**measured(given), "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"}
    store(record["name"], record)
    print(json.dumps(record, indent=2))


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Train as often as asked for and return the figures beside their bar."""
    name = "full" if given.full else "sample"
    source, test = whole_set() if given.full else ("fashion", None)
    minutes = given.minutes
    if minutes is None and given.model is None and given.epochs is None:
        minutes = 14.0 if given.full else 1.4
    settings = {"model": given.model, "minutes": minutes, "epochs": given.epochs, "sets": given.set, "out": given.out}
    runs = [
        figures(
            fathom.fit(source, target="label", test=test, seed=seed, progress=True, resume=given.resume, **settings),
            seed,
        )
        for seed in range(given.seeds)
    ]
    accuracy, seconds = (MODELS[given.model], float("inf")) if given.model else BARS[name]
    return {
        "name": given.model or name,
        "what": f"Fashion-MNIST, {name}" + (f", {given.model}" if given.model else ""),
        "bar": {"accuracy": accuracy} | ({} if given.model else {"seconds": seconds}),
        "reached": all(r["accuracy"] >= accuracy and r["seconds"] <= seconds for r in runs),
        "mean_accuracy": float(np.mean([r["accuracy"] for r in runs])),
        "set": given.set,
        "runs": runs,
    }


def figures(model: fathom.Model, seed: int) -> dict[str, Any]:
    """Return what was measured of a run."""
    evidence = json.loads(model.files["evidence.json"])
    trained, rows = evidence["run"], evidence["data"]["splits"]["train"]
    found = model.metrics["test"]["label"]["metrics"]["accuracy"]
    return {
        "seed": seed,
        "accuracy": found["value"],
        "interval": [found["low"], found["high"]],
        "seconds": round(trained["seconds"], 1),
        "epochs": len(trained["epochs"]),
        "samples_per_second": round(rows * len(trained["epochs"]) / trained["seconds"]),
        "model": trained["model"],
        "parameters": trained["parameters"],
        "chosen": {choice["what"]: choice["chosen"] for choice in trained["tuner"]},
    }


def whole_set() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return all training and all test images, as Fathom takes them: PNG bytes and a class name."""
    folder: Path = CUT["FOLDER"]
    if not folder.is_dir():
        sys.exit(f"The whole Fashion-MNIST is not here ({folder}): install it by apt install dataset-fashion-mnist.")
    return part(folder, "train"), part(folder, "t10k")


def part(folder: Path, files: str) -> pl.DataFrame:
    images = CUT["read_idx"](folder / f"{files}-images-idx3-ubyte.gz")
    labels = CUT["read_idx"](folder / f"{files}-labels-idx1-ubyte.gz")
    return pl.DataFrame(
        {
            "image": [{"bytes": png(image), "path": f"{files}/{i:05d}.png"} for i, image in enumerate(images)],
            "label": [CUT["CLASSES"][label] for label in labels],
        }
    )


def png(image: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "png", compress_level=1)
    return held.getvalue()


def store(name: str, record: dict[str, Any]) -> None:
    """Put this record beside the others."""
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: record}, indent=2) + "\n")


if __name__ == "__main__":
    main()
