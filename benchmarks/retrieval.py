"""Are things found again that were never seen in training? `python benchmarks/retrieval.py FOLDER [--epochs N]`.

Emoji as two designers drew them, some 1,900 in each hand: from those of one half of the emoji a network learns to lay
drawings of the same emoji near one another, and is asked about the other half. recall@1 is how often the nearest of all
other drawings is of the same emoji, beside raw pixels, and beside the network before it has learned.

FOLDER holds two packages of the npm registry, fetched there by

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0

(Twemoji, CC BY 4.0; Noto Emoji, Apache 2.0). The figures go to results/retrieval.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from selfsupervised import pixels, seconds

import fathom
from fathom.api.embed import vectors
from fathom.evaluate import recall

RESULTS = Path(__file__).parent / "results" / "retrieval.json"
HANDS = ("twitter", "google")
SIDE, BORDER = 32, 1  # pixels of a drawing, and around it
BAR = 0.10
SETS = ["evaluate.baselines=false", "split.test=0.0", "split.valid=0.0", "augment.flip=no"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("folder", type=Path)
    options.add_argument("--epochs", type=int, help="passes, instead of those of the recipe")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--set", nargs="+", action="extend", default=[], dest="sets", help="options of both trainings")
    given = options.parse_args()
    drawings = pl.concat([drawn(given.folder, hand) for hand in HANDS])
    names = np.array(sorted(drawings["label"].unique()))
    seen = np.random.default_rng(given.seed).permutation(names)[: len(names) // 2]
    known = drawings.filter(pl.col("label").is_in(seen)).sample(fraction=1.0, shuffle=True, seed=given.seed)
    unseen = drawings.filter(~pl.col("label").is_in(seen))
    labels = unseen["label"].to_numpy()
    found: dict[str, Any] = {"pixels": recall(pixels(unseen), labels)}
    for name, way, rate in (("before", "arcface", 1e-12), ("triplet", "triplet", 0.0), ("arcface", "arcface", 0.0)):
        model = learned(known.select("image", "label"), way, rate, given)
        found[name] = recall(vectors(model.embed(unseen.select("image"))), labels) | seconds(model)
        print(json.dumps({name: found[name]}), flush=True)
    gain = max(found["triplet"]["value"], found["arcface"]["value"]) - found["pixels"]["value"]
    record = {"what": "recall@1 of emoji never seen, drawn by two hands", "gain": gain, "bar": BAR, **found}
    record |= {"reached": gain >= BAR, "emoji": {"seen": len(seen), "unseen": len(names) - len(seen)}}
    record |= {"set": given.sets, "seed": given.seed}
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def learned(source: pl.DataFrame, way: str, rate: float, given: argparse.Namespace) -> fathom.Model:
    """Train; with a rate, as good as not at all."""
    sets = [*SETS, *given.sets, *([f"engine.learning_rate={rate}"] if rate else [])]
    epochs = 1 if rate else given.epochs
    how: dict[str, Any] = {"model": "resnet", "objective": way, "seed": given.seed, "progress": True}
    return fathom.fit(source, "label", epochs=epochs, sets=sets, **how)


def drawn(folder: Path, hand: str) -> pl.DataFrame:
    """Return one designer's drawings: PNG bytes on white, and which emoji each is."""
    found = sorted(folder.glob(f"emoji-datasource-{hand}-*.tgz"))
    if not found:
        raise SystemExit(
            f"{folder} holds no emoji-datasource-{hand}-*.tgz: npm pack emoji-datasource-{hand} fetches it."
        )
    with tarfile.open(found[-1]) as package:
        known = json.loads(_read(package, "package/emoji.json"))
        sheet = Image.open(io.BytesIO(_read(package, f"package/img/{hand}/sheets/{SIDE}.png"))).convert("RGBA")
    white = Image.new("RGBA", sheet.size, "white")
    white.alpha_composite(sheet)
    rows = []
    for emoji in known:
        if all(emoji[f"has_img_{each}"] for each in HANDS):
            left, top = (emoji[f"sheet_{axis}"] * (SIDE + 2 * BORDER) + BORDER for axis in "xy")
            held = io.BytesIO()
            white.crop((left, top, left + SIDE, top + SIDE)).convert("RGB").save(held, "png")
            name = f"{emoji['unified']}.png"
            rows.append({"image": {"bytes": held.getvalue(), "path": f"{hand}/{name}"}, "label": emoji["unified"]})
    return pl.DataFrame(rows)


def _read(package: tarfile.TarFile, name: str) -> bytes:
    held = package.extractfile(name)
    assert held is not None
    return held.read()


if __name__ == "__main__":
    main()
