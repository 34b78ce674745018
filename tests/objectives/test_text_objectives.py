"""What all objectives of texts promise: a run stopped and resumed ends with the same weights, to the bit; several
micro-batches give the gradient of one; what is trained is all that there is."""

from __future__ import annotations

import pytest
import torch

from fathom.core import catalog
from fathom.core.objective import Objective
from fathom.core.types import END, START, DataSpec, TrainingData
from fathom.data import TensorStore
from fathom.engine.plan import Plan
from tests.conformance.samples import batch_of
from tests.objectives.stopping import whole_and_resumed

CASES = [
    ("next_token", "gpt", {"width": 16, "depth": 1, "num_heads": 2}, {}),
    ("next_token", "llama", {"width": 16, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "dropout": 0.1}, {}),
    ("translate", "t5", {"width": 16, "depth": 1, "num_heads": 2, "head_size": 8, "hidden": 16}, {}),
    ("translate", "transformer", {"width": 16, "depth": 1, "num_heads": 2}, {}),
    ("masked_token", "bert", {"width": 16, "depth": 1, "num_heads": 2}, {}),
    ("masked_token", "transformer", {"width": 16, "depth": 1, "num_heads": 2}, {"corruption": "spans"}),
    ("embed_words", "words", {"width": 8}, {"threshold": 0.0}),
]
each = pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])


def built(case: tuple, seed: int = 0) -> tuple[DataSpec, Objective]:
    name, model, sizes, options = case
    task, network = catalog.find("objectives", name).module, catalog.find("models", model).module
    spec = task.example()
    assert task.accepts(spec) is None
    torch.manual_seed(seed)
    return spec, task.build(task.Config(**options), spec, network.build(network.Config(**sizes), spec))


def texts(spec: DataSpec, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return made-up texts that begin with START and end with END."""
    batch = batch_of(spec, rows, seed)
    for tokens in batch.values():
        last = (tokens != 0).sum(1).clamp(2) - 1
        tokens[:, 0] = START
        tokens.scatter_(1, last[:, None].long(), END)
    return batch


@each
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(case, tmp_path):
    plan = Plan(epochs=3, batch_size=8, threads=1, precision="fp32", average=0.9, accumulate=2)
    spec, _ = built(case)
    data = TrainingData(train=TensorStore(texts(spec, 24)), valid=TensorStore(texts(spec, 16, seed=1)))
    whole, resumed = whole_and_resumed(lambda seed=0: built(case, seed)[1], data, plan, tmp_path, 2)
    assert whole.keys() == resumed.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


@each
def test_every_weight_is_reached_and_the_loss_falls(case):
    spec, task = built(case)
    batch = texts(spec, 16)
    task.losses(batch).total.backward()
    unreached = [name for name, p in task.named_parameters() if p.grad is None]
    assert [name for name in unreached if "pooler" not in name] == []
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)

    def loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            task.eval()
            figures = {name: float(values.mean()) for name, values in task.metrics(batch).items()}
            task.train()
        return next(iter(task.summary(figures).values()))

    first = loss()
    for step in range(60):
        torch.manual_seed(step)
        optimizer.zero_grad()
        task.losses(batch).total.backward()
        optimizer.step()
    assert loss() < 0.9 * first


@each
def test_half_precision_gives_finite_gradients(case):
    spec, task = built(case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.losses(texts(spec, 8))
    loss.total.backward()
    assert loss.total.isfinite() and loss.total.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)
