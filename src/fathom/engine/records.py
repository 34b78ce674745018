"""What the engine reports: typed records that the generator yields, each JSON-able.

Started     once, first
Chose       what was measured and decided before the first step
Step        now and then within an epoch (at most every fifth of a second)
Epoch       at each epoch's end; the list of them is the history, which survives a resume
Saved       a checkpoint was written
Warned      something went wrong that did not stop the run
Finished    once, last
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fathom.core.config import as_dict


@dataclass(frozen=True, kw_only=True)
class Record:
    """The root of all records."""

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain values, with its kind under `record`."""
        return {"record": type(self).__name__.lower()} | as_dict(self)


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """One pass over the training rows has ended.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps so far.
        train: means over the epoch's batches: `loss`, then the loss's parts.
        valid: means over the validation rows, the first being what `best` goes by; empty where not evaluated.
        seconds: of the whole run so far, validation included, interruptions not.
        seconds_left: estimate until the end of the plan.
    """

    epoch: int
    step: int
    train: dict[str, float]
    valid: dict[str, float]
    learning_rate: float
    samples_per_second: float
    seconds: float
    seconds_left: float
    best: bool


@dataclass(frozen=True, kw_only=True)
class Started(Record):
    """Attributes: `step` is not 0 when an interrupted run goes on; `history` is what that run had reported."""

    rows: int
    valid_rows: int
    parameters: int
    trainable: int
    epochs: int
    steps: int
    batch_size: int
    device: str
    optimizer: str
    learning_rate: float
    step: int = 0
    history: tuple[Epoch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chose(Record):
    """One thing that the engine decided by measuring: `gain` 1.8 means 1.8 times as fast as without it."""

    what: str
    value: str
    why: str
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Step(Record):
    """Where training stands. `train` holds means since the epoch began; `progress` is the share of the run done."""

    step: int
    steps: int
    epoch: int
    progress: float
    train: dict[str, float]
    learning_rate: float
    samples_per_second: float
    seconds: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Saved(Record):
    """Attributes: `seconds` from the copy of the state to the disk; `stalled` those in which training stood still."""

    path: str
    step: int
    bytes: int
    seconds: float
    stalled: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Warned(Record):
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished(Record):
    """Attributes: `reason` is complete, patience or time; `kept` says which weights the objective now holds; `threads`,
    `precision`, `channels_last`, `form` and `accumulate` were in effect, and a plan with them repeats the run; `chosen`
    says why; `shown`: the passes after which pictures were taken."""

    reason: str
    epochs: int
    steps: int
    seconds: float
    best_epoch: int | None
    best: dict[str, float]
    kept: str
    threads: int
    precision: str
    channels_last: bool
    form: str = "plain"
    accumulate: int = 1
    chosen: tuple[Chose, ...] = ()
    history: tuple[Epoch, ...] = ()
    shown: tuple[int, ...] = ()
