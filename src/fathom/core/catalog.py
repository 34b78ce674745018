"""A folder's files are its registry.

`models/resnet.py` makes `resnet` a name that a user can give; its `presets`, a dict from a name to a `Config`,
make `resnet18` one too. There is nothing to register and no list to keep. Files that begin with an underscore
are helpers and have no name.

What a public file of `models/`, `objectives/` and `wrappers/` holds:

    Config      a frozen dataclass; every field has a default
    presets     dict[str, Config]; the file's own name stands for `Config()`
    REFERENCE   the source: authors, title, year
    build       models: (config, spec) -> nn.Module with a `width`; objectives: (config, spec, model) -> Objective;
                wrappers: (config, spec, objective, past) -> Objective
    accepts     (spec) -> str | None: why this entry cannot take such data, or None where it can
    example     () -> DataSpec: the smallest data it is for (conformance tests run on it)
    paper       models, if they like: () -> DataSpec, the data of the paper, on which presets are counted
    complete    models, if they like: (config, spec) -> Config with what has to be looked up elsewhere, before training
    ready       models, if they like: (config) -> None imports what `build` needs beyond its own file
    fill        models, if they like: (network, config) -> sentences; puts weights into it before training
    recipe      if they like: (config, spec) -> {"engine": {…}, "objective": {…}, "augment": {…}}, the settings to train
                with where the user says nothing; an objective's come before a model's
    TARGET      objectives: whether they learn from target columns, "needed" (where nothing is said), "optional" or
                "unused": then a target is no input either
    PREPARE     objectives, if they like: options of group `prepare` where the user says nothing
    COLUMNS     objectives, if they like: what columns they need, said where there are too few of any kind to go on
    repeats     objectives that also learn from rows whose target is missing (code -1 in a batch): (config, rows with
                one, rows) -> how often a row with one stands in an epoch
    suggests    objectives, if they like: (spec) -> the name of the model to train where the user names none
    needs       objectives and wrappers, if they like: (model), or (objective), -> str | None: why they cannot train
                this model, or stand around this objective, or None

A model whose features are [B, K, D], those of an ensemble, also says how many `members` K it has.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from fathom.core.errors import ConfigError, did_you_mean

PACKAGE = Path(__file__).parent.parent
SINGULAR = {"models": "model", "objectives": "objective", "wrappers": "wrapper"}
LIBRARIES = {"hf": "_hf", "timm": "_timm"}  # before a colon: other libraries' models, and the file that builds them


@dataclass(frozen=True)
class Entry:
    """One choice that a user can name: the module behind it and the configuration that the name stands for."""

    room: str
    name: str
    module: ModuleType
    config: Any


def files(room: str) -> tuple[str, ...]:
    """Names of the public files of a room, sorted; nothing is imported."""
    return tuple(sorted(p.stem for p in (PACKAGE / room).glob("*.py") if not p.stem.startswith("_")))


@cache
def names(room: str) -> dict[str, str]:
    """Every name that `find` takes, with the file that holds it: the files, then their presets.

    Read from the source text, so that asking for names imports no framework.
    """
    known = {file: file for file in files(room)}
    for file in files(room):
        for preset in _preset_names((PACKAGE / room / f"{file}.py").read_text(encoding="utf-8")):
            known.setdefault(preset, file)
    return known


def find(room: str, name: str) -> Entry:
    """Return the entry of that name; of a model also "hf:NAME" or "timm:NAME", one of another library.

    Raises:
        ConfigError: no file or preset of that name; the message names the nearest.
    """
    library, colon, source = name.partition(":")
    if room == "models" and colon and source and library in LIBRARIES:
        module = import_module(f"fathom.{room}.{LIBRARIES[library]}")
        return Entry(room, name, module, module.Config(source=source))
    known = names(room)
    if name not in known:
        raise ConfigError(f"There is no {SINGULAR.get(room, room)} '{name}'.{did_you_mean(name, known)}")
    module = import_module(f"fathom.{room}.{known[name]}")
    presets = getattr(module, "presets", {})
    return Entry(room, name, module, presets[name] if name in presets else module.Config())


def _preset_names(source: str) -> list[str]:
    """Keys of the module's `presets = {...}` literal."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            target: ast.expr | None = node.target
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and target.id == "presets" and isinstance(node.value, ast.Dict):
            return [
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
    return []
