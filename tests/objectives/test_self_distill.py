"""Self-distillation against the paper's pseudocode in numpy; the teacher, the centre and the views."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Features, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.weights import Trailing
from fathom.models import resnet, vit
from fathom.objectives import self_distill
from fathom.objectives.self_distill import Config
from tests.conformance.samples import batch_of
from tests.objectives.differences import as_differences_say

IMAGE = Field(name="photo", kind="image", shape=(1, 12, 12), stats=Stats(mean=(100.0,), std=(50.0,)))
SPEC = DataSpec(inputs=(IMAGE,), rows=64)
SMALL = {"prototypes": 12, "hidden": 8, "bottleneck": 6, "small_views": 2}


def objective(seed: int = 0, model: nn.Module | None = None, **options) -> self_distill.SelfDistill:
    torch.manual_seed(seed)
    model = model or vit.build(vit.Config(width=16, depth=1, num_heads=2, patch=3), SPEC)
    return self_distill.build(Config(**{**SMALL, **options}), SPEC, model)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_loss_is_that_of_the_papers_pseudocode():
    task, batch = objective(), batch_of(SPEC, 5)
    with torch.no_grad():
        task.center.value.copy_(torch.randn(12) * 0.1)
    torch.manual_seed(3)
    found = task.losses(batch).total.item()
    torch.manual_seed(3)
    images = batch["image:photo"]
    views = [task.large(images), task.large(images), task.small(images, (6, 6)), task.small(images, (6, 6))]
    student = [task.head(task.model({"image:photo": v}).pooled).detach().double().numpy() for v in views]
    teacher = [task.teacher_head(task.teacher({"image:photo": v}).pooled).double().numpy() for v in views[:2]]
    cost, terms = 0.0, 0
    for t, told in enumerate(teacher):
        wanted = softmax((told - task.center.value.numpy()) / 0.04)
        for v, answer in enumerate(student):
            if v != t:
                cost -= (wanted * np.log(softmax(answer / 0.1))).sum(1).mean()
                terms += 1
    assert terms == 6
    assert found == pytest.approx(cost / terms, rel=1e-4)


def test_the_centre_moves_after_the_step_and_not_within_it():
    """Two micro-batches of a step are priced by the same centre."""
    task, batch = objective(), batch_of(SPEC, 6)
    before = task.center.value.clone()
    torch.manual_seed(3)
    first = task.losses(batch).total
    assert not torch.equal(task.scored.value, before)
    assert torch.equal(task.center.value, before)
    torch.manual_seed(3)
    assert torch.equal(task.losses(batch).total, first)
    with torch.no_grad():
        moved = task.scored.value.clone()
        task.losses(batch)
    task.eval().metrics(batch)
    assert torch.equal(task.scored.value, moved)


def test_the_centre_is_a_running_mean_of_the_teachers_scores():
    """Of two steps, the first in two micro-batches of different sizes."""
    task = objective(center_momentum=0.8)
    trailing, seen, expected = Trailing(task.averages()), [], np.zeros(12)
    task.teacher_head.register_forward_hook(lambda module, given, scores: seen.append(scores.double().numpy()))
    for step in ((5, 2), (3,)):
        for rows in step:
            task.losses(batch_of(SPEC, rows))
        trailing.update(0.0)
        expected = 0.8 * expected + 0.2 * np.concatenate(seen).mean(0)
        seen.clear()
        np.testing.assert_allclose(task.center.value, expected, rtol=1e-4, atol=1e-7)
    assert np.abs(expected).max() > 1e-4


def test_the_teacher_is_the_papers_moving_average_and_learns_nothing_else():
    """θ_t ← λ·θ_t + (1 − λ)·θ_s, with λ from its first value to 1 along a cosine."""
    task = objective(momentum=0.8)
    assert not any(p.requires_grad for p in (*task.teacher.parameters(), *task.teacher_head.parameters()))
    expected = copy.deepcopy(task.teacher.state_dict())
    data = TrainingData(train=TensorStore(batch_of(SPEC, 32)))
    plan = Plan(epochs=5, batch_size=32, threads=1, precision="fp32", channels_last="no", keep="last")
    seen = []
    task.model.register_forward_pre_hook(lambda module, given: seen.append(copy.deepcopy(module.state_dict())))
    for _ in train(task, data, plan):
        pass
    assert len(seen) == 10  # of five steps, in each of which the student looks at large views, then at small ones
    for step, student in enumerate([*seen[2::2], task.model.state_dict()]):
        share = 0.2 * (1 + np.cos(np.pi * (step + 0.5) / 5)) / 2
        expected = {name: (1 - share) * expected[name] + share * student[name] for name in student}
    for name, value in task.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_differences():
    task, batch = objective(small_views=1).double(), batch_of(SPEC, 3)
    names = ("head.prototypes", "model.leading")
    assert as_differences_say(task, batch, names)


class OneSize(nn.Module):
    """A model whose last layer counts on the images' size."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(144, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> Features:
        return Features(pooled=self.linear(batch["image:photo"].float().flatten(1) / 255))


def test_small_views_are_small_where_the_model_takes_them():
    batch, sizes = batch_of(SPEC, 2), {}
    for name, model in (
        ("vit", vit.build(vit.Config(width=16, depth=1, num_heads=2, patch=3), SPEC)),
        ("large patches", vit.build(vit.Config(width=16, depth=1, num_heads=2, patch=4), SPEC)),  # half a side cuts one
        ("resnet", resnet.build(resnet.Config(widths=(4, 8)), SPEC)),
        ("one size", OneSize()),
    ):
        task = objective(model=model)
        assert task.losses(batch).total.isfinite()
        sizes[name] = task._small
    assert sizes == {"vit": (6, 6), "large patches": (8, 8), "resnet": (6, 6), "one size": (12, 12)}


def test_it_resumes_to_the_bit_and_learns(tmp_path):
    plan = Plan(epochs=6, batch_size=16, learning_rate=3e-3, threads=1, precision="fp32", keep="last", accumulate=2)
    data = TrainingData(train=TensorStore(batch_of(SPEC, 48)), valid=TensorStore(batch_of(SPEC, 16, seed=1)))
    ends, histories = [], []
    for stops in (False, True):
        task = objective()
        if stops:
            records = train(task, data, plan, tmp_path)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 3:
                    records.close()
                    break
            task = objective(seed=4)
        *_, last = train(task, data, plan, tmp_path if stops else None, resume=stops)
        histories.append([(epoch.train["loss"], epoch.valid["loss"]) for epoch in last.history])
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    assert histories[0] == histories[1]
    assert histories[0][-1][0] < histories[0][0][0]
    assert ends[0]["center.rows"] == 6 * 48 and ends[0]["center.value"].any()


def test_an_embedding_is_the_teachers():
    task, batch = objective().eval(), batch_of(SPEC, 9)
    assert torch.equal(task.predict(batch)["embedding"], task.teacher(batch).pooled)
    (pictures,) = task.show(batch).values()
    assert pictures.shape == (24, 1, 12, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"least": 0.9}, "expected least ≤ crop ≤ 1"),
        ({"prototypes": 1}, r"objective\.prototypes"),
        ({"momentum": 1.0}, r"objective\.momentum"),
        ({"teacher_temperature": 0.0}, r"objective\.teacher_temperature"),
    ],
)
def test_bad_options_are_a_sentence(options, said):
    with pytest.raises(ConfigError, match=said):
        objective(**options)
