"""Autoencoders: shapes of every kind of data, the papers' numbers, and codes that hold what they should."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.roles import Autoencoder
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.layers.gaussian import draw, kl_to_standard
from fathom.models import autoencoder
from tests.conformance.samples import batch_of

NUMBERS = (Field(name="size", kind="number"), Field(name="weight", kind="number"), Field(name="age", kind="number"))
CATEGORIES = (
    Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
    Field(name="shape", kind="category", classes=(UNKNOWN, "round", "flat", "square", "long")),
)
TEXT = Field(name="title", kind="text", shape=(9,), vocabulary=30)


def image(channels: int, height: int, width: int, name: str = "photo") -> Field:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return Field(name=name, kind="image", shape=(channels, height, width), stats=stats)


KINDS = {
    "numbers": NUMBERS,
    "categories": CATEGORIES,
    "table": (*NUMBERS, *CATEGORIES),
    "grey": (image(1, 28, 28),),
    "odd": (image(3, 13, 30),),
    "pixel": (image(1, 1, 1),),
    "text": (TEXT,),
    "two images": (image(1, 8, 8, "front"), image(3, 5, 6, "back")),
    "all": (*NUMBERS, *CATEGORIES, image(1, 9, 8), TEXT),
}


def network(name: str, *fields: Field, **options: object) -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    return autoencoder.build(replace(catalog.find("models", name).config, **options), DataSpec(inputs=fields, rows=100))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options"), [("autoencoder", {}), ("vae", {"code": 5}), ("autoencoder", {"image": "dense", "code": 3})]
)
def test_what_is_decoded_has_the_shape_of_what_is_wanted(kind: str, name: str, options: dict[str, object]) -> None:
    fields = KINDS[kind]
    model = network(name, *fields, **options)
    assert isinstance(model, Autoencoder)
    assert model.code == model.width == options.get("code", 32)
    batch = batch_of(DataSpec(inputs=fields), 4)
    code = model.encode(batch)
    assert code.shape == (4, 2 * model.code if model.variational else model.code)
    torch.testing.assert_close(model(batch).pooled, code[:, : model.code])
    found, wanted = model.decode(torch.randn(4, model.code)), model.wanted(batch)
    assert found.keys() == wanted.keys() == {field.key for field in fields}
    for key, value in wanted.items():
        if key == "category":
            assert found[key].shape == (4, 2, 5) and torch.equal(value, batch[key])
        elif key == TEXT.key:
            assert found[key].shape == (4, 9, 30) and torch.equal(value, batch[key])
        else:
            assert found[key].shape == value.shape
        assert found[key][found[key] > -torch.inf].isfinite().all()


def test_a_class_that_a_column_lacks_is_never_said() -> None:
    logits = network("autoencoder", *CATEGORIES).decode(torch.randn(6, 32))["category"]
    probabilities = logits.softmax(-1)
    assert torch.equal(probabilities[:, 0, 3:], torch.zeros(6, 2))
    assert (probabilities[:, 0, :3] > 0).all() and (probabilities[:, 1] > 0).all()


def test_images_and_numbers_are_wanted_on_the_normalised_scale() -> None:
    model = network("autoencoder", *NUMBERS, image(1, 8, 8))
    batch = batch_of(DataSpec(inputs=(*NUMBERS, image(1, 8, 8))), 3)
    wanted = model.wanted(batch)
    torch.testing.assert_close(wanted["image:photo"], (batch["image:photo"].float() - 120) / 60)
    assert torch.equal(wanted["number"], batch["number"])


def linear(*sizes: int) -> int:
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("autoencoder_dense", linear(784, 1000, 500, 250, 30, 250, 500, 1000, 784)),
        ("vae_dense", linear(784, 500, 40) + linear(20, 500, 784)),
        ("autoencoder_conv", 521_377),
        ("vae_conv", 652_513),
        ("autoencoder_sequence", 17_631_648),
        ("vae_sequence", 17_697_312),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(name, *autoencoder.paper(name).inputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_padding_is_not_read() -> None:
    field = replace(TEXT, special=(7, 1, 2, 3, 4))  # padding is not always token 0
    model = network("autoencoder", field).eval()
    tokens = torch.tensor([[9, 8, 0, 5, 7, 7, 7, 7, 7]])
    code = model.encode({field.key: tokens})
    with torch.no_grad():
        model.parts[0].vectors.weight[7] += 1
    torch.testing.assert_close(model.encode({field.key: tokens}), code)
    with torch.no_grad():
        model.parts[0].vectors.weight[0] += 1
    assert (model.encode({field.key: tokens}) - code).abs().max() > 1e-4
    assert model.encode({field.key: torch.full((1, 9), 7)}).isfinite().all()


def test_a_signal_keeps_its_size_through_convolutions() -> None:
    model = network("autoencoder", image(3, 64, 64), widths=(16, 32, 64, 128))
    part = model.parts[0]
    batch = batch_of(DataSpec(inputs=(image(3, 64, 64),)), 4)
    assert 0.3 < part.encode(batch).std() < 3
    assert 0.3 < part.decode(torch.randn(4, part.width).relu())["image:photo"].std() < 3


def cost(model: autoencoder.Autoencoder, code: Tensor, batch: dict[str, Tensor]) -> Tensor:
    wanted, parts = model.wanted(batch), []
    for key, found in model.decode(code).items():
        if wanted[key].is_floating_point():
            parts.append(F.mse_loss(found, wanted[key]))
        else:
            parts.append(F.cross_entropy(found.flatten(0, -2), wanted[key].flatten().long()))
    return torch.stack(parts).sum()


def test_a_variational_one_learns_codes_that_can_be_drawn() -> None:
    """Points on a line in six dimensions: what is decoded of codes drawn from the standard Gaussian lies on it too."""
    fields = tuple(Field(name=f"x{i}", kind="number") for i in range(6))
    model = network("vae", *fields, code=4, hidden=(32,))
    line = torch.tensor([1.0, -1.0, 0.5, 2.0, -2.0, 1.5])
    batch = {"number": torch.randn(256, 1) * line}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(200):
        mean, log_variance = model.encode(batch).chunk(2, dim=1)
        reconstruction = 3 * F.mse_loss(model.decode(draw(mean, log_variance))["number"], batch["number"])
        optimizer.zero_grad()
        (reconstruction / 0.5 + kl_to_standard(mean, log_variance).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.decode(torch.randn(500, 4))["number"]
    along = drawn @ line / line.norm()
    assert 0.5 < along.square().mean() / line.square().sum() < 2  # as widely spread as the data
    assert drawn.square().sum(1).mean() < 1.05 * along.square().mean()  # and hardly off the line


@pytest.mark.parametrize("name", ["vae", "autoencoder_dense"])
def test_other_presets_keep_the_promises_too(name: str) -> None:
    """What conformance asks of the plain one: every parameter reached, batches of one, any order, one graph."""
    options = {"code": 8, "hidden": (16,)}
    fields = KINDS["all"]
    model = network(name, *fields, **options)
    batch = batch_of(DataSpec(inputs=fields), 6)
    code = model.encode(batch)
    (cost(model, code[:, :8], batch) + code.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    with torch.no_grad():
        torch.testing.assert_close(model.encode({k: v[order] for k, v in batch.items()}), code[order])
        torch.testing.assert_close(model.encode({k: v[:1] for k, v in batch.items()}), code[:1])
        compiled = torch.compile(model, fullgraph=True, backend="eager")(batch).pooled
    torch.testing.assert_close(compiled, code[:, :8])


def test_a_sequence_is_learned_by_heart() -> None:
    model = network("autoencoder", TEXT, code=16, text_size=32)
    batch = batch_of(DataSpec(inputs=(TEXT,)), 12)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(200):
        loss = cost(model, model.encode(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    written = model.decode(model.encode(batch))[TEXT.key].argmax(-1)
    assert (written == batch[TEXT.key]).float().mean() > 0.95


def test_other_data_and_bad_options_are_refused() -> None:
    assert autoencoder.accepts(DataSpec(inputs=KINDS["all"])) is None
    assert "graph" in str(autoencoder.accepts(DataSpec(inputs=(Field(name="g", kind="graph", shape=(3, 2, 4)),))))
    with pytest.raises(ConfigError, match="at least one input column"):
        network("autoencoder")
    for options, words in (
        ({"code": 0}, "model.code"),
        ({"text_size": 0}, "model.text_size"),
        ({"hidden": ()}, "model.hidden"),
        ({"hidden": (4, 0)}, "model.hidden"),
        ({"widths": (4, -1)}, "model.widths"),
        ({"widths": (4, 4, 4, 4, 4)}, r"halves 5 times.*'photo' are 9x8 pixels: name at most 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            network("autoencoder", image(1, 8, 9), **options)
    assert isinstance(network("autoencoder", image(1, 8, 9), widths=(4, 4, 4, 4)), nn.Module)  # as it proposes
