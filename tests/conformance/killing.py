"""Runs of the catalog's objectives that kill their own process: in the middle of a step, or of a save."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fathom.core import catalog, files
from fathom.core.objective import Objective
from fathom.core.types import DataSpec, TrainingData
from fathom.data import TensorStore
from fathom.engine import loop, step
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from tests.conformance.samples import batch_of

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


def objective_of(name: str, seed: int = 0) -> tuple[DataSpec, Objective]:
    """Return an objective of the catalog on the data of its example, around a model that can serve it.

    Args:
        name: of the objective, or of a wrapper and what it is around: sam(supervised).
    """
    if name.endswith(")"):
        outer, _, rest = name[:-1].partition("(")
        wrapper, (spec, inner) = catalog.find("wrappers", outer), objective_of(rest, seed)
        return spec, wrapper.module.build(wrapper.config, spec, inner)
    entry = catalog.find("objectives", name)
    spec = entry.module.example()
    torch.manual_seed(seed)
    suggests = getattr(entry.module, "suggests", lambda spec: "")(spec)
    for model in (*([suggests] if suggests else []), *FIRST, *catalog.files("models")):
        found = catalog.find("models", model)
        if found.module.accepts(spec) is not None:
            continue
        network: nn.Module = found.module.build(found.config, spec)
        if getattr(entry.module, "needs", lambda model: None)(network) is None:
            return spec, entry.module.build(entry.config, spec, network)
    raise AssertionError(f"no model of the catalog can serve '{name}' on its own example")


def data_of(spec: DataSpec) -> TrainingData:
    return TrainingData(train=TensorStore(batch_of(spec, 20)), valid=TensorStore(batch_of(spec, 9, seed=1)))


def run(
    name: str, folder: Path | None, kill: str = "", resume: bool = False, form: str = ""
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
    spec, task = objective_of(name, seed=3 if resume else 0)
    if kill == "step" and form:  # what is played back or compiled does not call the objective
        _count(step.Stepper, "_apply", 6 * len(task.phases()) + 1)
    elif kill == "step":
        _count(task, "losses", 4 * len(task.phases()) + 2)
    elif kill == "save":
        _count(files.os, "replace", 3)
    for _ in train(task, data_of(spec), plan, folder, resume=resume):
        pass
    return {n: t.detach().clone() for n, t in (*task.named_parameters(), *task.named_buffers())}


def child(name: str, folder: str, kill: str, resume: bool, form: str = "") -> None:
    run(name, Path(folder), kill, resume, form)


def _count(owner: Any, method: str, last: int) -> None:
    """End the process, without a word, at the `last` call of a method."""
    plain, calls = getattr(owner, method), [0]

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*given, **named)

    setattr(owner, method, counted)
