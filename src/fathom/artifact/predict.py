"""Predictions: of a live objective or a loaded one, a batch at a time.

outputs     samples -> {target: array}, the objective's own predictions
measured    samples -> {measure: array}, what its `metrics` says of each
embeddings  samples -> {"embedding": array}, where each lies among others
answers     samples -> {name: array}, whatever the objective is asked for
frame_of    those arrays -> a table with one row for each row that was asked about
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.ahead import announced
from fathom.core.errors import ConfigError
from fathom.core.modes import modes_kept
from fathom.core.objective import Objective, embedding
from fathom.core.types import Batch, DataSpec, Field, Store

if TYPE_CHECKING:
    import polars as pl

VALUES_AT_ONCE = 4_000_000  # of a batch's inputs, unless a batch size is given
LARGEST_BATCH = 256
BYTES_AT_ONCE = 64 << 20  # of the tensors that a table is turned into at a time


def outputs(
    objective: Objective,
    data: Store | Iterable[Batch],
    targets: Sequence[Field] = (),
    batch_size: int | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Return what the objective predicts for each sample, by target name.

    Probabilities [N, C] of a category, values [N] of a number. Modes of the modules, the random state and the number
    of threads are afterwards what they were before.

    Args:
        data: a store, or batches; they are moved to the objective's device.
        targets: give the shapes of an answer about no samples at all.
        batch_size: of a store; by default what keeps a batch's inputs small. It changes no result.
        threads: to compute with; by default those that torch has.

    Raises:
        ConfigError: a batch size or a number of threads below 1.
    """
    found = answers(objective, objective.predict, data, batch_size, threads)
    if not found:
        return {t.name: np.zeros((0, len(t.classes)) if t.kind == "category" else 0, np.float32) for t in targets}
    return found


def measured(
    objective: Objective, data: Store | Iterable[Batch], batch_size: int | None = None, threads: int | None = None
) -> dict[str, np.ndarray]:
    """Return what the objective's `metrics` says of each sample, [N] by name; what is random in it is always the same.

    Arguments and errors are those of `outputs`.
    """
    return answers(objective, objective.metrics, data, batch_size, threads)


def embeddings(
    objective: Objective, data: Store | Iterable[Batch], batch_size: int | None = None, threads: int | None = None
) -> dict[str, np.ndarray]:
    """Return `embedding` [N, D], where each sample lies among others (see `fathom.core.objective.embedding`).

    Arguments and errors are those of `outputs`.
    """
    return answers(objective, lambda batch: {"embedding": embedding(objective, batch)}, data, batch_size, threads)


def answers(
    objective: Objective,
    ask: Callable[[Batch], Mapping[str, Tensor]],
    data: Store | Iterable[Batch],
    batch_size: int | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Return what the objective is asked for of each batch, joined. Arguments and errors are those of `outputs`."""
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} was given {value}; expected 1 or more.")
    device = _device(objective)
    parts: dict[str, list[np.ndarray]] = {}
    with evaluating(objective, device), _threads(threads):
        for batch in _batches(data, batch_size):
            moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            for name, values in ask(moved).items():
                parts.setdefault(name, []).append(_array(values))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def frame_of(
    spec: DataSpec,
    found: Mapping[str, np.ndarray],
    rows: np.ndarray,
    height: int,
    problems: Mapping[int, str],
) -> pl.DataFrame:
    """Return predictions as a table of `height` rows.

    Args:
        found: by target name: probabilities [N, C] or values [N]; by other names values [N] or [N, D].
        rows: the position of each of the N in the table, rising; the others stay null.
        problems: why a row could not be predicted, by its position; the column `problem`, where there is any.
    """
    import polars as pl

    place = np.full(height, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    index = pl.Series(place, dtype=pl.Int64)
    index = index.set(index < 0, None)
    single = len(found) == 1 or len(spec.targets) == 1
    columns: dict[str, pl.Series] = {}
    fields = {field.name: field for field in spec.targets}
    for name, values in found.items():
        end = "" if single else f".{name}"
        field = fields.get(name)
        if field is None and values.ndim == 2:  # an embedding: a column for each of its numbers
            for number in range(values.shape[1]):
                columns[f"{name}.{number}"] = pl.Series(np.ascontiguousarray(values[:, number])).gather(index)
            continue
        if field is None:
            columns[name] = pl.Series(values).gather(index)
            continue
        if field.kind != "category":
            plain = pl.Series(values.tolist(), dtype=pl.String) if field.kind == "text" else pl.Series(values)
            columns[f"prediction{end}"] = plain.gather(index)
            continue
        columns[f"prediction{end}"] = pl.Series(field.classes, dtype=pl.String).gather(values.argmax(1)).gather(index)
        columns[f"probability{end}"] = pl.Series(values.max(1)).gather(index)
        if single:
            for code, label in enumerate(field.classes):
                columns[f"probability.{label}"] = pl.Series(np.ascontiguousarray(values[:, code])).gather(index)
    if problems:
        columns["problem"] = pl.Series([problems.get(row) for row in range(height)], dtype=pl.String)
    return pl.DataFrame(columns)


def rows_at_once(spec: DataSpec) -> int:
    """Return how many rows of a table to turn into tensors at a time."""
    each = 0
    for field in spec.inputs:
        size = math.prod(field.shape)
        each += size if field.kind == "image" else 8 * size
    return max(64, min(65_536, BYTES_AT_ONCE // max(1, each)))


def _batches(data: Store | Iterable[Batch], size: int | None) -> Iterator[Batch]:
    if not isinstance(data, Store):
        yield from data
        return
    total = len(data)
    size = size or _batch_size(data, total)
    if total:
        yield from map(data.gather, announced(data, torch.arange(total).split(size)))


def _batch_size(data: Store, total: int) -> int:
    if total == 0:
        return 1
    sample = sum(value.numel() for value in data.gather(torch.zeros(1, dtype=torch.int64)).values())
    return max(1, min(LARGEST_BATCH, VALUES_AT_ONCE // max(1, sample)))


def _array(values: Tensor) -> np.ndarray:
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return cast(np.ndarray, values.cpu().numpy())


def _device(module: nn.Module) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients, from the same random state each time; afterwards every module's own mode and
    the random state are as before."""
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with modes_kept(module), torch.inference_mode(), forked:
        module.eval()
        torch.manual_seed(0)
        yield


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
