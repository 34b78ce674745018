"""How much does saving slow training? The same steps with checkpoints as often as the engine allows, and without any.

    python benchmarks/saving.py [--seconds 12] [--rounds 3] [--width 256]

A GPT on random tokens, with AdamW and a moving average (five numbers for each weight are saved). Both ways take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

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


def speed(seconds: float, width: int, folder: Path | None) -> tuple[float, list[Saved]]:
    """Return steps a second, after a warm-up of a quarter, and the checkpoints that were written."""
    tokens = torch.randint(5, VOCABULARY, (4096, LENGTH), generator=torch.Generator().manual_seed(0))
    data = TrainingData(train=TensorStore({"text:text": tokens}))
    plan = Plan(epochs=1000, batch_size=8, threads=1, precision="fp32", average=0.99, checkpoint_seconds=0.0, **FIXED)  # type: ignore[arg-type]
    began, first, last, saved = time.perf_counter(), (0.0, 0), (0.0, 0), []
    records = train(NextToken(width), data, plan, folder)
    for record in records:
        now = time.perf_counter()
        if isinstance(record, Saved):
            saved.append(record)
        if isinstance(record, Step):
            last = (now, record.step)
            if now - began > seconds / 4 and not first[1]:
                first = last
                saved.clear()
            if now - began > seconds:
                break
    records.close()  # type: ignore[attr-defined]
    return (last[1] - first[1]) / (last[0] - first[0]), saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    without, with_, saved = [], [], []
    for _ in range(options.rounds):
        without.append(speed(options.seconds, options.width, None)[0])
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            found, records = speed(options.seconds, options.width, Path(folder))
        with_.append(found)
        saved += records
    lost = 1 - statistics.median(with_) / statistics.median(without)
    still = sum(s.stalled for s in saved) / (0.75 * options.seconds * options.rounds)
    megabytes = saved[0].bytes / 1e6 if saved else 0.0
    print(f"{len(saved)} checkpoints of {megabytes:.0f} MB in {0.75 * options.seconds * options.rounds:.0f} s")
    print(f"steps a second: {statistics.median(without):.2f} without, {statistics.median(with_):.2f} with: {lost:+.1%}")
    each = statistics.median(s.stalled for s in saved) * 1e3 if saved else 0.0
    print(f"training stood still for {each:.1f} ms each, {still:.2%} of the time")
    summary = {
        "torch": torch.__version__,
        "megabytes": megabytes,
        "without": without,
        "with": with_,
        "lost": lost,
        "stood_still": still,
        "milliseconds_each": each,
        "checkpoints": len(saved),
    }
    write_text(RESULT, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
