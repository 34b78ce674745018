"""ConvNeXt: the paper's numbers, transformers' weight for weight, and refusals."""

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
from fathom.models import convnext
from fathom.objectives import supervised
from tests.models.published_images import assert_twins, images_of, reference, some_images


def network(config: convnext.Config, spec: DataSpec) -> convnext.ConvNeXt:
    torch.manual_seed(0)
    return convnext.build(config, spec)


@pytest.mark.parametrize(
    ("name", "parameters"),  # with a read-out of 1,000 classes; the paper's 29, 50, 89 and 198 million
    [
        ("convnext_tiny", 28_589_128),
        ("convnext_small", 50_223_688),
        ("convnext_base", 88_591_464),
        ("convnext_large", 197_767_336),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(catalog.find("models", name).config, convnext.paper())
        head = nn.Linear(model.width, 1000)
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == parameters


SMALL = convnext.Config((2, 1, 2), (16, 32, 48), patch=4, layer_scale=1e-6, norm_eps=1e-12)
TINY = replace(convnext.presets["convnext_tiny"], patch=4, norm_eps=1e-12, stochastic_depth=0.0)


@pytest.mark.parametrize(
    ("config", "side", "atol"),
    [(SMALL, (40, 56), 1e-5), (replace(SMALL, layer_scale=0.0), (48, 48), 1e-5), (TINY, (64, 64), 1e-4)],
    ids=["small", "without layer scale", "tiny"],
)
def test_equals_transformers_weight_for_weight(config: convnext.Config, side: tuple[int, int], atol: float) -> None:
    spec = images_of(3, *side)
    theirs = reference(
        "ConvNext",
        spec,
        num_stages=len(config.depths),
        depths=list(config.depths),
        hidden_sizes=list(config.widths),
        layer_scale_init_value=config.layer_scale,
    )
    read = convnext.published(theirs.config.to_dict())
    assert replace(read, first_std=config.first_std) == config
    assert_twins(network(config, spec), theirs, list(convnext.matches(config)), spec, atol=atol)


def test_other_variants_are_refused() -> None:
    with pytest.raises(ConfigError, match="activation 'relu'; only 'gelu'"):
        convnext.published({"model_type": "convnext", "hidden_act": "relu"})


@pytest.mark.parametrize(
    ("side", "patch", "stages", "last"),
    [
        (1, 1, 1, 1),
        (3, 2, 1, 1),
        (8, 2, 1, 4),
        (12, 2, 2, 3),
        (28, 2, 3, 3),
        (32, 2, 3, 4),
        (64, 2, 4, 4),
        (224, 4, 4, 7),
    ],
)
def test_the_default_fits_itself_to_the_images(side: int, patch: int, stages: int, last: int) -> None:
    spec = images_of(1, side, side)
    config = convnext.resolved(convnext.Config(), spec.inputs[0])
    assert (config.patch, len(config.depths)) == (patch, stages)
    found = network(config, spec).eval()(some_images(spec, 2))
    assert found.maps[-1].shape == (2, 40 * 2 ** (stages - 1), last, last)
    assert found.pooled.shape == (2, config.widths[-1])


@pytest.mark.parametrize(("side", "patch"), [(28, 2), (64, 2), (96, 4), (224, 4)])
def test_the_papers_take_smaller_patches_of_smaller_images(side: int, patch: int) -> None:
    assert convnext.resolved(convnext.presets["convnext_tiny"], images_of(3, side, side).inputs[0]).patch == patch


def test_one_of_depths_and_widths_decides_the_other() -> None:
    field = images_of(1, 28, 28).inputs[0]
    assert convnext.resolved(convnext.Config(depths=(2, 3, 1)), field).widths == (40, 80, 160)
    assert convnext.resolved(convnext.Config(widths=(8,)), field).depths == (2,)


def test_channels_stand_last_whatever_the_layout() -> None:
    spec = images_of(3, 32, 32)
    model, batch = network(convnext.Config(), spec).eval(), some_images(spec, 2)
    with torch.no_grad():
        plain = model(batch)
        last = model.to(memory_format=torch.channels_last)(batch)
    torch.testing.assert_close(plain.pooled, last.pooled, rtol=1e-4, atol=1e-5)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in plain.maps)


def test_later_blocks_are_skipped_more_often() -> None:
    model = network(convnext.Config((2, 2), (8, 8), stochastic_depth=0.3), images_of(1, 16, 16))
    shares = [block.depth.share if block.depth else 0 for stage in model.stages for block in stage]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3])


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 28, 28)
    with pytest.raises(ConfigError, match="one image column; the input columns are 'size' \\(number\\)"):
        convnext.build(convnext.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
    with pytest.raises(ConfigError, match=r"are 28x28 pixels.*patches of 16 divides each side by 32.*image_size=32"):
        network(convnext.Config(depths=(1, 1), widths=(8, 8), patch=16), spec)
    with pytest.raises(ConfigError, match="same number of stages"):
        network(convnext.Config(depths=(1, 1), widths=(8,)), spec)
    for name, value in (
        ("depths", (0, 1)),
        ("widths", (8, -1)),
        ("patch", -1),
        ("stochastic_depth", 1.0),
        ("layer_scale", -1.0),
        ("first_std", float("inf")),
        ("norm_eps", float("nan")),
    ):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            network(replace(convnext.Config(), **{name: value}), spec)


@pytest.mark.parametrize("name", ["convnext", "convnext_base"])
@pytest.mark.parametrize("rows", [0, 9_000, 2_000_000])
def test_the_recipe_holds_only_options_that_exist(name: str, rows: int) -> None:
    recipe = convnext.recipe(catalog.find("models", name).config, images_of(1, 28, 28, rows))
    rooms = {"engine": Plan, "objective": supervised.Config, "augment": AugmentConfig}
    assert {room: build_config(rooms[room], options, room) for room, options in recipe.items()}
