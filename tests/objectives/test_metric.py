"""Metric learning against the papers' formulas, written out as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Features, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.models import mlp
from fathom.objectives import metric
from fathom.objectives.metric import Config, triplet_costs, with_margin
from tests.conformance.samples import batch_of

CLASS = Field(name="who", kind="category", classes=("a", "b", "c"), counts=(9, 9, 9))
SPEC = DataSpec(
    inputs=tuple(Field(name=name, kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))) for name in "xyz"),
    targets=(CLASS,),
    rows=27,
)


def objective(seed: int = 0, **options) -> metric.Metric:
    torch.manual_seed(seed)
    return metric.build(Config(**{"width": 4, **options}), SPEC, mlp.build(mlp.Config(), SPEC))


def drawn(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    vectors = nn.functional.normalize(torch.randn(rows, 4, generator=draw, dtype=torch.float64), dim=1)
    return vectors, torch.randint(3, (rows,), generator=draw)


def by_loops(vectors: np.ndarray, label: np.ndarray, margin: float) -> dict[tuple[int, int], float]:
    """FaceNet's semi-hard negatives: the nearest that is farther than the positive, else the farthest."""
    costs = {}
    d = ((vectors[:, None] - vectors) ** 2).sum(2)
    for a in range(len(label)):
        negatives = [d[a, n] for n in range(len(label)) if label[n] != label[a]]
        for p in range(len(label)):
            if p != a and label[p] == label[a] and negatives:
                beyond = [x for x in negatives if x > d[a, p]]
                costs[a, p] = max(0.0, d[a, p] - (min(beyond) if beyond else max(negatives)) + margin)
    return costs


@pytest.mark.parametrize("seed", range(5))
def test_triplets_are_semi_hard(seed):
    vectors, label = drawn(11, seed)
    cost, pairs = triplet_costs(vectors, label, 0.3)
    expected = by_loops(vectors.numpy(), label.numpy(), 0.3)
    assert {tuple(place) for place in pairs.nonzero().tolist()} == set(expected)
    for (a, p), value in expected.items():
        assert cost[a, p].item() == pytest.approx(value, abs=1e-9)
    assert float(cost[~pairs].abs().sum()) == 0


def test_the_triplet_loss_is_the_mean_over_pairs():
    task, batch = objective().eval(), batch_of(SPEC, 12)
    vectors = task.embed(batch).detach().double().numpy()
    expected = by_loops(vectors, batch["target:who"].numpy(), 0.2)
    found = task.losses(batch)
    assert found.total.item() == pytest.approx(np.mean(list(expected.values())), rel=1e-4)
    assert found.weight == len(expected)


@pytest.mark.parametrize("label", [[0, 0, 0], [0, 1, 2], [1]])
def test_a_batch_without_triplets_costs_nothing(label):
    task = objective()
    batch = {**batch_of(SPEC, len(label)), "target:who": torch.tensor(label)}
    loss = task.losses(batch)
    loss.total.backward()
    assert loss.total.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in task.parameters())
    assert task.metrics(batch)["loss"].tolist() == [0.0] * len(label)


def test_arcface_is_the_papers_formula():
    """−log exp(s·cos(θ_y + m)) / (exp(s·cos(θ_y + m)) + Σ_{j ≠ y} exp(s·cos θ_j))."""
    task, batch = objective(method="arcface", margin=0.4, scale=10.0).eval(), batch_of(SPEC, 8)
    vectors, directions = task.embed(batch).detach().double().numpy(), task.directions.detach().double().numpy()
    angle = np.arccos(vectors @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T)
    costs = []
    for row, own in enumerate(batch["target:who"].tolist()):
        assert angle[row, own] + 0.4 < np.pi
        scores = np.exp(10 * np.cos(angle[row] + 0.4 * (np.arange(3) == own)))
        costs.append(-np.log(scores[own] / scores.sum()))
    assert task.losses(batch).total.item() == pytest.approx(np.mean(costs), rel=1e-4)


def test_the_margin_never_makes_a_wrong_angle_better():
    angle = torch.linspace(0, np.pi, 200, dtype=torch.float64)
    with_it = with_margin(angle.cos()[:, None], torch.zeros(200, dtype=torch.long), 0.5)[:, 0]
    assert (with_it.diff() < 1e-9).all()
    assert (with_it < angle.cos() + 1e-9).all()


@pytest.mark.parametrize("method", ["triplet", "arcface"])
def test_gradients_are_those_of_differences(method):
    vectors, label = drawn(7)
    if method == "triplet":
        ask = lambda v: triplet_costs(nn.functional.normalize(v, dim=1), label, 0.3)[0].sum()  # noqa: E731
    else:
        directions = torch.randn(3, 4, dtype=torch.float64)
        ask = lambda v: with_margin(nn.functional.normalize(v, dim=1) @ directions.T / 9, label, 0.3).sum()  # noqa: E731
    assert torch.autograd.gradcheck(ask, (vectors.clone().requires_grad_(),))


def test_recall_counts_rows_that_are_not_alone():
    class Given(nn.Module):
        width = 2

        def forward(self, batch):
            return Features(pooled=batch["features"])

    task = metric.build(Config(width=2), SPEC, Given()).eval()
    with torch.no_grad():
        task.project.weight.copy_(torch.eye(2))
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 1.0], [-1.0, 0.0]])
    batch = {"features": features, "target:who": torch.tensor([0, 0, 1, 0, 2])}
    found = task.metrics(batch)
    assert found["found"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert found["present"].tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    means = {name: value.mean().item() for name, value in found.items()}
    assert task.summary(means)["recall_at_1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("method", ["triplet", "arcface"])
def test_it_learns_and_resumes_to_the_bit(method, tmp_path):
    plan = Plan(epochs=20, batch_size=16, learning_rate=5e-3, threads=1, precision="fp32", accumulate=2, keep="last")
    store = batch_of(SPEC, 64)
    store["number"][:, 0] += 5 * store["target:who"]
    data = TrainingData(train=TensorStore(store))
    ends = []
    for stops in (False, True):
        task = objective(method=method)
        if stops:
            records = train(task, data, plan, tmp_path)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 3:
                    records.close()
                    break
            task = objective(seed=4, method=method)
        else:
            before = task.eval().summary({k: v.mean().item() for k, v in task.metrics(store).items()})
        for _ in train(task, data, plan, tmp_path if stops else None, resume=stops):
            pass
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    after = task.eval().summary({k: v.mean().item() for k, v in task.metrics(store).items()})
    assert after["loss"] < 0.7 * before["loss"]
    assert after["recall_at_1"] > 0.8


@pytest.mark.parametrize(
    ("options", "said"),
    [({"width": 0}, r"objective\.width"), ({"method": "arcface", "margin": 2.0}, "an angle up to π/2")],
)
def test_bad_options_are_a_sentence(options, said):
    with pytest.raises(ConfigError, match=said):
        objective(**options)


def test_it_needs_classes():
    number = Field(name="price", kind="number", stats=Stats())
    assert "one target column of classes; the targets are 'price' (number)" in metric.accepts(
        DataSpec(inputs=SPEC.inputs, targets=(number,))
    )
