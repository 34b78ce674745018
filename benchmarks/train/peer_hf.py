"""Hugging Face's Trainer as it comes, without reports to services."""

from __future__ import annotations

import tempfile
from typing import Any

from clock import Clock
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from workloads import Workload, loss_of, made, tensors


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Priced(nn.Module):
    """A network that returns its loss, as the Trainer wants it."""

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.network, self.clock = network, clock

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = loss_of(self.network, x, labels)
        self.clock.learned(loss.item())
        return {"loss": loss}


class Ticks(TrainerCallback):
    def __init__(self, clock: Clock, batch: int) -> None:
        self.clock, self.batch = clock, batch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = self.clock.tick(self.batch)
        return control


def run(work: Workload, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.batch,
            num_train_epochs=100_000,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = Rows(*tensors(work))
        Trainer(Priced(made(work), clock), settings, train_dataset=rows, callbacks=[Ticks(clock, work.batch)]).train()
