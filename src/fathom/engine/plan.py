"""The plan of a run: every choice that the engine leaves to the user."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fathom.core.config import option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError

USUAL_LEARNING_RATE = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.1, "rmsprop": 1e-3, "lion": 1e-4, "muon": 0.02}
USUAL_EPOCHS = 20
WITHOUT_END = 1_000_000  # epochs, where only the clock ends the run


@dataclass(frozen=True)
class Plan:
    """How to train. The defaults suit small and middling data; a model's recipe may propose others."""

    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lion", "muon"] = option("adamw", "how weights are moved")
    learning_rate: float = option(0.0, "the highest learning rate of the schedule; 0: the optimiser's usual one")
    weight_decay: float = option(
        0.01, "shrinking of weights, never of biases and norms (adam, sgd, rmsprop: by the gradient)"
    )
    momentum: float = option(0.9, "of sgd, rmsprop and muon")
    beta1: float = option(0.9, "averaging of the gradient: adamw, adam, lion")
    beta2: float = option(0.999, "averaging of its square: adamw, adam (lion: of the gradient itself)")
    schedule: Literal["cosine", "linear", "constant"] = option("cosine", "fall of the learning rate after warm-up")
    warmup: float = option(0.05, "share of the run over which the learning rate rises from near zero")
    epochs: int = option(0, "passes over the training rows; 0: 20, or as many as `minutes` allow")
    minutes: float = option(0.0, "time for training and validation together, never exceeded; 0: no limit")
    batch_size: int = option(0, "rows a step, all accumulated parts together; 0: by the number of rows, 16 to 256")
    accumulate: int = option(1, "parts that a batch is worked through in, to save memory; only batch norm sees it")
    clip: float = option(1.0, "longest gradient (2-norm over all weights of a phase); 0: no limit")
    average: float = option(0.0, "decay of the moving average of weights that is validated and kept; 0: none")
    patience: int = option(0, "validations without improvement after which training stops; 0: never")
    keep: Literal["best", "last"] = option("best", "the state to keep: best by the first validation metric, or last")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: measured; fp16 needs a GPU")
    threads: int = option(0, "CPU threads; 0: measured")
    channels_last: Literal["auto", "yes", "no"] = option("auto", "memory layout of convolutions; auto: measured")
    memory: Literal["auto", "returned", "kept"] = option(
        "auto", "freed memory of the processor: returned to the system, or kept for the next step; auto: measured"
    )
    form: Literal["auto", "plain", "recorded", "compiled"] = option(
        "auto", "of a step: plain; recorded, the same without Python; compiled; auto: measured"
    )
    seed: int = option(0, "of the order of rows and of everything random in a step")
    checkpoint_seconds: float = option(30.0, "between checkpoints; more where saving takes over a hundredth of it")
    evaluate_every: int = option(1, "epochs between validations; the last epoch is always validated")
    shard: bool = option(False, "spread weights and optimiser over the processes, where they do not fit into one")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")

    def __post_init__(self) -> None:
        _require(self, "seed", 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")
        for name in ("learning_rate", "weight_decay", "minutes", "clip", "checkpoint_seconds"):
            _require(self, name, 0 <= getattr(self, name) < math.inf, "zero or more")
        for name in ("epochs", "batch_size", "patience", "threads"):
            _require(self, name, getattr(self, name) >= 0, "zero or more")
        for name in ("accumulate", "evaluate_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("momentum", "beta1", "beta2", "average"):
            _require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _require(self, "warmup", 0 <= self.warmup <= 1, "a share between 0 and 1")
        if self.batch_size and self.accumulate > self.batch_size:
            raise ConfigError(
                f"Option 'accumulate' was given {self.accumulate}; a batch of {self.batch_size} rows cannot be cut "
                "into more parts than it has rows."
            )

    def resolved(self, rows: int) -> Plan:
        """Return the plan with every zero that stands for "as usual" replaced, for that many training rows."""
        return replace(
            self,
            learning_rate=self.learning_rate or USUAL_LEARNING_RATE[self.optimizer],
            epochs=self.epochs or (WITHOUT_END if self.minutes else USUAL_EPOCHS),
            batch_size=min(self.batch_size or batch_size(rows, most=256), max(rows, 1)),
        )


def _require(plan: Plan, name: str, holds: bool, expected: str) -> None:
    if not holds:  # also when the value is not a number
        raise ConfigError(f"Option '{name}' was given {getattr(plan, name)}; expected {expected}.")
