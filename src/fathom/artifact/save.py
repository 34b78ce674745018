"""Saving: everything that the next rooms need of a trained model, as plain files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fathom.artifact import card, strict_json, weights
from fathom.artifact.load import CONFIG_LIMIT, METRICS_LIMIT, SPEC_LIMIT
from fathom.artifact.manifest import FORMAT, SCHEMA, check_name
from fathom.artifact.rebuild import described
from fathom.artifact.swap import replacing_folder
from fathom.core.errors import ArtifactError
from fathom.core.objective import Objective
from fathom.core.types import DataSpec

OWN = ("config.json", "spec.json", "metrics.json", weights.NAME)


def save(
    folder: str | os.PathLike[str],
    *,
    model: Any,
    objective: Any,
    module: Objective,
    spec: DataSpec,
    preprocess: Any,
    metrics: Mapping[str, Any],
    files: Mapping[str, str | bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the artifact into `folder`, in the place of the one that stands there, and return the folder.

    Until everything is on disk the old artifact is untouched; whatever happens, a whole one can be loaded. What the
    manifest does not list (the run's checkpoints, a user's notes) is neither deleted nor overwritten.

    Args:
        model, objective: their catalog entries with the configurations used, or mappings with `name` and `config`;
            None for an object of the user's own, which loading will then ask for.
        module: the trained objective.
        preprocess: its `save(folder)` writes the folder `preprocess/`.
        metrics: metrics.json; what is not a finite number becomes null.
        files: further files by name: report.html, config.toml, evidence.json …; a README.md replaces the model card.
        about: facts for the model card: `name`, `source` (what it was trained on), `license`, `notes` (limitations).

    Raises:
        ArtifactError: the folder is in use for something else or cannot be written, or a file has no place in it.
    """
    folder, files, about = Path(folder), dict(files or {}), dict(about or {})
    for name in files:
        check_name(name, "files")
        if name in OWN or name.startswith("preprocess/"):
            raise ArtifactError(f"'{name}' is written by Fathom itself; give the file another name.")
    if preprocess.spec != spec:
        raise ArtifactError(
            "The preprocessing's spec and the given one differ; save a model with the spec it was built on."
        )
    document = _config(model, objective, module, about)
    measured = strict_json.plain(dict(metrics))
    files.setdefault("README.md", card.render(document, spec, measured, files))
    with replacing_folder(folder) as stage:
        document["tied"] = weights.write(module, stage / weights.NAME)
        _write_json(stage / "config.json", document, CONFIG_LIMIT)
        _write_json(stage / "spec.json", msgspec.to_builtins(spec), SPEC_LIMIT)
        _write_json(stage / "metrics.json", measured, METRICS_LIMIT)
        (stage / "preprocess").mkdir()
        preprocess.save(stage / "preprocess")
        for name, content in files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return folder


def _config(model: Any, objective: Any, module: Objective, about: dict[str, Any]) -> dict[str, Any]:
    import torch

    import fathom

    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "fathom": fathom.__version__,
        "torch": torch.__version__,
        "model": described(model, getattr(module, "model", None)),
        "objective": described(objective, module),
        "about": strict_json.plain(about),
    }


def _write_json(path: Path, value: Any, limit: int) -> None:
    try:
        data = strict_json.encode(value)
        strict_json.parse(data, path.name)  # what is written can be read: same rules
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"'{path.name}' cannot be written: {error}.") from None
    if len(data) > limit:
        raise ArtifactError(f"'{path.name}' would have {len(data):,} bytes; at most {limit:,} can be loaded again.")
    path.write_bytes(data)
