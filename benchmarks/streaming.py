"""Does memory stay flat while a data set ten times larger than what may be held streams through training?

    python benchmarks/streaming.py [--allowance 64] [--times 10] [--epochs 2]

A process may have, beyond what it has once everything is imported, so many megabytes of memory of its own
(RLIMIT_DATA: the system refuses more). It makes a table of `times` as much, which goes into a file that is mapped into
memory, and trains a network on it in shuffled order, with checkpoints. Pages of the file that lie in memory are the
system's to take back at any moment; what the process itself holds is told at each tenth of the run, beside the same
run with a table of a tenth of the size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from fathom.core.files import write_text
from fathom.core.types import DataSpec, Features, Field, Stats, TrainingData
from fathom.data._store import TensorStore
from fathom.data._tensors import allocate
from fathom.engine import loop
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.objectives import supervised

RESULT = Path(__file__).parent / "results" / "streaming.json"
WIDTH, CHUNK = 1024, 1024  # numbers in a row; rows made at once
MB = 1_000_000


class Network(nn.Module):
    """One hidden layer."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU())

    def forward(self, batch: dict[str, torch.Tensor]) -> Features:
        return Features(pooled=self.layers(batch["number"]))


def memory() -> dict[str, float]:
    """Return megabytes of this process: its own, and of files that lie in memory; and what counts for the limit."""
    wanted = {"RssAnon": "own", "RssFile": "of files", "VmData": "limited"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in wanted:
            found[wanted[name]] = int(value.split()[0]) * 1024 / MB
    return found


def table(megabytes: float, allowance: float) -> TensorStore:
    """Return that much of random numbers, with a target that follows from them."""
    rows = int(megabytes * MB / (4 * WIDTH))
    shapes = {"number": ((rows, WIDTH), torch.float32), "target:y": ((rows,), torch.float32)}
    columns = allocate(shapes, gigabytes=allowance / 1000)
    for first in range(0, rows, CHUNK):
        part = columns["number"][first : first + CHUNK].normal_()
        torch.sum(part[:, :8], 1, out=columns["target:y"][first : first + CHUNK])
    return TensorStore(columns)


def run(allowance: float, megabytes: float, epochs: int, told: Any) -> None:
    """Train within the allowance; tell what memory was held on the way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop.LOOK_SECONDS = 0.0
    target = Field(name="y", kind="number", stats=Stats(mean=(0.0,), std=(2.8,)))
    spec = DataSpec(inputs=tuple(Field(name=f"x{i}", kind="number") for i in range(WIDTH)), targets=(target,))
    _train(spec, table(1, 1), 1, [])  # everything is imported, and has its buffers
    limit = int((memory()["limited"] + allowance) * MB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seen: list[dict[str, float]] = []
    began = time.perf_counter()
    loss = _train(spec, table(megabytes, allowance), epochs, seen)
    tenths = [seen[len(seen) * i // 10] for i in range(10)] + seen[-1:]
    told.put({"megabytes": megabytes, "seconds": time.perf_counter() - began, "loss": loss, "at_tenths": tenths})


def _train(spec: DataSpec, store: TensorStore, epochs: int, seen: list[dict[str, float]]) -> float:
    plan = Plan(epochs=epochs, batch_size=min(256, len(store)), threads=1, precision="fp32", checkpoint_seconds=1.0)
    task = supervised.build(supervised.Config(), spec, Network())
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for record in train(task, TrainingData(train=store, valid=None), plan, Path(folder)):
            if type(record).__name__ == "Step":
                seen.append(memory())
    return float(record.history[-1].train["loss"])  # type: ignore[attr-defined]


def measure(allowance: float, megabytes: float, epochs: int) -> dict[str, Any]:
    """Run a process of its own; return what it told."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    child = context.Process(target=run, args=(allowance, megabytes, epochs, told))
    child.start()
    found: dict[str, Any] = {}
    while child.is_alive() and not found:
        child.join(0.2)
        if not told.empty():
            found = told.get()
    child.join()
    assert found, f"the process ended with {child.exitcode}: it ran out of its allowance"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--allowance", type=float, default=64.0, help="megabytes beyond the imports")
    parser.add_argument("--times", type=float, default=10.0, help="the table's size as a multiple of it")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    large = measure(options.allowance, options.allowance * options.times, options.epochs)
    small = measure(options.allowance, options.allowance * options.times / 10, options.epochs)
    print(f"allowance {options.allowance:g} MB; megabytes of the process's own memory at each tenth of the run")
    for found in (large, small):
        held = " ".join(f"{at['own']:.0f}" for at in found["at_tenths"])
        print(f"{found['megabytes']:8.0f} MB: {held}")
    own = [at["own"] for at in large["at_tenths"]]
    growth = max(own[1:]) - own[1]
    print(f"growth after the first tenth: {growth:.1f} MB; loss {large['loss']:.3g}; {large['seconds']:.1f} s")
    summary = {"torch": torch.__version__, "allowance": options.allowance, "growth": growth, "runs": [large, small]}
    write_text(RESULT, json.dumps(summary, indent=1) + "\n")
    raise SystemExit(0 if growth < options.allowance / 10 else 1)


if __name__ == "__main__":
    main()
