"""Loading: check the whole folder, then rebuild what it describes. Nothing in it is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import nn

from fathom.artifact import manifest, predict, rebuild, strict_json, swap, weights
from fathom.core.errors import ArtifactError, DataError
from fathom.core.objective import Objective, predicted
from fathom.core.types import Batch, DataSpec, Field, Store

if TYPE_CHECKING:
    import polars as pl

CONFIG_LIMIT, SPEC_LIMIT, METRICS_LIMIT = 1 << 20, 256 << 20, 256 << 20  # bytes
DIMENSION = 1 << 40  # no shape of a field goes beyond
# Where the layout of config.json or spec.json changes, the version that it had leads to a function that turns both
# documents into those of the next: {1: from_1_to_2}.
MIGRATIONS: dict[int, Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]] = {}


@dataclass
class Artifact:
    """A trained model, ready to predict.

    Attributes:
        module: the objective, in evaluation mode.
        spec: what the data is, as the model takes it.
        preprocess: turns a user's table into tensors, as it did in training.
        config: config.json.
        metrics: metrics.json.
        folder: where it was loaded from.
        files: names in the folder that are the artifact's; they were checked, and nothing else may be read.
        unlisted: names in the folder that are not the artifact's; they were not read.
    """

    module: Objective
    spec: DataSpec
    preprocess: Any
    config: dict[str, Any]
    metrics: dict[str, Any]
    folder: Path | None = None
    files: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    def outputs(
        self, data: Store | Iterable[Batch], batch_size: int | None = None, threads: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the predictions of a store, or of batches, by target name: see `fathom.artifact.outputs`."""
        return predict.outputs(self.module, data, predicted(self.module, self.spec), batch_size, threads)

    def measured(
        self, data: Store | Iterable[Batch], batch_size: int | None = None, threads: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return what the objective's metrics say of each sample [N]: see `fathom.artifact.measured`."""
        return predict.measured(self.module, data, batch_size, threads)

    def predict(
        self,
        frame: pl.DataFrame | Sequence[Mapping[str, Any]],
        batch_size: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        paths: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> pl.DataFrame:
        """Return a table with one row for each row of `frame`, in its order.

        `prediction`; of a category also `probability`, that of the predicted class, and `probability.CLASS`. Where
        the model has several targets: `prediction.TARGET` and `probability.TARGET`. A row that cannot be read has
        nulls, and its reason in the column `problem`.

        Args:
            frame: a polars frame as `fathom.data.read` returns it, or rows as dicts: what stands in its cells is taken
                as it is. `fathom.load(folder).predict` reads files, and cleans what people write into them.
            batch_size: rows that the model takes at a time; it changes no result.
            folder: where paths of images in the table begin.
            threads: to compute with; by default those that torch has.
            paths: whether a table may name images by path. Not in a server: a path may name any file.
            tell: takes sentences on values that were not understood, or texts that were cut.

        Raises:
            DataError: no table, or one without the model's columns.
        """
        frame = _frame(frame)
        ask = partial(self.outputs, batch_size=batch_size, threads=threads)
        arrays, kept, reasons = self.asked(frame, ask, folder, paths, tell)
        for encoder in self.preprocess.written:  # tokens that were written -> texts
            if encoder.column in arrays:
                arrays[encoder.column] = np.array(encoder.decode(arrays[encoder.column]), dtype=object)
        return predict.frame_of(self.spec, arrays, kept, frame.height, reasons)

    def embed(
        self,
        frame: pl.DataFrame | Sequence[Mapping[str, Any]],
        batch_size: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        paths: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> pl.DataFrame:
        """Return a table with one row for each row of `frame`, in its order: the vector that says where it lies among
        others, as columns `embedding.0`, `embedding.1` and so on; arguments, errors and `problem` are as in `predict`.
        """
        frame = _frame(frame)
        ask = partial(predict.embeddings, self.module, batch_size=batch_size, threads=threads)
        arrays, kept, reasons = self.asked(frame, ask, folder, paths, tell)
        return predict.frame_of(self.spec, arrays, kept, frame.height, reasons)

    def asked(
        self,
        frame: pl.DataFrame,
        ask: Callable[[Store], dict[str, np.ndarray]],
        folder: str | os.PathLike[str] | None,
        paths: bool,
        tell: Callable[[str], None] | None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, dict[int, str]]:
        """Return what `ask` says of those rows that can be read, some at a time: arrays by name, the rows' positions,
        and by position why the others cannot. The other arguments and errors are those of `predict`."""
        start = Path(folder) if folder is not None else None
        step = predict.rows_at_once(self.spec)
        found: dict[str, list[np.ndarray]] = {}
        rows: list[np.ndarray] = []
        problems: dict[int, str] = {}
        for first in range(0, max(1, frame.height), step):
            prepared = self.preprocess.transform(frame.slice(first, step), folder=start, paths=paths)
            rows.append(np.asarray(prepared.rows, dtype=np.int64) + first)
            if tell is not None:
                for note in prepared.notes:
                    tell(f"Rows from {first + 1:,}: {note}" if frame.height > step else note)
            problems |= {first + s.row - 1: _reason(s) for s in prepared.set_aside if s.row is not None}  # from 1
            for name, values in ask(prepared.store).items():
                found.setdefault(name, []).append(values)
        kept = np.concatenate(rows)
        lost = np.setdiff1d(np.arange(frame.height), kept)
        reasons = {int(row): problems.get(int(row), "it could not be read") for row in lost}
        return {name: np.concatenate(parts) for name, parts in found.items()}, kept, reasons


def load(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | Callable[[DataSpec], nn.Module] | None = None,
    objective: Objective | None = None,
    device: str | torch.device = "cpu",
) -> Artifact:
    """Return the artifact in `folder`.

    Every file is compared with the manifest first; then the model is rebuilt by the names in config.json, of which
    only those in Fathom's catalog count, and takes the weights.

    Args:
        model, objective: the user's own object, built as it was in training, where the artifact was made with one; of a
            model also the function from the DataSpec that builds it.
        device: where the model shall compute.

    Raises:
        ArtifactError: the folder is damaged, hostile, not Fathom's, or of a newer version; one sentence says which.
    """
    folder = Path(folder)
    try:
        swap.finish(folder)
        listed = manifest.verify(folder)
        _check_preprocessing(listed, folder)
        config, spec = _documents(folder)
        metrics = strict_json.read(folder / "metrics.json", METRICS_LIMIT)
        preprocess = rebuild.preprocessing(folder)
        if preprocess.spec != spec:
            raise ArtifactError(f"'{folder / 'spec.json'}' and '{folder / 'preprocess'}' are not of the same model.")
        path = folder / weights.NAME
        size, tensors = path.stat().st_size, len(weights.headers(path))
        module = rebuild.rebuild(config, spec, folder, size, tensors, model, objective)
        weights.read(module, path, _tied(config, folder))
    except OSError as error:
        raise ArtifactError(f"'{folder}' cannot be read: {error.strerror or error}.") from None
    files = tuple(listed.files)
    return Artifact(module.to(device).eval(), spec, preprocess, config, metrics, folder, files, listed.unlisted)


def _check_preprocessing(listed: manifest.Manifest, folder: Path) -> None:
    """Refuse files that were not checked where another room reads; what file managers leave is hidden and not read."""
    for name in listed.unlisted:
        if name.startswith("preprocess/") and not name.startswith("preprocess/."):
            raise ArtifactError(f"'{folder / name}' is not in the manifest; remove it, or copy the folder again.")


def _documents(folder: Path) -> tuple[dict[str, Any], DataSpec]:
    """Return config.json, and spec.json as the value it stands for, brought up to today's layout."""
    config_path, spec_path = folder / "config.json", folder / "spec.json"
    config = strict_json.read(config_path, CONFIG_LIMIT)
    schema = manifest.check_schema(config, str(config_path))
    values = strict_json.read(spec_path, SPEC_LIMIT)
    for version in range(schema, manifest.SCHEMA):
        config, values = MIGRATIONS[version](config, values)
    try:
        spec = msgspec.convert(values, DataSpec, strict=True)
    except msgspec.ValidationError as error:
        raise manifest.unreadable(spec_path, error) from None
    _check(spec, spec_path)
    return config, spec


def _tied(config: dict[str, Any], folder: Path) -> dict[str, str]:
    tied = config.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
        raise ArtifactError(f"'{folder / 'config.json'}' must give, as tied, the names of tensors by other names.")
    return tied


def _check(spec: DataSpec, path: Path) -> None:
    """Refuse what has the right types and yet describes no data."""
    for fields in (spec.inputs, spec.targets):
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise ArtifactError(f"'{path}' has two fields of one name.")
        for field in fields:
            problem = _problem(field)
            if problem:
                raise ArtifactError(f"'{path}' describes the field '{field.name[:100]}' wrongly: {problem}.")
    for field in spec.targets:
        if field.kind == "category" and not field.classes:
            raise ArtifactError(f"'{path}' describes the target '{field.name[:100]}' wrongly: it has no classes.")


def _problem(field: Field) -> str:
    if any(not 0 < size < DIMENSION for size in field.shape) or not 0 <= field.vocabulary < DIMENSION:
        return "a size is not a positive number"
    if len(field.shape) != {"image": 3, "text": 1}.get(field.kind, 0):
        return f"the shape of a {field.kind} has not {len(field.shape)} dimensions"
    if len(set(field.classes)) != len(field.classes):
        return "it has a class twice"
    if field.counts and len(field.counts) != len(field.classes):
        return "its classes and their counts differ in number"
    if field.stats and (not field.stats.mean or len(field.stats.mean) != len(field.stats.std)):
        return "its statistics are incomplete"
    return ""


def _frame(rows: Any) -> pl.DataFrame:
    import polars as pl

    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) for row in rows):
        return pl.DataFrame([dict(row) for row in rows], infer_schema_length=None, strict=False)
    raise DataError(
        f"predict was given a {type(rows).__name__}; expected a polars DataFrame or a list of rows as dicts."
    )


def _reason(aside: Any) -> str:
    return f"{aside.column}: {aside.reason}" if aside.column else str(aside.reason)
