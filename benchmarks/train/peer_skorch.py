"""skorch's NeuralNetClassifier as it comes, without the split for validation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from clock import Clock, TimeIsUpError
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from workloads import Workload, made


class Ticks(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_batch_end(self, net: Any, batch: Any, training: bool, loss: Any = None, **_: Any) -> None:
        self.clock.learned(loss.item())
        if self.clock.tick(len(batch[0])):
            raise TimeIsUpError


def run(work: Workload, clock: Clock) -> None:
    arrays = work.arrays(work.rows)
    net = NeuralNetClassifier(
        made(work),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=1e-3,
        batch_size=work.batch,
        max_epochs=100_000,
        train_split=None,
        iterator_train__shuffle=True,
        callbacks=[Ticks(clock)],
        verbose=0,
    )
    with suppress(TimeIsUpError):
        net.fit(arrays["x"], arrays["y"])
