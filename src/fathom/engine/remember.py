"""What the tuner found, kept from run to run, by model and machine: a JSON file in the user's cache folder.

It only saves measuring what lost: what is remembered is measured once more beside the plain settings before it is
taken. The file may be deleted at any time; one that cannot be read or written is done without.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from fathom.core.config import as_dict
from fathom.core.files import write_text
from fathom.engine.run import Run

MOST = 200  # models that are remembered


def place() -> Path:
    """Return the file: in $XDG_CACHE_HOME, or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "fathom" / "tuned.json"


def key(run: Run) -> str:
    """Return what stands for this model, batch and machine."""
    shapes = [[name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in run.objective.named_parameters()]
    kinds = [type(module).__name__ for module in run.objective.modules()]
    plan = as_dict(run.plan)
    asked = {
        name: plan[name]
        for name in ("batch_size", "optimizer", "precision", "threads", "channels_last", "form", "memory")
    }
    machine = [platform.node(), platform.machine(), os.cpu_count(), torch.get_num_threads(), torch.__version__]
    text = json.dumps([shapes, kinds, asked, machine, str(run.device), _environment()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(name: str) -> dict[str, Any] | None:
    """Return what was kept under a key, if anything was."""
    found = _read().get(name)
    return found if isinstance(found, dict) else None


def keep(name: str, value: dict[str, Any]) -> None:
    """Keep a value, in place of the oldest where there are too many."""
    known = _read()
    known.pop(name, None)
    known[name] = value
    while len(known) > MOST:
        del known[next(iter(known))]
    try:
        place().parent.mkdir(parents=True, exist_ok=True)
        write_text(place(), json.dumps(known, indent=1) + "\n")
    except OSError:
        return  # a read-only home, say: the next run measures again


def _read() -> dict[str, Any]:
    try:
        found = json.loads(place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _environment() -> dict[str, str]:
    """Return the settings of the process that change how fast it is."""
    return {
        name: os.environ[name] for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS") if name in os.environ
    }
