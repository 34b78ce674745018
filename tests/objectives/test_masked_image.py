"""Masked images against the paper's formula written out in numpy, and against an encoder that is fed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.layers.image import cut, joined
from fathom.models import lenet, vit
from fathom.objectives import masked_image
from fathom.objectives.masked_image import Config
from tests.conformance.samples import batch_of
from tests.objectives.differences import as_differences_say

IMAGE = Field(name="photo", kind="image", shape=(3, 10, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
SPEC = DataSpec(inputs=(IMAGE,), rows=64)
MODEL = vit.Config(width=16, depth=2, num_heads=2, patch=2)


def objective(seed: int = 0, **options) -> masked_image.MaskedImage:
    torch.manual_seed(seed)
    return masked_image.build(Config(**{"crop": 1.0, "flip": False, **options}), SPEC, vit.build(MODEL, SPEC))


def patches(image: np.ndarray, side: int) -> np.ndarray:
    """[C, H, W] -> [N, C·side²], row by row, by loops."""
    _, height, width = image.shape
    return np.array(
        [
            image[:, y : y + side, x : x + side].reshape(-1)
            for y in range(0, height, side)
            for x in range(0, width, side)
        ]
    )


def test_patches_are_cut_row_by_row_and_joined_again():
    images = torch.randn(3, 3, 10, 8)
    np.testing.assert_array_equal(cut(images, 2)[1], patches(images[1].numpy(), 2))
    for side in (2, 3, 5):
        assert torch.equal(joined(cut(images, side), side, 10, 8), images)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_the_mean_squared_error_of_hidden_patches(normalised):
    task, batch = objective(normalised=normalised).eval(), batch_of(SPEC, 5)
    torch.manual_seed(7)
    found = task.losses(batch).total.item()
    torch.manual_seed(7)
    order = torch.rand(5, 20).argsort(1)
    assert task.seen == 5
    told = task._told(batch, order).detach().numpy()
    costs = []
    for row in range(5):
        wanted = patches(batch["image:photo"][row].numpy() / 255, 2)
        if normalised:
            wanted = (wanted - wanted.mean(1, keepdims=True)) / np.sqrt(wanted.var(1, ddof=1, keepdims=True) + 1e-6)
        hidden = order[row, 5:].numpy()
        costs.append(((told[row, hidden] - wanted[hidden]) ** 2).mean())
    assert found == pytest.approx(np.mean(costs), rel=1e-5)


def test_the_encoder_sees_what_is_kept_and_nothing_else():
    task, batch = objective().eval(), batch_of(SPEC, 4)
    torch.manual_seed(1)
    order = torch.rand(4, 20).argsort(1)
    before = task._told(batch, order)
    hidden = cut(batch["image:photo"].float(), 2)
    hidden = hidden.scatter(1, order[:, 5:, None].expand(-1, -1, 12), 17.0)
    other = {"image:photo": joined(hidden, 2, 10, 8).to(torch.uint8)}
    assert not torch.equal(other["image:photo"], batch["image:photo"])
    torch.testing.assert_close(task._told(other, order), before)


def test_an_encoder_that_reads_all_patches_is_the_model_itself():
    model = vit.build(MODEL, SPEC).eval()
    batch = batch_of(SPEC, 3)
    order = torch.rand(3, 20).argsort(1)
    read, whole = model.read(batch, order), model(batch).tokens
    places = torch.cat([torch.zeros(3, 1, dtype=torch.long), order + 1], 1)
    torch.testing.assert_close(read, whole.gather(1, places[:, :, None].expand(-1, -1, 16)), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_differences():
    task, batch = objective().double(), batch_of(SPEC, 2)
    assert as_differences_say(task, batch, ("hidden", "model.patches.bias"))


def test_it_learns_and_resumes_to_the_bit(tmp_path):
    plan = Plan(epochs=8, batch_size=16, learning_rate=3e-3, threads=1, precision="fp32", accumulate=2, keep="last")
    data = TrainingData(train=TensorStore(batch_of(SPEC, 48)), valid=TensorStore(batch_of(SPEC, 16, seed=1)))
    ends, histories = [], []
    for stops in (False, True):
        task = objective(crop=0.5, flip=True)
        if stops:
            records = train(task, data, plan, tmp_path)
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == 3:
                    records.close()
                    break
            task = objective(seed=4, crop=0.5, flip=True)
        *_, last = train(task, data, plan, tmp_path if stops else None, resume=stops)
        histories.append([(epoch.train["loss"], epoch.valid["loss"]) for epoch in last.history])
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
    assert histories[0] == histories[1]
    assert histories[0][-1][0] < histories[0][0][0]


def test_pictures_keep_what_was_seen():
    task, batch = objective().eval(), batch_of(SPEC, 9)
    with torch.no_grad():
        (pictures,) = task.show(batch).values()
    images, seen, made = pictures.chunk(3)
    assert pictures.shape == (24, 3, 10, 8)
    torch.testing.assert_close(images, batch["image:photo"][:8] / 255)
    known = seen == images
    assert 0.2 < known.float().mean() < 0.35
    torch.testing.assert_close(made[known], images[known])
    assert task.predict(batch)["embedding"].shape == (9, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": 1.0}, r"objective\.mask"),
        ({"mask": 0.01}, "hides 1% of 20 patches, which is none"),
        ({"crop": 0.0}, r"objective\.crop"),
        ({"depth": 0}, r"objective\.depth"),
        ({"width": 10, "num_heads": 4}, r"does not divide .* of 10; set objective\.width=12"),
    ],
)
def test_bad_options_are_a_sentence(options, said):
    with pytest.raises(ConfigError, match=said):
        objective(**options)


def test_a_model_without_patches_is_refused():
    spec = DataSpec(inputs=(Field(name="photo", kind="image", shape=(1, 28, 28)),))
    with pytest.raises(ConfigError, match="such as vit; LeNet does not"):
        masked_image.build(Config(), spec, lenet.build(lenet.Config(), spec))
    assert "it takes one image column" in masked_image.accepts(DataSpec(inputs=()))
