"""Lightning's Trainer as it comes: its logger and checkpoints on, no progress bar."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import Any

import lightning
import torch
from clock import Clock
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from workloads import Workload, loss_of, made, tensors


class Module(lightning.LightningModule):
    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.network = made(work)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = loss_of(self.network, *batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Ticks(lightning.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.clock.learned(outputs["loss"].item())
        if self.clock.tick(len(batch[0])):
            trainer.should_stop = True


def run(work: Workload, clock: Clock) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    loader = DataLoader(TensorDataset(*tensors(work)), work.batch, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=[Ticks(clock)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(work), loader)
