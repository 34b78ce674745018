"""What every plain training loop has: rows by a DataLoader, a loss, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fathom.core.objective import Objective
from fathom.core.types import DataSpec


@dataclass(frozen=True)
class Given:
    """What both sides train on, and with what.

    Attributes:
        ours: what Fathom trains, for a peer to take sizes from, or a copy of its network.
        columns: the training rows.
    """

    ours: Objective
    spec: DataSpec
    columns: dict[str, Tensor]
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Peer:
    """A loop to be measured: batches, and what is done with each."""

    library: str
    batches: Iterable[Any]
    step: Callable[[Any], None]


class Rows(Dataset):  # type: ignore[type-arg]
    """Rows one by one, as a Dataset hands them out; `change` is what is done to each."""

    def __init__(self, *columns: Tensor, change: Callable[..., Any] | None = None) -> None:
        self.columns, self.change = columns, change

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Any:
        row = tuple(column[index] for column in self.columns)
        return row if self.change is None else self.change(*row)


def loader(given: Given, rows: Dataset, collate: Callable[..., Any] | None = None) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(rows, given.batch_size, shuffle=True, drop_last=True, collate_fn=collate)


def stepping(
    given: Given, modules: Iterable[nn.Module], loss: Callable[[Any], Tensor], after: Callable[[], None] = lambda: None
) -> Callable[[Any], None]:
    """Return the usual step: gradients away, loss, backward, AdamW."""
    parameters = [p for module in modules for p in module.train().parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=given.learning_rate, weight_decay=0.01)

    def step(batch: Any) -> None:
        adam.zero_grad()
        loss(batch).backward()
        adam.step()
        after()

    return step


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move a trailing network, weight by weight."""
    with torch.no_grad():
        for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
            theirs.mul_(decay).add_(ours.detach(), alpha=1 - decay)
