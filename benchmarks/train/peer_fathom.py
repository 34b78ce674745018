"""Fathom with its defaults: only the batch, the optimiser's usual rate and a length of two minutes are given.

Checkpoints are written, losses are logged, the gradient is clipped and watched, as always. The start-up ends with the
first step that counts: what the engine measures before it is part of it, and is told by itself too.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from clock import Clock
from torch import Tensor, nn
from workloads import CLASSES, EDGES, NODES, WIDTH, Workload, graph, loss_of, made, tensors

from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss, TrainingData
from fathom.data._store import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose, Epoch, Step

MINUTES = 2.0


class Trained(Objective):
    """The workload's network and loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        return Loss(loss_of(self.model, batch["x"], batch["y"]), weight=float(len(batch["x"])))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["x"])}


def run(work: Workload, clock: Clock) -> None:
    objective, columns = _graph() if work.name == "gcn" else _usual(work)
    plan = Plan(minutes=MINUTES, batch_size=work.batch, weight_decay=0.01, schedule="constant", warmup=0.0)
    began, tuned, before, losses = time.perf_counter(), 0.0, 0, Losses(clock)
    with tempfile.TemporaryDirectory() as folder:
        for record in train(objective, TrainingData(train=TensorStore(columns)), plan, Path(folder)):
            if isinstance(record, Chose):
                tuned = time.perf_counter() - began
                clock.extra[f"chose {record.what}"] = record.value
            elif isinstance(record, (Step, Epoch)):
                losses.take(record)
                steps, before = record.step - before, record.step
                if steps and clock.tick(steps * work.batch):
                    break
    clock.extra["tuning_seconds"] = tuned


class Losses:
    """Tells the clock the mean loss since the last record, of records that hold means since the epoch began."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.began, self.total, self.step = clock, 0, 0.0, 0

    def take(self, record: Step | Epoch) -> None:
        total, steps = record.train["loss"] * (record.step - self.began), record.step - self.step
        if steps:
            self.clock.learned((total - self.total) / steps)
        self.total, self.step = total, record.step
        if isinstance(record, Epoch):
            self.total, self.began = 0.0, record.step


def _usual(work: Workload) -> tuple[Objective, Batch]:
    x, y = tensors(work)
    return Trained(made(work)), {"x": x, "y": y}


class _Nodes(Objective):
    """Fathom's GCN with a head for every node."""

    def __init__(self) -> None:
        super().__init__()
        from fathom.models import gcn
        from fathom.models._graph import graphs

        torch.manual_seed(0)
        self.model = gcn.build(gcn.Config(width=WIDTH, dropout=0.0), graphs(NODES, EDGES, WIDTH, CLASSES, rows=1))
        self.head = nn.Linear(WIDTH, CLASSES)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        scores = self.head(self.model(batch).tokens)  # [B, N, classes]
        return Loss(nn.functional.cross_entropy(scores.flatten(0, 1), batch["y"].flatten()))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.head(self.model(batch).tokens)}


def _graph() -> tuple[Objective, Batch]:
    nodes, edges, classes = (torch.from_numpy(part) for part in graph())
    objective = _Nodes()
    key = objective.model.key
    return objective, {
        key: nodes[None],
        f"{key}:edges": edges[None],
        f"{key}:size": torch.tensor([NODES]),
        "y": classes[None],
    }
