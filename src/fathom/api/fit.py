"""Training from end to end: data, model, objective, engine, evaluation, artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fathom.api.album import Album
from fathom.api.assemble import (
    Assembled,
    ModelChoice,
    ObjectiveChoice,
    assemble,
    columns_needed,
    fitting,
    preparing,
    repeats,
    use_of_targets,
)
from fathom.api.conclude import conclude
from fathom.api.config import Settings, gather
from fathom.api.model import Model
from fathom.api.own import from_file, is_own
from fathom.api.past import Past
from fathom.api.prepare import Material, prepare
from fathom.api.progress import say, watch
from fathom.api.transfer import origin
from fathom.artifact import check_room
from fathom.core.config import build, read_toml, to_toml
from fathom.core.device import leads
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.files import write_text
from fathom.core.types import TrainingData
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Finished, Saved

CHECKPOINTS = "checkpoints"  # the folder of a run within that of its model


def fit(
    source: Any = None,
    target: str | Sequence[str] | None = None,
    *,
    test: Any = None,
    out: str | os.PathLike[str] | None = None,
    model: ModelChoice = None,
    weights: str | os.PathLike[str] | None = None,
    freeze: bool | float | None = None,
    objective: ObjectiveChoice = None,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    progress: bool = False,
) -> Model:
    """Train a model on a source and return it with its evidence.

    Args:
        source: a table (CSV, TSV, Parquet, JSON lines), a folder of images or texts by class, a polars or pandas
            frame, rows as dicts, or the name of a bundled sample.
        target: the column to predict, or several; of a folder by class it is the folder's name. Objectives that learn
            without targets leave it out.
        test: a source to test on; otherwise some rows are kept back.
        out: a folder for the model and its checkpoints; without it everything stays in memory.
        model: a name from `fathom.list_models()`; "hf:NAME" or "timm:NAME", an encoder of those libraries; an
            `nn.Module`, or a function from a DataSpec to one; or where such a function stands: "path.py:build".
        weights: of a trained network to learn on from: a model's folder, one with published weights, a .gguf file, or
            "hf:NAME@REVISION". freeze: whether it stays as it is, so that only heads learn, or the share of its layers
            that do, from the input on.
        objective: a name from `fathom.list_objectives()`, a combination such as "supervised+0.5*contrast" or
            "mixup(supervised)", or a function from (DataSpec, nn.Module) to an Objective.
        minutes: the most that training may take. epochs: passes over the training rows.
        seed: of every random choice.
        config: options as a TOML file or nested dict, such as {"model": {"depth": 4}, "split": {…}}.
        sets: single options over all others, such as "engine.batch_size=64".
        resume: go on from the last checkpoint in `out`; the result is that of a run never interrupted.
        progress: tell on stderr what is going on.

    Raises:
        DataError, ConfigError, TrainingError, ArtifactError: one sentence says what to mend.
    """
    if out is not None:
        check_room(out)
    progress = progress and leads()
    tell = say if progress else _silent
    if isinstance(model, str) and is_own(model):
        model = from_file(model)
    settings = gather(
        _given(config, out, resume, {"model": model, "objective": objective}),
        {
            "data": {
                "source": _name_of(source),
                "test": _name_of(test),
                "target": [target] if isinstance(target, str) else list(target) if target else None,
            },
            "transfer": {"source": _name_of(weights), "freeze": None if freeze is None else float(freeze)},
            "model": {"name": model if isinstance(model, str) else None},
            "objective": {"name": objective if isinstance(objective, str) else None},
            "engine": {"minutes": minutes, "epochs": epochs, "seed": seed},
        },
        sets,
    )
    source = settings.of("data").get("source") if source is None else source
    test = settings.of("data").get("test") or None if test is None else test
    if source is None or (isinstance(source, str) and not source):
        raise ConfigError("There is nothing to learn from: give a source, or --config with data.source in it.")

    asked = settings.of("engine").get("batch_size", 0)
    seed = build(Plan, settings.of("engine"), "engine").seed
    begun = origin(settings)
    if begun is not None:
        settings = settings.over(fitting(begun.settings, settings))
    use = use_of_targets(settings, objective)
    settings = settings.over({"prepare": preparing(settings, objective)})
    words, again = begun.vocabulary if begun else None, repeats(settings, objective)
    lacking = columns_needed(settings, objective)
    material = prepare(source, test, settings, seed, words, use, begun is not None, again, lacking)
    _check_batch(asked, len(material.train.prepared.rows))
    for line in material.told():
        tell(line)
    past = Past(material, begun)
    assembled = assemble(material.preprocess.spec, settings, model, objective, material.settings, begun, past)
    tell(f"model: {_model_name(assembled)} ({assembled.why})")
    for line in assembled.notes:
        tell(line)
    identity = _identity(assembled.settings.groups) | past.found
    album = Album(None if out is None else Path(out) / CHECKPOINTS)
    settings, finished = _train(material, assembled, identity, album, resume, progress)
    assembled = replace(assembled, settings=settings, objective=assembled.objective.kept())
    tell(f"measuring on {len(material.judge[1].prepared.rows):,} {material.judge[0]} rows")
    adapter = begun.settled(assembled.objective.model) if begun else b""
    during = album.told(finished.shown)
    trained = conclude(material, assembled, finished, os.fspath(out) if out else "MODEL", during)
    trained.adapter = adapter
    if out is not None and leads():
        trained.save(out)
    return trained


def _check_batch(asked: Any, rows: int) -> None:
    """Refuse a batch larger than the data; what a recipe proposes is made smaller instead."""
    if isinstance(asked, int) and asked > rows:
        raise ConfigError(
            f"Option 'engine.batch_size' was given {asked:,}; there are {rows:,} training rows. Give at most as many, "
            "or leave it out."
        )


def _train(
    material: Material,
    assembled: Assembled,
    identity: dict[str, Any],
    album: Album,
    resume: bool,
    progress: bool,
) -> tuple[Settings, Finished]:
    """Train; return the complete settings, with what the engine measured fixed, and the last record. Checkpoints go
    where the album is kept."""
    folder = album.folder
    groups = assembled.settings.groups
    data = TrainingData(
        train=material.learned,
        valid=material.valid.prepared.store if material.valid else None,
        augment=assembled.augment,
    )
    running = train(assembled.objective, data, assembled.plan, folder, resume, identity, album.keep)
    finished, told = None, False
    for record in watch(running, progress):
        if isinstance(record, Saved) and folder is not None and not told:  # not before the engine has taken the run on
            _write(folder / "config.toml", to_toml(groups))
            told = True
        finished = record if isinstance(record, Finished) else None
    assert finished is not None
    measured = {
        "threads": finished.threads,
        "precision": finished.precision,
        "channels_last": "yes" if finished.channels_last else "no",
        "form": finished.form,
        "accumulate": finished.accumulate,
    }
    complete = groups | {"engine": groups["engine"] | measured}
    if not leads():  # the first process measures the model, and compares it
        complete |= {"evaluate": groups["evaluate"] | {"baselines": False}}
    return Settings(complete), finished


def _identity(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options that a run and its resumption must share, besides the plan: the engine compares them."""
    shared = {
        f"{group}.{name}": value
        for group in ("data", "split", "prepare", "augment", "transfer", "model", "objective")
        for name, value in groups.get(group, {}).items()
        if f"{group}.{name}" not in ("data.source", "data.test")  # the rows themselves are compared
    }
    return json.loads(json.dumps(shared))


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be written: {error.strerror or error}; give another --out.") from None


def _given(config: Any, out: str | os.PathLike[str] | None, resume: bool, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the interrupted run, or of the config file. A model or an objective that is named anew
    drops another's options."""
    stored = None if out is None else Path(out) / CHECKPOINTS / "config.toml"
    if resume and out is None:
        raise ConfigError("There is nothing to resume: name the run's folder with --out (or out=…).")
    if config is not None:
        values = dict(config) if isinstance(config, Mapping) else read_toml(config)
    else:
        values = read_toml(stored) if resume and stored is not None and stored.exists() else {}
    for group, name in named.items():
        options = values.get(group)
        if isinstance(name, str) and isinstance(options, Mapping) and options.get("name", name) != name:
            values[group] = {}
    return values


def _name_of(source: Any) -> str | None:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


def _model_name(assembled: Assembled) -> str:
    entry = assembled.entries["model"]
    return entry.name if entry else type(assembled.objective.model).__name__


def _silent(text: str) -> None:
    pass
