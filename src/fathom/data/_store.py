"""Samples held as tensors, handed out a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fathom.core.types import Batch
from fathom.data._ahead import apart, fetch


@dataclass(frozen=True)
class TensorStore:
    """Columns of tensors that share their first dimension, in memory or memory-mapped.

    Attributes:
        columns: the keys of a batch, each [N, …]. Codes and tokens may be held as int32, half the memory; a batch has
            them as int64, which every operation on indices takes.
    """

    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def gather(self, index: Tensor) -> Batch:
        batch = {key: column.index_select(0, index) for key, column in self.columns.items()}
        return {key: column.long() if column.dtype == torch.int32 else column for key, column in batch.items()}

    def soon(self, index: Tensor) -> None:
        for column in self._in_files:
            fetch(column, index)

    @cached_property
    def _in_files(self) -> list[Tensor]:
        return [column for column in self.columns.values() if apart(column)]

    def column(self, key: str) -> Tensor:
        return self.columns[key]


@dataclass(frozen=True)
class Picked:
    """Samples of a store in another order: one may stand several times, another not at all.

    Attributes:
        index: [N] int64, where each stands in the store.
    """

    store: TensorStore
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, index: Tensor) -> Batch:
        return self.store.gather(self.index[index])

    def soon(self, index: Tensor) -> None:
        self.store.soon(self.index[index])

    def column(self, key: str) -> Tensor:
        return self.store.column(key)[self.index]
