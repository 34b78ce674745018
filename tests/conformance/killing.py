"""Runs of the catalog's objectives that kill their own process: in the middle of a step, or of a save."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fathom.core import catalog, compose, files
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Past, Trained
from fathom.core.types import DataSpec, TrainingData
from fathom.data import TensorStore
from fathom.engine import loop, step
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from tests.conformance.samples import batch_of
from tests.wrappers.earlier import Earlier

PLAN = Plan(
    epochs=2,
    batch_size=8,
    threads=1,
    precision="fp32",
    channels_last="no",
    average=0.9,
    accumulate=2,
    checkpoint_seconds=0.0,
    learning_rate=1e-3,
)
FIRST = ("mlp", "resnet", "bag", "gpt", "bert", "transformer", "autoencoder", "dcgan", "unet")  # small ones


@dataclass(frozen=True)
class Task:
    """An objective to train.

    Attributes:
        name: of the objective, or of several together: sam(supervised), supervised+contrast.
        options: of it.
        example: the objective on whose example it is trained; "": its own.
        earlier: whether it goes on from an earlier training of what is within its wrapper.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    example: str = ""
    earlier: bool = False

    def __str__(self) -> str:
        return " ".join([self.name, *(str(value) for value in self.options.values())])

    def built(self, seed: int) -> tuple[DataSpec, Objective]:
        """Return the data's look and the objective, around a model that can serve it."""
        if not self.earlier:
            return objective_of(self.name, seed, self.options, self.example)
        inner = self.name.partition("(")[2].removesuffix(")")
        spec, before = objective_of(inner, 7, example=self.example)
        store = TensorStore(batch_of(spec, 12, seed=2))
        past = Earlier(Trained("earlier", before.eval(), spec), store, begun="earlier")
        return objective_of(self.name, seed, self.options, self.example, past)


def objective_of(
    name: str, seed: int = 0, options: Mapping[str, Any] | None = None, example: str = "", past: Past | None = None
) -> tuple[DataSpec, Objective]:
    """Return an objective of the catalog on the data of its example, around a model that can serve it.

    Args:
        name, options, example: as those of a `Task`.
        past: what was trained before, for wrappers that remember.
    """
    entry = compose.chosen({"name": name, **(options or {})})
    leaves = getattr(entry.module, "leaves", (name,))
    spec = catalog.find("objectives", example or leaves[0]).module.example()
    torch.manual_seed(seed)
    suggests = getattr(entry.module, "suggests", lambda spec: "")(spec)
    for model in (*([suggests] if suggests else []), *FIRST, *catalog.files("models")):
        found = catalog.find("models", model)
        if found.module.accepts(spec) is not None:
            continue
        network: nn.Module = found.module.build(found.config, spec)
        if getattr(entry.module, "needs", lambda model: None)(network) is None:
            try:
                return spec, compose.build(entry, spec, network, past or Earlier())
            except ConfigError:  # it lacks what the options ask for, as dropout
                continue
    raise AssertionError(f"no model of the catalog can serve '{name}' on its own example")


def data_of(spec: DataSpec) -> TrainingData:
    return TrainingData(train=TensorStore(batch_of(spec, 20)), valid=TensorStore(batch_of(spec, 9, seed=1)))


def run(
    wanted: Task, folder: Path | None, kill: str = "", resume: bool = False, form: str = ""
) -> dict[str, torch.Tensor]:
    """Train; return the weights.

    Args:
        kill: "step" or "save", in which the process ends itself; "": it does not.
        form: of whole steps, "recorded" or "compiled"; "": plain ones in two parts.
    """
    plan = replace(PLAN, accumulate=1, form=form, epochs=4) if form else PLAN  # type: ignore[arg-type]
    torch.set_num_threads(1)
    if form == "compiled":  # in this process: workers would outlive it, and its parent wait for them
        torch._inductor.config.compile_threads = 1
    loop.LOOK_SECONDS, loop.SHARE = 0.0, float("inf")  # a checkpoint after each step
    spec, task = wanted.built(seed=3 if resume else 0)
    if kill == "step" and form:  # what is played back or compiled does not call the objective
        _count(step.Stepper, "_apply", 6 * len(task.phases()) + 1)
    elif kill == "step":
        _count(task, "losses", 4 * len(task.phases()) + 2)
    elif kill == "save":
        _count(files.os, "replace", 3)
    for _ in train(task, data_of(spec), plan, folder, resume=resume):
        pass
    return {n: t.detach().clone() for n, t in (*task.named_parameters(), *task.named_buffers())}


def child(wanted: Task, folder: str, kill: str, resume: bool, form: str = "") -> None:
    run(wanted, Path(folder), kill, resume, form)


def _count(owner: Any, method: str, last: int) -> None:
    """End the process, without a word, at the `last` call of a method."""
    plain, calls = getattr(owner, method), [0]

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*given, **named)

    setattr(owner, method, counted)
