"""Small objectives and data that exercise every part of the engine's contract, and a program to be killed."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fathom.core.files import replacing
from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, Loss, Phase, TrainingData
from fathom.data._store import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan


class Regression(Objective):
    """A network with dropout and batch normalisation, whose loss is a mean over the rows."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(6, 16)]
        if norm:
            layers.append(nn.BatchNorm1d(16))
        self.model = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        error = self.predict(batch)["y"] - batch["target:y"]
        return Loss(error.square().mean(), {"absolute": error.abs().mean()}, weight=float(len(error)))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["number"]).squeeze(1)}


class Adversarial(Objective):
    """Two networks in turn, one of them once in two steps, a third that trails the first, a tied weight, a buffer
    that is not persistent and one that is replaced at every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 6))
        self.judge = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.trailing = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 6))
        self.trailing.load_state_dict(self.model.state_dict())
        self.trailing.requires_grad_(False)
        self.tied = nn.Linear(6, 8)
        self.tied.weight = self.model[0].weight
        self.register_buffer("centre", torch.zeros(6), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        x = batch["number"]
        made = self.model(x + 0.1 * torch.randn_like(x))
        with torch.no_grad():
            self.centre.lerp_(self.trailing(x).mean(0).float(), 0.1)
            self.seen = self.seen + len(x)
        if phase == "judge":
            gap = (self.judge(made.detach()) - self.judge(x)).mean()
            return Loss(gap + self.judge(x).square().mean(), weight=len(x))
        far = (made - self.centre - x).square().mean() + self.tied(x).square().mean()
        return Loss(far - 0.1 * self.judge(made).mean(), {"far": far}, weight=len(x))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["number"])[:, 0]}

    def phases(self) -> tuple[Phase, ...]:
        maker = (*self.model.parameters(), self.tied.bias)
        return (
            Phase("maker", maker, every=2),
            Phase("judge", tuple(self.judge.parameters()), learning_rate=0.5),
        )

    def averages(self) -> tuple[Average, ...]:
        return (Average(self.model, self.trailing, decay=0.9, final_decay=1.0),)


def jitter(batch: Batch) -> Batch:
    """An augmentation that draws from all three generators that there are."""
    x = batch["number"]
    noise = torch.randn_like(x) * 0.1 + random.random() * 0.01 + float(np.random.rand()) * 0.01
    return batch | {"number": x + noise}


def data(rows: int = 203, valid: int = 60, augment: bool = True) -> TrainingData:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows + valid, 6, generator=generator)
    y = x[:, 0] * 2 + x[:, 1].square() + 0.1 * torch.randn(rows + valid, generator=generator)
    store = [TensorStore({"number": x[part], "target:y": y[part]}) for part in (slice(rows), slice(rows, None))]
    return TrainingData(train=store[0], valid=store[1] if valid else None, augment=jitter if augment else None)


def weights(objective: Objective) -> dict[str, Tensor]:
    """Everything that a run leaves behind, to compare."""
    return {n: t.detach().clone() for n, t in (*objective.named_parameters(), *objective.named_buffers())}


def same(a: Objective, b: Objective) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def run_slowly(folder: str, kind: str, pause: float) -> None:
    """Go on with a run in `folder`, slowly enough to be killed; leave the weights in `result.safetensors`."""
    torch.set_num_threads(1)
    objective = make(kind)

    def slow_jitter(batch: Batch) -> Batch:
        time.sleep(pause)
        return jitter(batch)

    for _ in train(objective, replace(data(), augment=slow_jitter), plan_to_kill(), Path(folder), resume=True):
        pass
    with replacing(Path(folder) / "result.safetensors") as path:
        save_file({n: t.clone() for n, t in weights(objective).items()}, path)


def make(kind: str) -> Objective:
    return Adversarial() if kind == "adversarial" else Regression()


def plan_to_kill() -> Plan:
    return Plan(epochs=6, batch_size=16, average=0.9, accumulate=2, checkpoint_seconds=0.0, threads=1)
