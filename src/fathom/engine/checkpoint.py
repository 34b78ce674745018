"""Checkpoints: a run's whole state in one safetensors file, and the best weights in another, written when they change.

    checkpoint-000012.safetensors   tensors; the rest of the state as JSON in the header; a SHA-256 over both
    best-000009.safetensors         the best weights, named by the checkpoints that need them

Each is written beside its place, flushed to disk and renamed, so a name stands for a whole file at any instant. The
last two checkpoints stay: one that is damaged is noticed by its SHA-256, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fathom.core.errors import TrainingError
from fathom.core.files import replacing

FORMAT = "fathom-checkpoint-1"
KEPT = 2
CHECKPOINT = re.compile(r"checkpoint-(\d{6,})\.safetensors")
OURS = re.compile(r"(checkpoint|best)-\d{6,}\.safetensors")
LEFTOVER = re.compile(r"\.(checkpoint|best)-\d{6,}\.safetensors\.\d+\.tmp")


class DamagedError(Exception):
    """A file that is not what was written."""


@dataclass
class Snapshot:
    """A run's state: `tensors` and JSON-able `values` change all the time, the `best` weights seldom."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    best: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0  # of the last one written
        self._kept: dict[str, str] = {}  # checkpoint -> the best weights it names, oldest first
        self._serial = max((int(m[1]) for name in self._names() if (m := CHECKPOINT.fullmatch(name))), default=0)

    def save(self, snapshot: Snapshot, best_changed: bool) -> Path:
        """Write the state; the `best` weights only if they changed since the last save or load.

        Raises:
            TrainingError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        self._serial += 1
        name, best = f"checkpoint-{self._serial:06d}.safetensors", next(reversed(self._kept.values()), "")
        path = self.folder / name
        try:
            if snapshot.best and (best_changed or not best):
                best = f"best-{self._serial:06d}.safetensors"
                _write(self.folder / best, snapshot.best, {})
            _write(path, snapshot.tensors, {"best": best if snapshot.best else "", "run": snapshot.values})
            self.bytes = path.stat().st_size
            self._kept[name] = best
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            self._remove_others()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"The checkpoint cannot be written to '{self.folder}' ({reason}); free some space or give another "
                "folder, then resume from the last checkpoint that was written."
            ) from None
        return path

    def load(self) -> tuple[Snapshot | None, list[str]]:
        """Return the newest whole checkpoint, if there is one, and a sentence on each that is damaged."""
        found = sorted((int(m[1]), name) for name in self._names() if (m := CHECKPOINT.fullmatch(name)))
        warnings = []
        for _, name in reversed(found):
            try:
                tensors, values = _read(self.folder / name)
                best = values["best"]
                if best and not OURS.fullmatch(best):
                    raise DamagedError(f"it names '{best}', which is no file of best weights")
                weights = _read(self.folder / best)[0] if best else {}
            except DamagedError as error:
                warnings.append(f"Checkpoint '{name}' is damaged ({error}); the one before it is tried.")
                continue
            self._kept = {name: best}
            return Snapshot(tensors, values["run"], weights), warnings
        return None, warnings

    def _names(self) -> list[str]:
        return [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []

    def _remove_others(self) -> None:
        """Remove older checkpoints, those of an earlier run, and what a killed process left half written."""
        needed = {*self._kept, *self._kept.values()}
        for name in self._names():
            if (OURS.fullmatch(name) and name not in needed) or LEFTOVER.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)


def _write(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    whole = _separate(tensors)
    text = json.dumps(values)
    metadata = {"format": FORMAT, "values": text, "sha256": _digest(whole, text)}
    with replacing(path) as temporary:
        save_file(whole, temporary, metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(str(error)) from None
    if metadata.get("format") != FORMAT:
        raise DamagedError("not a checkpoint of this version")
    text = metadata.get("values", "")
    if _digest(tensors, text) != metadata.get("sha256"):
        raise DamagedError("its contents do not match their SHA-256")
    return tensors, json.loads(text)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in main memory, contiguous, no two of them sharing any."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        if place in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone(memory_format=torch.contiguous_format)
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
