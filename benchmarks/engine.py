"""What the engine adds to a step: its loop against a hand-written one, on models so small that only the loop counts.

    python benchmarks/engine.py [--steps 3000]

Same model, data in memory, batch, fused AdamW and one thread in both; rounds take turns; the median of each is shown.
The hand-written loop does nothing but train: no schedule, no clipping, no check for not-a-number, no checkpoint, no
records of losses. The engine does all of that; what it measures before the first step is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from fathom.core.files import write_text
from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss, TrainingData
from fathom.data._store import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose, Started

ROUNDS = 7
RESULT = Path(__file__).parent / "results" / "engine.json"


@dataclass(frozen=True)
class Workload:
    name: str
    width: int
    batch: int
    rows: int


WORKLOADS = (
    Workload("7,000-parameter MLP, batch 64", 64, 64, 6400),
    Workload("50,000-parameter MLP, batch 256", 192, 256, 25600),
)


class Classify(Objective):
    """Three linear layers and a cross-entropy."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        loss = nn.functional.cross_entropy(self.model(batch["number"]), batch["target:y"])
        return Loss(loss, weight=float(len(batch["number"])))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["number"]).softmax(1)}


def by_hand(work: Workload, x: Tensor, y: Tensor, epochs: int) -> float:
    """Return microseconds a step of the plainest fast loop."""
    model = Classify(work.width).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    began = time.perf_counter()
    for _ in range(epochs):
        for index in torch.randperm(work.rows).split(work.batch):
            loss = nn.functional.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - began) / (epochs * work.rows // work.batch) * 1e6


def by_engine(work: Workload, x: Tensor, y: Tensor, epochs: int, folder: str | None = None, **options: float) -> float:
    """Return microseconds a step of the engine, with checkpoints where there is a folder for them."""
    data = TrainingData(train=TensorStore({"number": x, "target:y": y}))
    plan = Plan(epochs=epochs, batch_size=work.batch, threads=1, device="cpu", precision="fp32", **options)  # type: ignore[arg-type]
    objective = Classify(work.width)
    began = time.perf_counter()
    for record in train(objective, data, plan, Path(folder) if folder else None):
        if isinstance(record, (Started, Chose)):
            began = time.perf_counter()
    return (time.perf_counter() - began) / (epochs * work.rows // work.batch) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=3000, help="steps a round")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    results = []
    print(f"{'workload':36} {'by hand':>9} {'engine':>9} {'ratio':>6} {'no checkpoints':>15} {'with average':>13}")
    for work in WORKLOADS:
        torch.manual_seed(0)
        x, y = torch.randn(work.rows, 32), torch.randint(0, 10, (work.rows,))
        epochs = max(1, steps * work.batch // work.rows)
        times: dict[str, list[float]] = {"by hand": [], "engine": [], "no checkpoints": [], "average": []}
        by_hand(work, x, y, 1), by_engine(work, x, y, 1)  # the first of each warms up
        for _ in range(ROUNDS):
            times["by hand"].append(by_hand(work, x, y, epochs))
            with tempfile.TemporaryDirectory() as folder:
                times["engine"].append(by_engine(work, x, y, epochs, folder))
            times["no checkpoints"].append(by_engine(work, x, y, epochs))
            times["average"].append(by_engine(work, x, y, epochs, average=0.99))
        hand, engine, without, average = (statistics.median(t) for t in times.values())
        print(
            f"{work.name:36} {hand:6.0f} µs {engine:6.0f} µs {engine / hand:6.3f} {without:12.0f} µs {average:10.0f} µs"
        )
        row = {"workload": work.name, "by_hand_us": hand, "engine_us": engine, "ratio": engine / hand}
        results.append(row | {"engine_without_checkpoints_us": without, "engine_with_average_us": average})
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "threads": 1}
    write_text(RESULT, json.dumps({"machine": machine, "rounds": ROUNDS, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
