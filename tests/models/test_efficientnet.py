"""EfficientNet: the paper's numbers and scaling, transformers' weight for weight, and refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.models import efficientnet
from fathom.objectives import supervised
from tests.models.published_images import KEY, assert_twins, images_of, reference, some_images

# The images each preset was made for, its coefficients, and in which blocks its published weights pad evenly.
MADE_FOR = {
    "efficientnet_b0": (224, 1.0, 1.0, []),
    "efficientnet_b1": (240, 1.0, 1.1, [16]),
    "efficientnet_b2": (260, 1.1, 1.2, [5, 8, 16]),
    "efficientnet_b3": (300, 1.2, 1.4, [5, 18]),
    "efficientnet_b4": (380, 1.4, 1.8, [6]),
}


def network(config: efficientnet.Config, spec: DataSpec) -> efficientnet.EfficientNet:
    torch.manual_seed(0)
    return efficientnet.build(config, spec)


@pytest.mark.parametrize(
    ("name", "parameters"),  # with a read-out of 1,000 classes; the paper's 5.3, 7.8, 9.2, 12 and 19 million
    [
        ("efficientnet_b0", 5_288_548),
        ("efficientnet_b1", 7_794_184),
        ("efficientnet_b2", 9_109_994),
        ("efficientnet_b3", 12_233_232),
        ("efficientnet_b4", 19_341_616),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(catalog.find("models", name).config, efficientnet.paper())
        head = nn.Linear(model.width, 1000)
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == parameters


def test_layers_have_the_shapes_of_the_paper() -> None:
    found: list[tuple[int, ...]] = []
    with torch.device("meta"):
        model = network(efficientnet.presets["efficientnet_b0"], efficientnet.paper())
        for stage in model.stages:
            stage.register_forward_hook(lambda s, _, out: found.append((len(s), out.shape[1], out.shape[2])))
        features = model({"image:image": torch.empty(1, 3, 224, 224)})
    assert found == [(1, 16, 112), (2, 24, 56), (2, 40, 28), (3, 80, 14), (3, 112, 14), (4, 192, 7), (1, 320, 7)]
    assert [tuple(m.shape[1:3]) for m in features.maps] == [(16, 112), (24, 56), (40, 28), (112, 14), (1280, 7)]


def test_published_coefficients_follow_the_rule_of_compound_scaling() -> None:
    for phi, name in (
        (0.0, "efficientnet_b0"),
        (0.5, "efficientnet_b1"),
        (1.0, "efficientnet_b2"),
        (2.0, "efficientnet_b3"),
    ):
        width, depth, side = efficientnet.compound(phi)
        made_for, their_width, their_depth, _ = MADE_FOR[name]
        assert (width, depth) == (pytest.approx(their_width, abs=0.055), pytest.approx(their_depth, abs=0.05))
        assert side == pytest.approx(made_for, abs=4)
        preset = efficientnet.presets[name]
        assert (preset.width, preset.depth) == (their_width, their_depth)


def test_twice_the_work_is_deeper_and_wider() -> None:
    stem, stages, last = efficientnet.scaled(efficientnet.Config(1.0, 1.0, phi=1.0))
    assert (stem, last) == (32, 1408)
    assert [(stage.channels, stage.depth) for stage in stages] == [
        (16, 2), (24, 3), (48, 3), (88, 4), (120, 4), (208, 5), (352, 2)
    ]  # fmt: skip
    assert efficientnet.scaled(efficientnet.presets["efficientnet_b2"]) == (stem, stages, last)


@pytest.mark.parametrize(
    ("width", "depth", "side", "even", "atol"),
    [(0.25, 0.5, (64, 96), [], 1e-5), (1.0, 1.0, (64, 64), [], 1e-4)]
    + [(0.25, depth, (side, side), even, 1e-4) for side, _, depth, even in MADE_FOR.values()],
    ids=["small", "b0", *(f"of the depth and images of {name[-2:]}" for name in MADE_FOR)],
)
def test_equals_transformers_weight_for_weight(
    width: float, depth: float, side: tuple[int, int], even: list[int], atol: float
) -> None:
    spec = images_of(3, *side)
    theirs = reference(
        "EfficientNet",
        spec,
        width_coefficient=width,
        depth_coefficient=depth,
        depthwise_padding=even,
        hidden_dim=efficientnet.rounded(1280 * width),
        drop_connect_rate=0.0,
    )
    config = efficientnet.published(theirs.config.to_dict())
    assert config == efficientnet.Config(width, depth, stride=32, padding="after")
    assert_twins(network(config, spec), theirs, list(efficientnet.matches(config)), spec, rows=2, atol=atol)


def test_other_variants_are_refused() -> None:
    for name, value in (("hidden_act", "gelu"), ("squeeze_expansion_ratio", 0.5), ("strides", [1] * 7)):
        with pytest.raises(ConfigError, match=f"{name} = .*; only"):
            efficientnet.published({"model_type": "efficientnet", name: value})


@pytest.mark.parametrize("name", ["efficientnet", "efficientnet_b0"])
@pytest.mark.parametrize(("side", "last"), [(5, 5), (12, 6), (28, 4), (32, 4), (64, 4), (224, 7)])
def test_small_images_keep_about_four_pixels(name: str, side: int, last: int) -> None:
    with torch.device("meta"):
        model = network(catalog.find("models", name).config, images_of(1, side, side))
        found = model({KEY: torch.empty(2, 1, side, side)})
    assert found.maps[-1].shape[2:] == (last, last)
    sides = [m.shape[2] for m in found.maps]
    assert sides == sorted(set(sides), reverse=True)  # one map of each size


def test_memory_layout_changes_nothing_but_speed() -> None:
    spec = images_of(3, 32, 32)
    model, batch = network(efficientnet.Config(), spec).eval(), some_images(spec, 4)
    with torch.no_grad():
        expected = model(batch)
        last = model.to(memory_format=torch.channels_last)(batch)
    assert last.maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_later_blocks_are_skipped_more_often() -> None:
    model = network(efficientnet.presets["efficientnet_b0"], images_of())
    shares = [block.depth.share for stage in model.stages for block in stage if block.depth is not None]
    assert len(shares) == 9  # those that add to their input
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.2 * 14 / 16)


def test_other_data_and_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="one image column; the input columns are 'size' \\(number\\)"):
        efficientnet.build(efficientnet.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
    with pytest.raises(ConfigError, match=r"are 28x28 pixels.*model\.stride=32.*prepare\.image_size=32"):
        network(efficientnet.Config(stride=32), images_of(1, 28, 28))
    for name, value in (
        ("width", 0.0),
        ("depth", float("inf")),
        ("phi", 11.0),
        ("stride", 64),
        ("stochastic_depth", 1.0),
        ("norm_eps", 0.0),
    ):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            network(replace(efficientnet.Config(), **{name: value}), images_of())


@pytest.mark.parametrize("name", ["efficientnet", "efficientnet_b4"])
@pytest.mark.parametrize("rows", [0, 9_000, 2_000_000])
def test_the_recipe_holds_only_options_that_exist(name: str, rows: int) -> None:
    recipe = efficientnet.recipe(catalog.find("models", name).config, images_of(1, 28, 28, rows))
    rooms = {"engine": Plan, "objective": supervised.Config, "augment": AugmentConfig}
    assert {room: build_config(rooms[room], options, room) for room, options in recipe.items()}
