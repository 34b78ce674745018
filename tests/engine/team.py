"""Several processes that train together, as torchrun would start them, and what each of them left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fathom.core.objective import Objective
from fathom.core.types import Average, Batch, Loss, Phase, TrainingData
from fathom.engine import loop, shard
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Chose, Finished, Saved, Started, Warned
from tests.engine import toys


class Duel(Objective):
    """Two phases and a network that trails, without anything random; one layer is used by positive rows only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.judge = nn.Linear(6, 1)
        self.seldom = nn.Linear(6, 1)
        self.trailing = nn.Linear(6, 1).requires_grad_(False)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        x = batch["number"]
        made = self.model(x)
        if phase == "judge":
            return Loss((self.judge(made.detach()) - self.judge(x) + self.judge(x).square()).mean(), weight=len(x))
        total = (made - x).square().mean() - 0.1 * self.judge(made).mean()
        chosen = x[x[:, 0] > 1.5]
        if len(chosen):
            total = total + self.seldom(chosen).square().sum() / len(x)
        return Loss(total, {"far": (made - x).square().mean()}, weight=len(x))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.model(batch["number"])[:, 0]}

    def phases(self) -> tuple[Phase, ...]:
        maker = (*self.model.parameters(), *self.seldom.parameters())
        return Phase("maker", maker), Phase("judge", tuple(self.judge.parameters()), every=2)

    def averages(self) -> tuple[Average, ...]:
        return (Average(self.judge, self.trailing, decay=0.9),)


class Deep(toys.Regression):
    """Repeated blocks, of which each lies in pieces of its own when weights are spread."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0, norm=False)
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
        self.model = nn.Sequential(nn.Sequential(*blocks), nn.Linear(6, 1))


class Short(toys.Regression):
    """The second process has memory for ten rows."""

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        if os.environ.get("RANK") == "1" and len(batch["number"]) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return super().losses(batch, phase)


class Terminated(toys.Regression):
    """The second process is asked to end in its ninth step."""

    calls = 0

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        self.calls += self.training
        if os.environ.get("RANK") == "1" and self.calls == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, phase)


class Logged(toys.Regression):
    """Keeps which rows it has seen, by their first number, and what random numbers it drew."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0, norm=False)
        self.seen: list[float] = []
        self.drawn: list[float] = []

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        self.seen += batch["number"][:, 0].tolist()
        self.drawn.append(float(torch.rand(1)))
        return super().losses(batch, phase)


MAKE: dict[str, Callable[[], Objective]] = {
    "plain": lambda: toys.Regression(dropout=0.0, norm=False),
    "varied": toys.Regression,
    "duel": Duel,
    "deep": Deep,
    "short": Short,
    "terminated": Terminated,
    "logged": Logged,
}


def spoilt() -> TrainingData:
    found = toys.data(augment=False)
    found.train.columns["number"][7] = float("nan")  # type: ignore[attr-defined]
    return found


DATA: dict[str, Callable[[], TrainingData]] = {
    "quiet": lambda: toys.data(augment=False),
    "varied": toys.data,
    "spoilt": spoilt,
}


def run(size: int, folder: Path, kind: str, plan: Plan, data: str = "quiet", stop: int = 0, resume: bool = False):  # type: ignore[no-untyped-def]
    """Train in `size` processes; return what each left: its weights and what it told.

    Args:
        stop: leave after the record of so many epochs; 0: never.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.team", "torch._dynamo", "torch.distributed.fsdp"])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder.mkdir(exist_ok=True)
    shared = (size, port, str(folder), kind, asdict(plan), data, stop, resume)
    children = [context.Process(target=_work, args=(rank, *shared)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    left = []
    for rank in range(size):
        weights = folder / f"left-{rank}.safetensors"
        told = folder / f"told-{rank}.json"
        assert told.exists(), f"process {rank} left with {children[rank].exitcode}"
        left.append((load_file(weights), json.loads(told.read_text())))
        weights.unlink(), told.unlink()
    return left


def _work(
    rank: int, size: int, port: int, folder: str, kind: str, plan: dict[str, Any], data: str, stop: int, resume: bool
) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    loop.LOOK_SECONDS, loop.SHARE = 0.02, float("inf")
    told: dict[str, Any] = {"warned": [], "chosen": [], "saved": [], "history": [], "ended": ""}
    signal.signal(signal.SIGTERM, _leave)
    objective = MAKE[kind]()
    records = train(objective, DATA[data](), Plan(**plan), Path(folder) / "run", resume=resume)
    try:
        for record in records:
            if isinstance(record, Started):
                told["started"] = record.step
            elif isinstance(record, Warned):
                told["warned"].append(record.message)
            elif isinstance(record, Chose):
                told["chosen"].append(record.value)
            elif isinstance(record, Saved):
                told["saved"].append(record.step)
            elif isinstance(record, Finished):
                told |= {"ended": record.reason, "steps": record.steps}
                told["history"] = [(e.train, e.valid, e.best) for e in record.history]
            elif stop and getattr(record, "valid", None) and record.epoch == stop:  # type: ignore[attr-defined]
                records.close()
    except KeyboardInterrupt:
        told["ended"] = "terminated"
    told |= {name: getattr(objective, name) for name in ("seen", "drawn") if hasattr(objective, name)}
    left = shard.whole(toys.weights(objective))
    save_file({n: t.clone().contiguous() for n, t in left.items()}, f"{folder}/left-{rank}.safetensors")
    Path(f"{folder}/told-{rank}.json").write_text(json.dumps(told))


def _leave(*_: object) -> None:
    raise KeyboardInterrupt


def alone(kind: str, plan: Plan, data: str = "quiet") -> tuple[dict[str, Tensor], list[Any]]:
    """Train here, in one process; return the weights and the history."""
    objective = MAKE[kind]()
    *_, last = train(objective, DATA[data](), replace(plan, shard=False))
    assert isinstance(last, Finished)
    return toys.weights(objective), [(e.train, e.valid, e.best) for e in last.history]
