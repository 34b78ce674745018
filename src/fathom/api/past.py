"""What was trained and learned from before, found by its folder: for objectives that build on it."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import torch

from fathom import artifact as artifacts
from fathom.api.config import Settings, gather
from fathom.api.prepare import Material, prepare
from fathom.api.transfer import Origin
from fathom.artifact import Artifact, manifest
from fathom.core import compose
from fathom.core.config import build
from fathom.core.errors import ConfigError, DataError
from fathom.core.past import Trained
from fathom.core.types import Store, TrainingData
from fathom.data import Table, read
from fathom.engine import fingerprint
from fathom.engine.plan import Plan

COMPUTES = ("config.json", "model", "preprocess/", "spec.json")  # files that what a model says depends on
COMPARED = 256  # training rows on which two preparations are compared


class Past:
    """Finds earlier models and their rows.

    Attributes:
        begun: the folder of the model that this training goes on from, "" where there is none.
        found: what was found, by the option that asked for it: checksums, which a resumed run has to share.
    """

    def __init__(self, material: Material | None = None, begun: Origin | None = None) -> None:
        self.material = material
        folder = Path(begun.config.source).expanduser() if begun is not None else None
        self.begun = str(folder) if folder is not None and (folder / manifest.NAME).exists() else ""
        self.found: dict[str, Any] = {}
        self._loaded: dict[str, Artifact] = {}

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        """Return the model in `folder`: see `fathom.core.past.Past`."""
        found = self._artifact(folder, option)
        if alike:
            self._require_alike(found, folder, option)
        return Trained(folder, found.module, found.spec)

    def rows(self, folder: str, source: str, option: str, own: bool = True) -> Store:
        """Return rows of earlier training: see `fathom.core.past.Past`."""
        table, chosen = (read(source), None) if source else self._learned_from(folder, option)
        preprocess = self._artifact(folder, option).preprocess if own else self._now(option).preprocess
        prepared = preprocess.transform(table.frame, rows=chosen, folder=table.folder, with_targets=True)
        if not len(prepared.rows):
            why = prepared.set_aside[0].reason if prepared.set_aside else "it has none"
            raise DataError(f"No row of {table.origin}, which '{option}' asks for, can be used; the first: {why}.")
        place = f"{option} {source or folder}"
        self.found[place] = fingerprint.of_data(TrainingData(train=prepared.store))["training"]["checksum"]
        return prepared.store

    def present(self, option: str) -> Store:
        """Return the rows that are learned from now: see `fathom.core.past.Past`."""
        return self._now(option).train.prepared.store

    def _artifact(self, folder: str, option: str) -> Artifact:
        if folder not in self._loaded:
            place = Path(folder).expanduser()
            if not (place / manifest.NAME).exists():
                raise ConfigError(f"Option '{option}' was given '{folder}'; expected the folder of a trained model.")
            self._loaded[folder] = artifacts.load(place)
            self.found[f"{option} {folder}"] = _checksum(place)
        return self._loaded[folder]

    def _now(self, option: str) -> Material:
        if self.material is None:
            raise ConfigError(f"Option '{option}' asks for rows, which only `fathom fit` can look up.")
        return self.material

    def _learned_from(self, folder: str, option: str) -> tuple[Table, Any]:
        """Return the table that a model was trained on, and the positions of its training rows in it."""
        config = Path(folder).expanduser() / "config.toml"
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            values = {}
        source = values.get("data", {}).get("source")
        if not source:
            raise ConfigError(
                f"'{folder}' does not tell what it was trained on (a table in memory has no path): name its rows with "
                f"--set {option.rpartition('.')[0]}.data=SOURCE."
            )
        settings: Settings = gather(values, {}, ())
        seed = build(Plan, settings.of("engine"), "engine").seed
        entry = compose.chosen({"name": compose.DEFAULT, **settings.of("objective")})
        use = str(getattr(entry.module, "TARGET", "needed"))
        material = prepare(source, settings.of("data").get("test") or None, settings, seed, use=use)
        return material.train.table, material.train.prepared.rows

    def _require_alike(self, earlier: Artifact, folder: str, option: str) -> None:
        """Refuse a model that takes other tensors than the present rows were turned into."""
        part = self._now(option).train
        few = part.prepared.rows[:COMPARED]
        place = f"The model of '{option}', '{folder}',"
        try:
            theirs = earlier.preprocess.transform(part.table.frame, rows=few, folder=part.table.folder).store
        except DataError as error:
            raise ConfigError(f"{place} cannot take these rows: {error}") from None
        ours = part.prepared.store.gather(torch.arange(len(few)))
        inputs = {key: value for key, value in ours.items() if not key.startswith("target:")}
        given = theirs.gather(torch.arange(len(theirs)))
        for key, value in inputs.items():
            if key not in given or given[key].shape != value.shape or not torch.equal(given[key], value):
                name = key.partition(":")[2] or f"{key} columns"
                raise ConfigError(
                    f"{place} does not take '{name}' as it is prepared here: train both on the same rows with the same "
                    "seed and options of split and prepare."
                )
        if more := [key for key in given if key not in inputs]:
            raise ConfigError(f"{place} also takes '{more[0].partition(':')[2] or more[0]}', which is not given here.")


def _checksum(folder: Path) -> str:
    """Return that of what a model computes. Its reports tell dates, and are written anew when it is finished again."""
    listed = manifest.read(folder).files
    told = sorted((name, each.sha256) for name, each in listed.items() if name.startswith(COMPUTES))
    return hashlib.sha256(repr(told).encode()).hexdigest()
