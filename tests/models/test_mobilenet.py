"""MobileNets: the papers' numbers and tables, transformers' weight for weight, and refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.models import mobilenet
from fathom.objectives import supervised
from tests.models.published_images import KEY, assert_twins, images_of, reference, some_images


def network(config: mobilenet.Config, spec: DataSpec) -> mobilenet.MobileNet:
    torch.manual_seed(0)
    return mobilenet.build(config, spec)


@pytest.mark.parametrize(
    ("name", "parameters"),  # with a read-out of 1,000 classes; the papers' 4.2, 3.4 (3.5), 2.5 and 5.4 million
    [
        ("mobilenet_v1", 4_231_976),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_small", 2_542_856),
        ("mobilenet_v3_large", 5_483_032),
    ],
)
def test_parameter_counts_are_those_of_the_papers(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(catalog.find("models", name).config, mobilenet.paper())
        head = nn.Linear(model.width, 1000)
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == parameters


@pytest.mark.parametrize(
    ("version", "shapes"),  # the papers' tables: what each block gives out of an image of 224 pixels
    [
        (
            "v3_small",
            [(16, 56), (24, 28), (24, 28), (40, 14), (40, 14), (40, 14), (48, 14), (48, 14), (96, 7), (96, 7), (96, 7)],
        ),
        (
            "v3_large",
            [(16, 112), *[(24, 56)] * 2, *[(40, 28)] * 3, *[(80, 14)] * 4, *[(112, 14)] * 2, *[(160, 7)] * 3],
        ),
        ("v1", [(64, 112), *[(128, 56)] * 2, *[(256, 28)] * 2, *[(512, 14)] * 6, *[(1024, 7)] * 2]),
        (
            "v2",
            [(16, 112), *[(24, 56)] * 2, *[(32, 28)] * 3, *[(64, 14)] * 4, *[(96, 14)] * 3, *[(160, 7)] * 3, (320, 7)],
        ),
    ],
)
def test_layers_have_the_shapes_of_the_papers(version: str, shapes: list[tuple[int, int]]) -> None:
    spec = images_of(3, 224, 224)
    found: list[tuple[int, int]] = []
    with torch.device("meta"):
        model = network(mobilenet.Config(version, 1.0), spec)  # type: ignore[arg-type]
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, out: found.append((out.shape[1], out.shape[2])))
        features = model({KEY: torch.empty(1, 3, 224, 224)})
    assert found == shapes
    last = {"v1": 1024, "v2": 1280, "v3_small": 576, "v3_large": 960}[version]
    assert features.maps[-1].shape == (1, last, 7, 7)
    sides = [112, 56, 28, 14, 7]
    assert [m.shape[2] for m in features.maps] == (sides[1:] if version == "v3_small" else sides)
    assert features.pooled.shape == (1, {"v3_small": 1024, "v3_large": 1280}.get(version, last))


def test_the_third_has_gates_where_its_paper_has_them() -> None:
    with torch.device("meta"):
        small = network(mobilenet.presets["mobilenet_v3_small"], mobilenet.paper())
        large = network(mobilenet.presets["mobilenet_v3_large"], mobilenet.paper())
    for model, gated in ((small, {0, *range(3, 11)}), (large, {3, 4, 5, 10, 11, 12, 13, 14})):
        assert {i for i, block in enumerate(model.blocks) if block.gates is not None} == gated
    assert small.blocks[0].expand is None and large.blocks[0].expand is None  # nothing to expand
    assert large.blocks[10].gates.reduce.weight.shape == (120, 480)
    assert [block.depthwise[0].kernel_size[0] for block in large.blocks] == [3] * 3 + [5] * 3 + [3] * 6 + [5] * 3


@pytest.mark.parametrize(
    ("version", "multiplier", "padding", "side", "atol"),
    [
        ("v1", 0.25, "after", (64, 96), 1e-5),
        ("v1", 0.3, "even", (64, 64), 1e-5),
        ("v1", 1.0, "after", (96, 96), 1e-4),
        ("v2", 0.35, "after", (64, 96), 1e-5),
        ("v2", 0.35, "after", (75, 69), 1e-5),  # odd sides: zeros stand on both sides there, and on one elsewhere
        ("v2", 0.5, "even", (64, 64), 1e-5),
        ("v2", 1.4, "after", (64, 64), 1e-4),
    ],
)
def test_equals_transformers_weight_for_weight(
    version: str, multiplier: float, padding: str, side: tuple[int, int], atol: float
) -> None:
    spec = images_of(3, *side)
    theirs = reference(f"MobileNet{version.upper()}", spec, depth_multiplier=multiplier, tf_padding=padding == "after")
    config = mobilenet.published(theirs.config.to_dict())
    assert config == mobilenet.Config(version, multiplier, 32, padding)  # type: ignore[arg-type]
    assert_twins(network(config, spec), theirs, list(mobilenet.matches(config)), spec, atol=atol)


def test_other_variants_are_refused() -> None:
    with pytest.raises(ConfigError, match="output_stride = 16; only 32"):
        mobilenet.published({"model_type": "mobilenet_v2", "output_stride": 16})
    with pytest.raises(ConfigError, match="finegrained_output = False; only True"):
        mobilenet.published({"model_type": "mobilenet_v2", "finegrained_output": False, "depth_multiplier": 0.5})
    assert mobilenet.published({"model_type": "mobilenet_v2", "finegrained_output": False}).version == "v2"
    with pytest.raises(ConfigError, match="hidden_act = 'relu'; only 'relu6'"):
        mobilenet.published({"model_type": "mobilenet_v1", "hidden_act": "relu"})


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
@pytest.mark.parametrize(("side", "last"), [(5, 5), (12, 6), (28, 4), (32, 4), (64, 4), (96, 6), (224, 7)])
def test_small_images_keep_about_four_pixels(name: str, side: int, last: int) -> None:
    spec = images_of(1, side, side)
    with torch.device("meta"):
        model = network(catalog.find("models", name).config, spec)
        found = model({KEY: torch.empty(2, 1, side, side)})
    assert found.maps[-1].shape[2:] == (last, last)
    sides = [m.shape[2] for m in found.maps]
    assert sides == sorted(set(sides), reverse=True)  # one map of each size


def test_multipliers_make_channels_multiples_of_eight() -> None:
    for version in ("v2", "v3_small", "v3_large"):
        plan = mobilenet.planned(mobilenet.Config(version, 0.35))  # type: ignore[arg-type]
        numbers = [plan.stem, plan.last, plan.linear, *(n for row in plan.rows for n in (row.hidden, row.outputs))]
        assert [number % 8 for number in numbers] == [0] * len(numbers)
    assert mobilenet.planned(mobilenet.Config("v2", 0.35)).last == 1280  # the last layer never gets narrower
    assert mobilenet.planned(mobilenet.Config("v2", 1.4)).last == 1792


def test_memory_layout_changes_nothing_but_speed() -> None:
    spec = images_of(3, 32, 32)
    model, batch = network(mobilenet.Config(), spec).eval(), some_images(spec, 4)
    with torch.no_grad():
        expected = model(batch)
        last = model.to(memory_format=torch.channels_last)(batch)
    assert last.maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_blocks_are_skipped_only_where_they_add_to_their_input() -> None:
    model = network(mobilenet.Config("v2", 0.25, stochastic_depth=0.5), images_of(1, 32, 32))
    skipping = [block.depth is not None for block in model.blocks]
    assert skipping[1:] == [block.adds for block in model.blocks][1:] and any(skipping)
    batch = some_images(images_of(1, 32, 32), 8)
    model.train()
    first, second = (run(model, batch, seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, run(model, batch, 0))


def run(model: nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(batch).pooled


def test_other_data_and_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="one image column; the input columns are none"):
        mobilenet.build(mobilenet.Config(), DataSpec(inputs=()))
    assert "'size' (number)" in str(mobilenet.accepts(DataSpec(inputs=(Field(name="size", kind="number"),))))
    with pytest.raises(ConfigError, match=r"are 28x28 pixels.*model\.stride=32.*prepare\.image_size=32"):
        network(mobilenet.Config(stride=32), images_of(1, 28, 28))
    with pytest.raises(ConfigError, match=r"v1 cannot bear.*model\.version=v2"):
        network(mobilenet.Config("v1", stochastic_depth=0.1), images_of())
    for name, value in (
        ("multiplier", 0.0),
        ("multiplier", float("inf")),
        ("stride", 3),
        ("stochastic_depth", -0.1),
        ("norm_eps", 0.0),
    ):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            network(replace(mobilenet.Config(), **{name: value}), images_of())


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2"])
@pytest.mark.parametrize("rows", [0, 9_000, 2_000_000])
def test_the_recipe_holds_only_options_that_exist(name: str, rows: int) -> None:
    recipe = mobilenet.recipe(catalog.find("models", name).config, images_of(1, 28, 28, rows))
    rooms = {"engine": Plan, "objective": supervised.Config, "augment": AugmentConfig}
    assert {room: build_config(rooms[room], options, room) for room, options in recipe.items()}
