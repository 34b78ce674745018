"""Contrastive learning against the papers' formulas written out in numpy, and what it is for."""

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
from fathom.models import mixed, resnet, transformer, vit
from fathom.objectives import contrast
from fathom.objectives.contrast import Config
from tests.conformance.samples import batch_of

IMAGE = Field(name="photo", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
FIRST = Field(name="first", kind="text", shape=(5,), vocabulary=30)
SECOND = Field(name="second", kind="text", shape=(4,), vocabulary=25)
SMALL_TEXT = transformer.Config(width=16, depth=1, num_heads=2, dropout=0.1)


def spec(*fields: Field) -> DataSpec:
    return DataSpec(inputs=fields, rows=64)


def model_for(*fields: Field) -> nn.Module:
    if fields[0].kind == "text":
        return transformer.build(SMALL_TEXT, spec(*fields))
    if len(fields) > 1:
        return mixed.build(mixed.Config(width=16, image="vit", text="transformer"), spec(*fields))
    return vit.build(vit.Config(width=16, depth=1, num_heads=2), spec(*fields))


def objective(*fields: Field, seed: int = 0, **options) -> contrast.Contrast:
    torch.manual_seed(seed)
    return contrast.build(Config(**options), spec(*fields), model_for(*fields))


WAYS = {"views": (IMAGE,), "dropout": (FIRST,), "texts": (FIRST, SECOND), "captions": (IMAGE, FIRST)}
each_way = pytest.mark.parametrize("way", list(WAYS))


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = a.detach().double().numpy(), b.detach().double().numpy()
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def test_simclr_is_the_papers_sum_over_pairs():
    """ℓ(i, j) = −log exp(sim(i, j)/τ) / Σ_{k ≠ i} exp(sim(i, k)/τ), the mean over both orders of all pairs."""
    task, batch = objective(IMAGE, temperature=0.3), batch_of(spec(IMAGE), 7)
    torch.manual_seed(4)
    found = task.losses(batch)
    torch.manual_seed(4)
    images = batch["image:photo"]
    h = task.model({"image:photo": torch.cat([task.views(images), task.views(images)])}).pooled
    s = cosines(task.project(h), task.project(h)) / 0.3
    cost = 0.0
    for i in range(14):
        j = (i + 7) % 14
        cost -= np.log(np.exp(s[i, j]) / sum(np.exp(s[i, k]) for k in range(14) if k != i)) / 14
    assert found.total.item() == pytest.approx(cost, rel=1e-5)
    assert found.weight == 7


def test_simcse_is_the_papers_softmax_over_the_batch():
    task, batch = objective(FIRST), batch_of(spec(FIRST), 9)
    torch.manual_seed(4)
    found = task.losses(batch)
    torch.manual_seed(4)
    first, second = task.model(batch).pooled, task.model(batch).pooled
    assert not torch.equal(first, second)
    s = np.exp(cosines(first, second) / 0.05)
    assert found.total.item() == pytest.approx(-np.log(np.diag(s) / s.sum(1)).mean(), rel=1e-4)


def test_clip_is_the_papers_symmetric_cross_entropy():
    task, batch = objective(IMAGE, FIRST).eval(), batch_of(spec(IMAGE, FIRST), 9)
    image = task.project_image(task.model.tower("image", batch))
    text = task.project_text(task.model.tower("text", batch))
    s = np.exp(cosines(image, text) / 0.07)
    ways = [-np.log(np.diag(s) / s.sum(axis)).mean() for axis in (0, 1)]
    assert task.losses(batch).total.item() == pytest.approx(np.mean(ways), rel=1e-4)
    with torch.no_grad():
        task.scale.fill_(10.0)
    assert task._sharpness().item() == pytest.approx(100.0)  # as in the paper, lest training become unstable


def test_two_texts_are_read_by_one_network_each_alone():
    task, batch = objective(FIRST, SECOND).eval(), batch_of(spec(FIRST, SECOND), 6)
    for key in batch:
        batch[key][:, 0] = torch.arange(5, 11)  # no two rows say the same
    first = task.model({**batch, "text:second": torch.zeros_like(batch["text:second"])}).pooled
    second = task.model({**batch, "text:first": torch.zeros_like(batch["text:first"])}).pooled
    s = np.exp(cosines(first, second) / 0.05)
    ways = [-np.log(np.diag(s) / s.sum(axis)).mean() for axis in (0, 1)]
    assert task.losses(batch).total.item() == pytest.approx(np.mean(ways), rel=1e-4)
    torch.testing.assert_close(task.embed(batch), first)
    assert task.predict(batch).keys() == {"first", "second"}


def test_rows_with_the_same_text_are_no_negatives():
    task, batch = objective(IMAGE, FIRST).eval(), batch_of(spec(IMAGE, FIRST), 6)
    batch["text:first"][3] = batch["text:first"][1]
    first, second, _ = task._pairs(batch)
    s = np.exp(cosines(first, second) / 0.07)
    s[1, 3] = s[3, 1] = 0.0
    ways = [-np.log(np.diag(s) / s.sum(axis)).mean() for axis in (0, 1)]
    assert task.losses(batch).total.item() == pytest.approx(np.mean(ways), rel=1e-4)


@each_way
def test_gradients_are_those_of_differences(way):
    fields = WAYS[way]
    task, batch = objective(*fields).double(), batch_of(spec(*fields), 4)
    # Few numbers, for each costs two losses.
    few = ("scale", "project.0.1.bias") if way == "captions" else ("norm.bias", "leading", "columns")
    weights = {f"task.{name}": p for name, p in task.named_parameters() if any(name.endswith(end) for end in few)}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.func.functional_call(Total(task), dict(zip(weights, values, strict=True)), (batch,))

    task.losses(batch).total.backward()
    weights = {name: p for name, p in weights.items() if p.grad is not None}
    assert weights
    assert torch.autograd.gradcheck(loss, tuple(p.detach().clone().requires_grad_() for p in weights.values()))


class Total(nn.Module):
    def __init__(self, task: contrast.Contrast) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.task.losses(batch).total


@each_way
def test_metrics_are_of_each_row_and_leave_the_modes(way):
    task, batch = objective(*WAYS[way]).eval(), batch_of(spec(*WAYS[way]), 6)
    with torch.no_grad():
        found = task.metrics(batch)
    assert {name: value.shape for name, value in found.items()} == {"loss": (6,), "matched": (6,)}
    assert not any(module.training for module in task.modules())
    one = task.metrics({key: value[:1] for key, value in batch.items()})
    assert one["loss"].item() == pytest.approx(0.0, abs=1e-6)  # there is nothing to be told apart from


@each_way
def test_it_learns_and_resumes_to_the_bit(way, tmp_path):
    fields = WAYS[way]
    rate = 3e-4 if way == "dropout" else 3e-3
    plan = Plan(epochs=6, batch_size=16, learning_rate=rate, threads=1, precision="fp32", average=0.9, keep="last")
    ends, losses = [], []
    for stops in (False, True):
        data = TrainingData(train=TensorStore(batch_of(spec(*fields), 48)))
        task = objective(*fields)
        if stops:
            records = train(task, data, plan, tmp_path)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 2:
                    records.close()
                    break
            task = objective(*fields, seed=3)
        *_, last = train(task, data, plan, tmp_path if stops else None, resume=stops)
        losses.append([epoch.train["loss"] for epoch in last.history])
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    assert losses[0] == losses[1]
    assert way == "dropout" or losses[0][-1] < losses[0][0]  # random tokens are told apart before anything is learned


def test_a_text_is_found_for_images_of_a_kind():
    """After training on bright and dark images with two captions, a caption tells new images apart."""
    torch.manual_seed(0)
    bright = torch.arange(64) % 2
    images = (torch.randint(60, (64, 1, 8, 8)) + 180 * bright[:, None, None, None]).to(torch.uint8)
    texts = torch.tensor([[5, 6, 0, 0, 0], [7, 8, 9, 0, 0]])
    store = TensorStore({"image:photo": images, "text:first": texts[bright]})
    task = objective(IMAGE, FIRST)
    plan = Plan(epochs=15, batch_size=16, learning_rate=3e-3, threads=1, precision="fp32")
    for _ in train(task, TrainingData(train=store), plan):
        pass
    found = task.eval().match({"image:photo": images}, {"text:first": texts})
    assert found.shape == (64, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    assert (found.argmax(1) == bright).float().mean() > 0.95


def test_every_model_of_images_is_good_enough():
    task = contrast.build(Config(), spec(IMAGE), resnet.build(resnet.Config(widths=(4, 8)), spec(IMAGE)))
    batch = batch_of(spec(IMAGE), 5)
    assert task.losses(batch).total.isfinite()
    assert task.eval().predict(batch)["embedding"].shape == (5, 8)
    shown = task.show(batch)
    assert [picture.shape for picture in shown.values()] == [(15, 1, 8, 8)]
    assert all(picture.min() >= 0 and picture.max() <= 1.001 for picture in shown.values())


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ((Field(name="size", kind="number"),), {}, "it takes one image column.*'size' .number."),
        ((IMAGE,), {"method": "captions"}, "'captions'; these columns are for 'views'"),
        ((IMAGE,), {"width": 0}, "objective.width"),
        ((IMAGE,), {"crop": 1.5}, "objective.crop"),
    ],
)
def test_bad_input_is_a_sentence(fields, options, said):
    with pytest.raises(ConfigError, match=said):
        contrast.build(Config(**options), spec(*fields), model_for(IMAGE))


def test_a_model_without_towers_or_dropout_is_refused():
    class Plain(nn.Module):
        width = 4

        def forward(self, batch: dict[str, torch.Tensor]) -> Features:
            raise NotImplementedError

    with pytest.raises(ConfigError, match="a tower for each, as 'mixed' has; Plain has none"):
        contrast.build(Config(), spec(IMAGE, FIRST), Plain())
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.1"):
        contrast.build(Config(), spec(FIRST), Plain())
    with pytest.raises(ConfigError, match="not trained on images with captions"):
        objective(IMAGE).match({}, {})
