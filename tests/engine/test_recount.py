"""Batch statistics after training: those of the rows that are predicted from, by the weights that are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.recount import recount

PLAN = Plan(epochs=2, batch_size=8, threads=1, precision="fp32")


class Varied(Objective):
    """Learns from rows that are ten times as large as those that it predicts from; a part of it sees none."""

    def __init__(self, recounts: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recounts = recounts
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.unseen = nn.BatchNorm1d(4)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        x = 10 * batch["number"]
        return Loss((self.model(x) - self.unseen(x.repeat(1, 2)[:, :4]).mean(1, True)).square().mean(), weight=len(x))

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"y": self.model(batch["number"])[:, 0]}


@pytest.fixture
def data() -> TrainingData:
    return TrainingData(train=TensorStore({"number": torch.randn(64, 3, generator=torch.Generator().manual_seed(1))}))


def end_of(task: Varied, data: TrainingData, folder=None, resume: bool = False, epochs: int = 9) -> Varied:
    records = train(task, data, PLAN, folder, resume=resume)
    for record in records:
        if type(record).__name__ == "Epoch" and record.epoch == epochs:
            records.close()
    return task


def test_statistics_are_those_of_the_rows_as_they_are(data: TrainingData) -> None:
    task, plain = end_of(Varied(), data), end_of(Varied(recounts=False), data)
    for ours, theirs in zip(task.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    seen = task.model[0](data.train.columns["number"])
    norm, before = task.model[1], plain.model[1]
    torch.testing.assert_close(norm.running_mean, seen.mean(0))
    groups = seen.view(8, 8, 4)  # of each batch the spread within it
    torch.testing.assert_close(norm.running_var, groups.var(1).mean(0))
    assert (before.running_var > 5 * norm.running_var).all()
    assert norm.momentum == 0.1 and norm.num_batches_tracked == before.num_batches_tracked
    for name, value in task.unseen.named_buffers():
        assert torch.equal(value, plain.unseen.get_buffer(name)) and value.abs().sum() > 0


def test_modes_stay_and_few_rows_do_no_harm(data: TrainingData) -> None:
    task = Varied().train()
    task.unseen.eval()
    assert recount(task, data.train, 8, lambda batch: batch) == 64
    assert task.training and task.model[2].training and not task.unseen.training
    known = task.model[1].running_mean.clone()
    one = TensorStore({"number": torch.ones(1, 3)})
    assert recount(task, one, 8, lambda batch: batch) == 1
    assert torch.equal(task.model[1].running_mean, known)
    assert recount(nn.Linear(1, 1), one, 8, lambda batch: batch) == 0  # nothing to count


def test_a_resumed_run_ends_with_the_same_statistics(data: TrainingData, tmp_path) -> None:
    whole = end_of(Varied(), data)
    end_of(Varied(), data, tmp_path, epochs=1)
    resumed = end_of(Varied(), data, tmp_path, resume=True)
    again = end_of(Varied(), data, tmp_path, resume=True)  # there is nothing left to do
    for found in (resumed, again):
        for (name, ours), theirs in zip(found.state_dict().items(), whole.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name
