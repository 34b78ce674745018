"""The perceptron: what the read-out sees, what one layer learns, and what it cannot."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.models import perceptron
from fathom.objectives import supervised

LABEL = Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8))
TABLE = DataSpec(
    inputs=(
        Field(name="size", kind="number"),
        Field(name="weight", kind="number"),
        Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
        Field(name="shape.kind", kind="category", classes=(UNKNOWN, "round")),
    ),
    targets=(LABEL,),
    rows=100,
)


def retina(side: int) -> DataSpec:
    stats = Stats(mean=(100.0,), std=(50.0,))
    return DataSpec(
        inputs=(Field(name="my.retina", kind="image", shape=(1, side, side), stats=stats),), targets=(LABEL,), rows=100
    )


def test_the_read_out_sees_numbers_and_one_place_for_each_class() -> None:
    model = perceptron.build(perceptron.Config(), TABLE)
    batch = {"number": torch.tensor([[0.5, -1.0], [2.0, 0.0]]), "category": torch.tensor([[2, 0], [1, 1]])}
    expected = torch.tensor([[0.5, -1.0, 0, 0, 1, 1, 0], [2.0, 0.0, 0, 1, 0, 0, 1]])
    assert model.width == 7 and torch.equal(model(batch).pooled, expected)


def test_an_image_is_its_normalised_pixels_in_a_row() -> None:
    spec = retina(3)
    image = torch.arange(18, dtype=torch.uint8).reshape(2, 1, 3, 3)
    found = perceptron.build(perceptron.Config(), spec)({spec.inputs[0].key: image}).pooled
    torch.testing.assert_close(found, (image.flatten(1).float() - 100) / 50)


def test_all_that_learns_is_one_layer() -> None:
    """Its gradient is that of softmax regression, written out: (p − y) xᵀ."""
    model = perceptron.build(perceptron.Config(), TABLE)
    task = supervised.build(supervised.Config(), TABLE, model)
    assert sum(p.numel() for p in task.parameters()) == 7 * 2 + 2
    batch = {
        "number": torch.randn(9, 2),
        "category": torch.stack([torch.randint(3, (9,)), torch.randint(2, (9,))], 1),
        "target:label": torch.randint(2, (9,)),
    }
    task.losses(batch).total.backward()
    layer, x = task.heads[0].linear, model.see(batch)
    error = F.linear(x, layer.weight, layer.bias).softmax(1) - F.one_hot(batch["target:label"], 2)
    torch.testing.assert_close(layer.weight.grad, error.T @ x / 9)
    torch.testing.assert_close(layer.bias.grad, error.mean(0))


def train(task: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Return the share that is right after many steps."""
    optimizer = torch.optim.Adam(task.parameters(), 0.1)
    for _ in range(400):
        task.losses(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((task.predict(batch)["label"].argmax(1) == batch["target:label"]).float().mean())


@pytest.mark.parametrize(("truth", "share"), [("and", 1.0), ("or", 1.0), ("xor", 0.75)])
def test_one_layer_separates_and_and_or_but_not_exactly_one_of_two(truth: str, share: float) -> None:
    spec = DataSpec(inputs=TABLE.inputs[:2], targets=(LABEL,), rows=4)
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    labels = {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "xor": [0, 1, 1, 0]}[truth]
    torch.manual_seed(0)
    task = supervised.build(supervised.Config(), spec, perceptron.build(perceptron.Config(), spec))
    right = train(task, {"number": x, "target:label": torch.tensor(labels)})
    assert right == share if share == 1 else right <= share


def test_association_units_are_wired_for_good_and_fire_or_do_not() -> None:
    spec = retina(8)
    torch.manual_seed(0)
    config = perceptron.Config(associations=50, connections=10)
    model = perceptron.build(config, spec)
    assert model.width == 50 and not list(model.parameters())
    signs = model.wiring * 10**0.5
    assert torch.equal((signs.round() == 1).sum(1), torch.full((50,), 5))  # exciting
    assert torch.equal((signs.round() == -1).sum(1), torch.full((50,), 5))  # inhibiting
    batch = {spec.inputs[0].key: torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)}
    fired = model(batch).pooled
    assert set(fired.unique().tolist()) == {0.0, 1.0}
    other = perceptron.build(config, spec)
    assert not torch.equal(other(batch).pooled, fired)
    other.load_state_dict(model.state_dict())  # the wiring is kept with the weights
    assert torch.equal(other(batch).pooled, fired)


def test_association_units_separate_what_one_layer_on_the_retina_cannot() -> None:
    """Which side the one bright pixel of each half is on: exactly one of two, on a retina of 4×4."""
    spec, draw = retina(4), torch.Generator().manual_seed(0)
    left, right = torch.randint(2, (2, 64), generator=draw)
    image = torch.full((64, 1, 4, 4), 50, dtype=torch.uint8)
    image[:, 0, :, :2] += (left * 100).to(torch.uint8)[:, None, None]
    image[:, 0, :, 2:] += (right * 100).to(torch.uint8)[:, None, None]
    batch = {spec.inputs[0].key: image, "target:label": (left != right).long()}
    shares = []
    for associations in (0, 300):
        torch.manual_seed(0)
        model = perceptron.build(perceptron.Config(associations, connections=6), spec)
        shares.append(train(supervised.build(supervised.Config(), spec, model), batch))
    assert shares[0] < 0.85 and shares[1] == 1.0


@pytest.mark.parametrize(
    ("options", "told"), [({"associations": -1}, "expected 0 or more"), ({"connections": 1}, "expected 2 or more")]
)
def test_options_out_of_range_are_refused(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        perceptron.build(perceptron.Config(**options), TABLE)


def test_texts_are_refused() -> None:
    with pytest.raises(ConfigError, match="column 'note' is text"):
        perceptron.build(
            perceptron.Config(), DataSpec(inputs=(Field(name="note", kind="text", shape=(4,), vocabulary=9),))
        )
