"""LeNet, AlexNet and VGG: the papers' numbers of weights and shapes of layers, and what cannot be built."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.layers.heads import Head
from fathom.models import alexnet, lenet, vgg

KEY = "image:photo"
FAMILIES = ("lenet", "alexnet", "vgg")


def images_of(channels: int, height: int, width: int, rows: int = 1000) -> DataSpec:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width), stats=stats),),
        targets=(Field(name="label", kind="category", classes=("cat", "dog", "cow"), counts=(8, 8, 8)),),
        rows=rows,
    )


def network(name: str, spec: DataSpec, **options: object) -> nn.Module:
    entry = catalog.find("models", name)
    torch.manual_seed(0)
    return entry.module.build(replace(entry.config, **options), spec)


def some_images(spec: DataSpec, size: int = 2) -> dict[str, Tensor]:
    return {KEY: torch.randint(0, 256, (size, *spec.inputs[0].shape), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("name", "parameters"),  # on the data of the paper, the read-out among them
    [
        ("lenet5", 61_706),
        ("alexnet_2012", 60_965_224),
        ("alexnet_2014", 61_100_840),
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("vgg16_bn", 138_365_992),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name: str, parameters: int) -> None:
    entry = catalog.find("models", name)
    spec = entry.module.paper()
    with torch.device("meta"):
        model = entry.module.build(entry.config, spec)
        head = Head(model.width, len(spec.targets[0].classes))
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == parameters


def shapes_of(model: nn.Module, kinds: tuple[type, ...], spec: DataSpec) -> list[tuple[int, ...]]:
    """Return what each layer of those kinds gives out for one image, in the order in which they are used."""
    found: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, given, output: found.append(tuple(output.shape[1:])))
    model.eval()(some_images(spec, 1))
    return found


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32)])
def test_the_layers_of_lenet_are_those_of_the_paper(shape: tuple[int, int, int]) -> None:
    spec = images_of(*shape)
    found = shapes_of(network("lenet5", spec), (nn.Conv2d, nn.AvgPool2d, nn.Linear), spec)
    assert found == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,)]


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("alexnet_2014", 224, [(64, 55), (64, 27), (192, 27), (192, 13), (384, 13), (256, 13), (256, 13), (256, 6)]),
        ("alexnet_2012", 227, [(96, 56), (96, 27), (256, 27), (256, 13), (384, 13), (384, 13), (256, 13), (256, 6)]),
    ],
)
def test_the_layers_of_alexnet_are_those_of_the_paper(name: str, size: int, maps: list[tuple[int, int]]) -> None:
    spec = images_of(3, size, size)
    found = shapes_of(network(name, spec, hidden=32), (nn.Conv2d, nn.MaxPool2d), spec)
    assert found == [(width, side, side) for width, side in maps]


def test_alexnet_of_2012_divides_by_neighbouring_answers_as_the_paper_says() -> None:
    norm = next(
        m for m in network("alexnet_2012", images_of(3, 224, 224), hidden=8).modules() if m._get_name()[:5] == "Local"
    )
    a = torch.rand(1, 12, 2, 2) * 30
    expected = torch.empty_like(a)
    for i in range(12):
        total = a[:, max(0, i - 2) : min(11, i + 2) + 1].square().sum(1)
        expected[:, i] = a[:, i] / (2 + 1e-4 * total) ** 0.75
    torch.testing.assert_close(norm(a), expected)


def test_the_stages_of_vgg_are_those_of_the_paper() -> None:
    spec = images_of(3, 224, 224)
    model = network("vgg16", spec, hidden=8)
    with torch.no_grad():
        found = model.eval()(some_images(spec, 1)).maps
    expected = [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert [tuple(x.shape[1:]) for x in found] == expected
    assert [sum(isinstance(m, nn.Conv2d) for m in stage) for stage in model.stages] == [2, 2, 3, 3, 3]


@pytest.mark.parametrize("name", [*FAMILIES, "lenet5", "vgg11", "alexnet_2014"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 33, 50), (3, 96, 64)])
def test_images_of_many_sizes(name: str, shape: tuple[int, int, int]) -> None:
    spec = images_of(*shape)
    small = {"hidden": 16} if name in ("vgg11", "alexnet_2014") else {}
    if name == "alexnet_2014":
        small["stem"] = "auto"
    model = network(name, spec, **small)
    found = model(some_images(spec))
    assert found.pooled.shape == (2, model.width) and found.pooled.isfinite().all()
    assert len(found.maps) > 1 and found.maps[0].shape[2] > found.maps[-1].shape[2]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_is_small_for_small_images(name: str) -> None:
    model = network(name, images_of(1, 28, 28))
    assert sum(p.numel() for p in model.parameters()) < 500_000


@pytest.mark.parametrize("name", FAMILIES)
def test_large_images_do_not_swell_the_default(name: str) -> None:
    model = network(name, images_of(3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) < 10_000_000


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "alexnet_2014", "vgg", "vgg16"])
def test_recipes_are_settings_that_exist(name: str) -> None:
    entry = catalog.find("models", name)
    for rows in (0, 100, 60_000, 1_000_000):
        found = entry.module.recipe(entry.config, images_of(1, 28, 28, rows))
        build_config(Plan, found["engine"]), build_config(AugmentConfig, found["augment"])


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("lenet", (1, 11, 20), r"'photo' are 20x11 pixels.*need 12 a side.*prepare\.image_size=12"),
        ("alexnet_2014", (3, 62, 80), r"'photo' are 80x62 pixels.*need 63 a side: set model\.stem=small"),
        ("vgg16", (3, 31, 40), r"'photo' are 40x31 pixels.*divides each side by 32.*prepare\.image_size=32"),
    ],
)
def test_images_that_are_too_small_are_refused_with_a_way_out(name: str, shape: tuple, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        network(name, images_of(*shape))
    channels, height, width = shape
    network(name, images_of(channels, height + 1, width + 1), **({} if name == "lenet" else {"hidden": 8}))


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        (lenet, {"maps": (0, 16)}, "'model.maps' was given 0; expected 1"),
        (lenet, {"units": (120, 0)}, "'model.units' was given 0; expected 1"),
        (lenet, {"frame": 5}, "'model.frame' was given 5; expected 0 to 4"),
        (alexnet, {"dropout": 1.0}, "'model.dropout' was given 1.0; expected at least 0 and below 1"),
        (alexnet, {"groups": 0}, "'model.groups' was given 0; expected 1"),
        (alexnet, {"groups": 5}, "'model.groups' was given 5, which does not divide 32"),
        (alexnet, {"hidden": -1}, "'model.hidden' was given -1; expected 0"),
        (vgg, {"depths": (0,)}, "'model.depths' was given 0; expected 1"),
        (vgg, {"depths": (1, 1), "widths": (8,)}, "(2 stages).*(1 stages)"),
        (vgg, {"dropout": -0.1}, "'model.dropout' was given -0.1"),
    ],
)
def test_options_out_of_range_are_refused(module: ModuleType, options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        module.build(module.Config(**options), images_of(1, 28, 28))


@pytest.mark.parametrize("name", FAMILIES)
def test_other_data_is_refused(name: str) -> None:
    table = DataSpec(inputs=(Field(name="size", kind="number"),))
    with pytest.raises(ConfigError, match=rf"Model '{name}' cannot be used: it takes one image column.*'size'"):
        network(name, table)
