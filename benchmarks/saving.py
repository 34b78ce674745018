"""How much does saving slow training? The steps beside which a checkpoint is written, against those around them.

    python benchmarks/saving.py [--seconds 60] [--rounds 1] [--width 256]

A GPT on random tokens, with AdamW and a moving average (five numbers for each weight are saved), saved as often as the
engine allows. Two runs after one another differ by more than what is looked for, so it is looked for within a run: a
step during which a checkpoint is copied or written counts as lost what it takes longer than the middle one of the
steps around it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from fathom.core.files import write_text
from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Field, Loss, TrainingData
from fathom.data._store import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Saved, Step
from fathom.models import gpt

RESULT = Path(__file__).parent / "results" / "saving.json"
LENGTH, VOCABULARY = 64, 4096
AROUND = 15  # calm steps that a disturbed one is compared with
FIXED = {"channels_last": "no", "form": "plain", "memory": "returned"}  # nothing is measured first


class NextToken(Objective):
    """What a plain language model learns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        field = Field(name="text", kind="text", shape=(LENGTH,), vocabulary=VOCABULARY)
        config = gpt.Config(width=width, depth=4, num_heads=4)
        self.model = gpt.build(config, DataSpec(inputs=(field,)))

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        tokens = batch["text:text"]
        logits = self.model.logits(self.model(batch).tokens[:, :-1])  # type: ignore[operator]
        cost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return Loss(cost, weight=float(len(tokens)))

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {}


class Watched(TensorStore):
    """A store that notes when each step begins, and whether a checkpoint is being written then."""

    def gather(self, index: Tensor) -> Batch:
        writing = any(thread.name == "checkpoint" for thread in threading.enumerate())
        self.seen.append((time.perf_counter(), writing))
        return super().gather(index)

    @property
    def seen(self) -> list[tuple[float, bool]]:
        return self.__dict__.setdefault("_seen", [])


def steps(seconds: float, width: int, folder: Path) -> tuple[list[float], list[bool], list[Saved]]:
    """Return the seconds of each step after a warm-up of a tenth, whether it was disturbed, and the checkpoints."""
    tokens = torch.randint(5, VOCABULARY, (4096, LENGTH), generator=torch.Generator().manual_seed(0))
    store = Watched({"text:text": tokens})
    plan = Plan(epochs=1000, batch_size=8, threads=1, precision="fp32", average=0.99, checkpoint_seconds=0.0, **FIXED)  # type: ignore[arg-type]
    began, first, saved, told = time.perf_counter(), 0, [], []
    records = train(NextToken(width), TrainingData(train=store), plan, folder)
    for record in records:
        now = time.perf_counter() - began
        first = first or (len(store.seen) if now > seconds / 10 else 0)
        if isinstance(record, Saved) and first:
            saved.append(record)
            told.append(len(store.seen) - 1)  # it was still written in this step
        if isinstance(record, Step) and now > seconds:
            break
    seen = list(store.seen)
    records.close()  # type: ignore[attr-defined]
    times = [b[0] - a[0] for a, b in pairwise(seen)]
    disturbed = [a[1] or b[1] or i in told for i, (a, b) in enumerate(pairwise(seen))]
    return times[first:], disturbed[first:], saved


def lost(times: list[float], disturbed: list[bool]) -> float:
    """Return the seconds that disturbed steps took longer than the middle one of those around them."""
    total = 0.0
    for i in (i for i, each in enumerate(disturbed) if each):
        calm = sorted((j for j, each in enumerate(disturbed) if not each), key=lambda j: abs(j - i))[:AROUND]
        total += times[i] - statistics.median(times[j] for j in calm)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    shares: list[float] = []
    saved: list[Saved] = []
    whole = 0.0
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            times, disturbed, records = steps(options.seconds, options.width, Path(folder))
        shares.append(lost(times, disturbed) / sum(times))
        saved, whole = saved + records, whole + sum(times)
    still = sum(s.stalled for s in saved) / whole
    megabytes = saved[0].bytes / 1e6 if saved else 0.0
    each = statistics.median(s.stalled for s in saved) * 1e3 if saved else 0.0
    print(f"{len(saved)} checkpoints of {megabytes:.0f} MB in {whole:.0f} s of steps")
    print(f"training was slower by {statistics.median(shares):.2%}; it stood still for {each:.1f} ms each, {still:.2%}")
    summary = {
        "torch": torch.__version__,
        "megabytes": megabytes,
        "checkpoints": len(saved),
        "seconds": whole,
        "lost": shares,
        "stood_still": still,
        "milliseconds_each": each,
    }
    write_text(RESULT, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
