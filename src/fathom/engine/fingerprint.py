"""What a run was made of, to tell whether a checkpoint belongs to it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fathom.core.config import as_dict
from fathom.core.errors import ConfigError
from fathom.core.types import Store, TrainingData
from fathom.engine.plan import Plan

LOOKED_AT = 4096  # rows whose values are compared
FREE = ("checkpoint_seconds", "memory", "shard")  # options that may change between a run and its resumption


def of_data(data: TrainingData) -> dict[str, Any]:
    """Return the rows, columns and a checksum over a few rows of each set."""
    return {"training": _of_store(data.train), "validation": _of_store(data.valid) if data.valid else None}


def check(
    plan: Plan,
    identity: Mapping[str, Any],
    data: TrainingData,
    model: Mapping[str, Tensor],
    values: Mapping[str, Any],
    saved: Any,
) -> None:
    """Refuse a checkpoint that belongs to another plan, other data or another model.

    Args:
        plan, identity, data, model: of the run that wants to go on; `model` is its weights by name.
        values: the checkpoint's plain values, with `plan`, `identity` and `data`.
        saved: the checkpoint's weights by name.

    Raises:
        ConfigError: naming the first difference.
    """
    for ours, theirs in ((as_dict(plan), values["plan"]), (dict(identity), values["identity"])):
        for name in sorted({*ours, *theirs} - {*FREE}):
            if ours.get(name) != theirs.get(name):
                _refuse(f"its {name} was {theirs.get(name)!r}, now it is {ours.get(name)!r}")
    for which, found in of_data(data).items():
        then = values["data"][which]
        for part in ("rows", "columns", "checksum"):
            a, b = (then or {}).get(part), (found or {}).get(part)
            if a != b:
                values_differ = f"the values of its {which} rows differ"
                _refuse(values_differ if part == "checksum" else f"its {which} {part} were {a}, now {b}")
    for name in sorted({*model, *saved}):
        then, now = (str(tuple(w[name].shape)) if name in w else "missing" for w in (saved, model))
        if then != now:
            _refuse(f"its weight '{name}' was {then}, now it is {now}")


def made_with() -> dict[str, str]:
    """Return what else decides how results are rounded."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": f"{platform.machine()} {capability}"}


def _refuse(difference: str) -> None:
    raise ConfigError(
        f"The checkpoint belongs to another run: {difference}; give the same settings, or start afresh without resume."
    )


def _of_store(store: Store) -> dict[str, Any]:
    rows = len(store)
    if not rows:
        return {"rows": 0, "columns": {}, "checksum": ""}
    count = min(rows, LOOKED_AT)
    looked_at = torch.arange(count) * rows // count
    store.soon(looked_at)
    batch = store.gather(looked_at)
    digest = hashlib.sha256()
    for key in sorted(batch):
        digest.update(batch[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    columns = {key: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape[1:])}" for key, t in sorted(batch.items())}
    return {"rows": rows, "columns": columns, "checksum": digest.hexdigest()}
