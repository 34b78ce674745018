"""Samples held as tensors, handed out a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fathom.core.types import Batch


@dataclass(frozen=True)
class TensorStore:
    """Columns of tensors that share their first dimension, in memory or memory-mapped.

    Attributes:
        columns: the keys of a batch, each [N, …].
    """

    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def gather(self, index: Tensor) -> Batch:
        return {key: column.index_select(0, index) for key, column in self.columns.items()}
