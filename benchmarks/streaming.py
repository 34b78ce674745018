"""Does memory stay flat while a data set ten times larger than what may be held streams through training?

    python benchmarks/streaming.py [--allowance 64] [--times 10] [--epochs 2] [--cold]

A process may have, beyond what it has once everything is imported, so many megabytes of memory of its own
(RLIMIT_DATA: the system refuses more). It makes a table of `times` as much, which goes into a file that is mapped into
memory, and trains a network on it in shuffled order, with checkpoints. Pages of the file that lie in memory are the
system's to take back at any moment; what the process itself holds is told at each tenth of the run, beside the same
run with a table of a tenth of the size.

With --cold it is measured instead what it costs that rows lie on the disk: steps of training on a file of 2 GB, where
600 MB are all that the process and the pages of files may take, with rows fetched ahead and without (as root).
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
from fathom.core.objective import Objective
from fathom.core.types import DataSpec, Features, Field, Loss, Stats, TrainingData
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


class Untold(TensorStore):
    """A store that learns of rows when they are read."""

    def soon(self, index: torch.Tensor) -> None:
        pass


def cold(megabytes: int = 2000, allowance: int = 600, steps: int = 8) -> list[dict[str, float]]:
    """Return milliseconds a step of each way to come by rows of 4 and of 150 kB of a file larger than memory."""
    context, found = multiprocessing.get_context("spawn"), []
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MB))
        file.flush()
        os.fsync(file.fileno())
        for width, batch in ((4096, 256), (150_528, 64)):
            row: dict[str, float] = {"row_bytes": width, "batch": batch}
            for name in ("not told", "fetched ahead"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                told = context.Queue()
                given = (file.name, megabytes * MB // width, width, batch, steps, name, allowance, told)
                child = context.Process(target=_read, args=given)
                child.start()
                row[name] = told.get()
                child.join()
            found.append(row)
    return found


def _read(path: str, rows: int, width: int, batch: int, steps: int, name: str, allowance: int, told: Any) -> None:
    """Train on a mapped file with so many megabytes for the process and the pages of files that it has touched."""
    _limit(allowance)
    torch.set_num_threads(1)
    x = torch.from_file(path, shared=True, size=rows * width, dtype=torch.uint8).view(rows, width)
    store = Untold({"x": x}) if name == "not told" else TensorStore({"x": x})
    told.put(_step_ms(store, batch, steps))


def _limit(megabytes: int) -> None:
    """Put this process into a control group of so much memory."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, "fathom-streaming")
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(megabytes * MB))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return
        except OSError:
            continue
    raise SystemExit("A limit of memory with the pages of files needs the right to make a control group (root).")


def _step_ms(store: TensorStore, batch: int, steps: int) -> float:
    plan = Plan(epochs=1, batch_size=batch, threads=1, form="plain", precision="fp32", memory="kept", optimizer="adamw")
    began, step = 0.0, 0
    for record in train(Bytes(), TrainingData(train=store), plan):
        step = getattr(record, "step", 0)
        if step >= 2 and not began:
            began, first = time.perf_counter(), step
        if began and step >= first + steps:
            return 1e3 * (time.perf_counter() - began) / (step - first)
    raise AssertionError("an epoch has too few steps")


class Bytes(Objective):
    """Tells the mean of a row's first bytes by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 1))

    def losses(self, batch: dict[str, torch.Tensor], phase: str = "main") -> Loss:
        x = batch["x"][:, :1024].float() / 255
        return Loss((self.model(x) - x.mean(1, keepdim=True)).square().mean())

    def predict(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"mean": self.model(batch["x"][:, :1024].float() / 255)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--allowance", type=float, default=64.0, help="megabytes beyond the imports")
    parser.add_argument("--times", type=float, default=10.0, help="the table's size as a multiple of it")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="measure reading from the disk instead")
    options = parser.parse_args()
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if options.cold:
        known["cold"] = cold()
        for row in known["cold"]:
            print(", ".join(f"{name}: {value:.4g}" for name, value in row.items()), "(ms a step)")
        write_text(RESULT, json.dumps(known, indent=1) + "\n")
        return
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
    write_text(RESULT, json.dumps(known | summary, indent=1) + "\n")
    raise SystemExit(0 if growth < options.allowance / 10 else 1)


if __name__ == "__main__":
    main()
