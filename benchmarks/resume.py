"""Is resume exact? Kill a real run at random instants, go on each time, compare the final weights bit by bit.

    python benchmarks/resume.py [--kills 20] [--rows 2000] [--epochs 3]

The run trains a residual network with dropout on images of the bundled Fashion-MNIST sample, shuffled and varied at
random, with a moving average of the weights, validation and one checkpoint after the other. It is run once undisturbed;
then again and again in processes of their own, each killed by SIGKILL at a random instant of its life (start, step,
validation, save) and followed by one that resumes, until one gets to the end. Each of these chains of kills is
compared with the uninterrupted run. A kill that leaves a half-written file behind was inside a save.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
import torch
from safetensors.torch import load_file, save_file

from fathom.core.files import replacing, write_text
from fathom.core.objective import Objective
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import _samples, augment
from fathom.data._store import TensorStore
from fathom.engine import loop
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Finished, Saved, Started
from fathom.models import resnet
from fathom.objectives import supervised

RESULT = Path(__file__).parent / "results" / "resume.json"
KILLS_A_CHAIN = 5
PLAN = Plan(
    optimizer="sgd",
    learning_rate=0.05,
    batch_size=64,
    average=0.95,
    checkpoint_seconds=0.0,
    threads=1,
    channels_last="yes",  # each chain is a run of its own, and may measure otherwise: what rounds otherwise is fixed
    precision="fp32",
)


def data(rows: int) -> tuple[DataSpec, TrainingData]:
    """Return real images as tensors, a tenth of them for validation."""
    import io

    import numpy as np
    from PIL import Image

    sample = _samples.find("fashion")
    frame = pl.read_parquet(sample.path).head(rows + rows // 10)
    pictures = frame[next(name for name, kind in frame.schema.items() if isinstance(kind, (pl.Binary, pl.Struct)))]
    coded = [p["bytes"] if isinstance(p, dict) else p for p in pictures.to_list()]
    images = torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(c)).convert("L")) for c in coded]))[:, None]
    names = frame[sample.target[0] if isinstance(sample.target, (tuple, list)) else sample.target].to_list()
    classes = tuple(sorted(set(names)))
    labels = torch.tensor([classes.index(name) for name in names])
    spec = DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(73.0,), std=(90.0,))),),
        targets=(Field(name="label", kind="category", classes=classes, counts=tuple(labels.bincount().tolist())),),
        rows=rows,
    )
    halves = slice(rows), slice(rows, None)
    parts = [TensorStore({"image:image": images[half], "target:label": labels[half]}) for half in halves]
    return spec, TrainingData(train=parts[0], valid=parts[1], augment=augment.build(spec, augment.AugmentConfig()))


def objective(spec: DataSpec) -> Objective:
    torch.manual_seed(0)
    model = resnet.build(resnet.Config(), spec)
    return supervised.build(supervised.Config(dropout=0.3), spec, model)


def run(folder: str, rows: int, epochs: int, told: multiprocessing.Queue | None = None) -> None:
    """Go on with the run in `folder`; leave the final weights in `result.safetensors`."""
    torch.set_num_threads(1)
    loop.LOOK_SECONDS, loop.SHARE = 0.02, float("inf")  # one checkpoint after the other, so that many are cut in two
    spec, found = data(rows)
    learner = objective(spec)
    for record in train(learner, found, replace(PLAN, epochs=epochs), Path(folder), resume=True):
        if told is not None and isinstance(record, (Started, Saved, Finished)):
            told.put((type(record).__name__, getattr(record, "step", getattr(record, "steps", 0))))
    with replacing(Path(folder) / "result.safetensors") as path:
        save_file({name: tensor.clone().contiguous() for name, tensor in learner.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.resume", "torch._dynamo"])
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        _live(context, Path(place) / "first", argparse.Namespace(rows=64, epochs=1), None)  # starts the fork server
        whole = Path(place) / "whole"
        began = time.perf_counter()
        _live(context, whole, options, None)
        lasted = time.perf_counter() - began
        expected = load_file(whole / "result.safetensors")
        chains, halves = [], 0
        print(f"uninterrupted: {lasted:.1f} s\n{'chain':>5} {'killed at step (or while)':48} {'resumed from':30} equal")
        while sum(len(c["kills"]) for c in chains) < options.kills:
            folder = Path(place) / f"chain-{len(chains)}"
            left = min(KILLS_A_CHAIN, options.kills - sum(len(c["kills"]) for c in chains))
            kills, resumed = [], []
            while not (folder / "result.safetensors").exists():
                wait = chance.uniform(0.0, lasted / 2) if len(kills) < left else None
                started, killed = _live(context, folder, options, wait)
                resumed.append(started)
                kills += [killed] if killed is not None else []
                halves += killed is not None and any(p.name.endswith(".tmp") for p in folder.iterdir())
            found = load_file(folder / "result.safetensors")
            equal = found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
            chains.append({"kills": kills, "resumed_from_step": resumed, "bit_equal": equal})
            print(f"{len(chains):5} {', '.join(kills):48} {', '.join(map(str, resumed)):30} {'yes' if equal else 'NO'}")
    count, exact = sum(len(c["kills"]) for c in chains), all(c["bit_equal"] for c in chains)
    print(
        f"{count} kills, {halves} of them inside a save, {len(chains)} chains,",
        "all bit-equal" if exact else "NOT ALL EQUAL",
    )
    summary = {
        "torch": torch.__version__,
        "kills": count,
        "inside_saves": halves,
        "all_bit_equal": exact,
        "chains": chains,
    }
    write_text(RESULT, json.dumps(summary | {"rows": options.rows, "epochs": options.epochs}, indent=1) + "\n")
    raise SystemExit(0 if exact else 1)


def _live(
    context: multiprocessing.context.ForkServerContext, folder: Path, options: argparse.Namespace, wait: float | None
) -> tuple[int, str | None]:
    """Run one process, killed after `wait` seconds; return the step it started from and where it was killed."""
    folder.mkdir(exist_ok=True)
    told = context.Queue()
    child = context.Process(target=run, args=(str(folder), options.rows, options.epochs, told))
    child.start()
    child.join(wait)
    killed = child.is_alive()
    if killed:
        child.kill()
        child.join()
    heard = []
    while not told.empty():
        heard.append(told.get())
    started = next((step for what, step in heard if what == "Started"), 0)
    return started, (f"after {heard[-1][1]}" if heard else "starting") if killed else None


if __name__ == "__main__":
    main()
