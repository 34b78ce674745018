"""Vision transformers: equal to the reference weight for weight, other images than the published ones, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom import pretrained
from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.types import DataSpec, Field, Stats
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.layers.image import PatchEmbedding
from fathom.models import vit
from fathom.objectives import supervised

KEY = "image:photo"
SIZES = [(16, 1, 2, 40, 3, 16, 4), (32, 3, 4, 128, 1, 12, 6), (24, 2, 3, 24, 3, 8, 8)]
"""Width, depth, heads, hidden, channels, side, patch."""


def images_of(channels: int, height: int, width: int, rows: int = 1000) -> DataSpec:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width), stats=stats),),
        targets=(Field(name="label", kind="category", classes=("cat", "dog", "cow"), counts=(8, 8, 8)),),
        rows=rows,
    )


def some_images(spec: DataSpec, rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {KEY: torch.randint(0, 256, (rows, *spec.inputs[0].shape), dtype=torch.uint8, generator=draw)}


def references(kind: str, *size: int, std: float = 0.3) -> nn.Module:
    """Return the reference implementation's network, with random weights of which none is zero."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("num_channels", "image_size", "patch_size")
    settings = dict(zip(names, size, strict=True))
    if kind == "vit":
        network = transformers.ViTModel(transformers.ViTConfig(**settings), add_pooling_layer=False)
    else:
        network = transformers.DeiTModel(transformers.DeiTConfig(**settings), add_pooling_layer=False)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        scales = "norm" in name.lower() and name.endswith("weight")  # around one, or tokens would all become alike
        nn.init.normal_(parameter, 1.0 if scales else 0.0, std)
    return network


def taken_over(reference: nn.Module, spec: DataSpec) -> vit.VisionTransformer:
    """Return ours with the reference's weights, found as published ones are."""
    config = vit.published(reference.config.to_dict())
    model = vit.build(config, spec)
    loaded = pretrained.put(model, reference.state_dict(), vit.matches(config))
    assert (loaded.fresh, loaded.changed, loaded.left) == ((), (), ())
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_equals_the_reference_weight_for_weight(kind, size):
    reference = references(kind, *size).eval()
    channels, side = size[4], size[5]
    spec = images_of(channels, side, side)
    model, batch = taken_over(reference, spec).eval(), some_images(spec, 3)
    with torch.no_grad():
        found, expected = model(batch), reference(model.normalize(batch[KEY])).last_hidden_state
    torch.testing.assert_close(found.tokens, expected, rtol=0, atol=1e-5)
    leading = 1 if kind == "vit" else 2
    torch.testing.assert_close(found.pooled, expected[:, :leading].mean(1), rtol=0, atol=1e-5)
    patches = expected[:, leading:].transpose(1, 2)
    torch.testing.assert_close(found.maps[0].flatten(2), patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_training_step_has_the_reference_gradients(kind):
    reference = references(kind, *SIZES[1]).train()
    spec = images_of(1, 12, 12)
    model, batch = taken_over(reference, spec).train(), some_images(spec, 3)
    found, expected = model(batch).tokens, reference(model.normalize(batch[KEY])).last_hidden_state
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    config = vit.published(reference.config.to_dict())
    theirs = translate({n: p.grad for n, p in reference.named_parameters()}, vit.matches(config)).tensors
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_equals_the_reference_at_full_size(kind):
    reference = references(kind, 768, 12, 12, 3072, 3, 224, 16, std=0.03).eval()
    spec = vit.paper().only([replace(vit.paper().inputs[0], name="photo")])
    model, batch = taken_over(reference, spec).eval(), some_images(spec, 1)
    with torch.no_grad():
        found, expected = model(batch), reference(model.normalize(batch[KEY])).last_hidden_state
    torch.testing.assert_close(found.tokens, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_published_folders_are_read(name, tmp_path):
    """Files name blocks otherwise than the library, which renames them as it reads and writes."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    config = getattr(transformers, name.partition("For")[0] + "Config")(**settings, image_size=16, patch_size=4)
    reference = getattr(transformers, name)(config).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    published = pretrained.find(str(tmp_path))
    entry, spec = pretrained.family(published), images_of(3, 16, 16)
    model = entry.module.build(entry.config, spec).eval()
    loaded = pretrained.put(model, published.tensors, entry.module.matches(entry.config))
    assert loaded.fresh == () and loaded.changed == ()
    assert all("classifier." in name for name in loaded.left) and len(loaded.left) in (2, 4)
    batch = some_images(spec, 2)
    with torch.no_grad():
        found, expected = model(batch), reference.base_model(model.normalize(batch[KEY]))
    torch.testing.assert_close(found.tokens, expected.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "leading"), [("vit", 1), ("deit", 2)])
def test_other_images_than_the_published_ones_are_taken_and_what_is_changed_is_said(kind, leading):
    reference = references(kind, 24, 1, 2, 40, 3, 224, 16)
    config, spec = vit.published(reference.config.to_dict()), images_of(1, 28, 28)
    model = vit.build(config, spec)
    loaded = pretrained.put(model, reference.state_dict(), vit.matches(config))
    assert loaded.fresh == () and loaded.left == ()
    positions, channels = sorted(loaded.changed, reverse=True)
    assert positions == f"'positions': {196 + leading} positions are interpolated to {4 + leading}."
    assert channels == "'patches.weight': the weights of 3 input channels are averaged for 1."
    given = reference.state_dict()
    table = given["embeddings.position_embeddings"][0]
    torch.testing.assert_close(model.positions[:leading], table[:leading])
    grid = table[leading:].T.reshape(1, 24, 14, 14)
    wanted = F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(model.positions[leading:], wanted)
    grey = torch.rand(2, 1, 32, 32)
    by_hand = F.conv2d(grey.expand(-1, 3, -1, -1), given["embeddings.patch_embeddings.projection.weight"], stride=16)
    by_hand = by_hand + given["embeddings.patch_embeddings.projection.bias"][:, None, None]
    torch.testing.assert_close(model.patches(grey), by_hand.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert model.eval()(some_images(spec, 2)).pooled.isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameters"),  # with read-outs of 1,000 classes, of which DeiT has one for each leading token
    [
        ("vit_tiny", 5_717_416),
        ("vit_small", 22_050_664),
        ("vit_base", 86_567_656),
        ("deit_tiny", 5_910_800),
        ("deit_small", 22_436_432),
        ("deit", 87_338_192),
    ],
)
def test_parameter_counts_are_those_published(name, parameters):
    with torch.device("meta"):
        model = vit.build(catalog.find("models", name).config, vit.paper())
        heads = [nn.Linear(model.width, 1000) for _ in model.leading]
    assert sum(p.numel() for module in (model, *heads) for p in module.parameters()) == parameters


def test_patches_are_those_of_a_convolution():
    torch.manual_seed(0)
    for channels, height, width, patch in ((3, 8, 12, 4), (1, 6, 6, 1), (2, 5, 5, 5)):
        patches, x = PatchEmbedding(channels, 7, patch), torch.randn(2, channels, height, width)
        nn.init.normal_(patches.bias)
        expected = F.conv2d(x, patches.weight, patches.bias, stride=patch)
        assert patches.grid(height, width) == expected.shape[2:]
        torch.testing.assert_close(patches(x), expected.flatten(2).transpose(1, 2))


def test_sides_that_patches_do_not_divide_are_filled_up():
    torch.manual_seed(0)
    patches, x = PatchEmbedding(1, 5, 4), torch.randn(2, 1, 6, 9)
    whole = F.pad(x, (0, 3, 0, 2))
    assert patches.grid(6, 9) == (2, 3)
    assert torch.equal(patches(x), patches(whole)) and patches(x).shape == (2, 6, 5)


@pytest.mark.parametrize(
    ("shape", "patch", "grid"),
    [
        ((1, 28, 28), 4, (7, 7)),
        ((3, 32, 32), 4, (8, 8)),
        ((3, 224, 224), 16, (14, 14)),
        ((3, 33, 50), 5, (7, 10)),
        ((1, 8, 8), 2, (4, 4)),
        ((1, 1, 3), 1, (1, 3)),
    ],
)
def test_the_open_patch_follows_the_images(shape, patch, grid):
    spec = images_of(*shape)
    model = vit.build(vit.Config(width=16, depth=1), spec)
    found = model(some_images(spec, 2))
    assert (model.patches.patch, model.grid) == (patch, grid)
    assert found.maps[0].shape == (2, 16, *grid)
    assert found.tokens.shape == (2, 1 + grid[0] * grid[1], 16)


def test_pooling():
    torch.manual_seed(0)
    spec = images_of(3, 16, 16)
    config = vit.Config(width=16, depth=1, distillation=True)
    model, mean = (vit.build(replace(config, pooling=pooling), spec) for pooling in ("first", "mean"))
    mean.load_state_dict(model.state_dict())
    found, batch = model(some_images(spec, 2)), some_images(spec, 2)
    torch.testing.assert_close(found.pooled, (found.tokens[:, 0] + found.tokens[:, 1]) / 2)
    torch.testing.assert_close(mean(batch).pooled, found.tokens[:, 2:].mean(1))


@pytest.mark.parametrize("name", ["vit", "vit_base"])
@pytest.mark.parametrize("rows", [10, 5_000, 10**7])
def test_recipe_is_made_of_known_options(name, rows):
    recipe = vit.recipe(catalog.find("models", name).config, images_of(1, 28, 28, rows))
    parts = {"engine": Plan, "objective": supervised.Config, "augment": AugmentConfig}
    assert recipe.keys() == parts.keys()
    for part, kind in parts.items():
        build_config(kind, recipe[part], part)


def test_images_smaller_than_a_patch_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"'photo' are 20x12 pixels.*prepare\.image_size=16.*model\.patch=2"):
        vit.build(vit.presets["vit_tiny"], images_of(3, 12, 20))


@pytest.mark.parametrize(
    "options",
    [{"depth": 0}, {"width": 0}, {"num_heads": 0}, {"hidden": -1}, {"patch": -1}, {"dropout": 1.0}, {"epsilon": 0.0}],
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"'model.{next(iter(options))}' was given .*; expected"):
        vit.build(vit.Config(**options), images_of(1, 8, 8))


def test_heads_that_do_not_divide_the_width_are_refused_with_a_width_that_serves():
    with pytest.raises(ConfigError, match=r"given 6, which does not divide the width of 128; set model.width=132"):
        vit.build(vit.Config(num_heads=6), images_of(1, 8, 8))


@pytest.mark.parametrize("setting", [{"hidden_act": "relu"}, {"qkv_bias": False}])
def test_published_settings_that_are_not_read_are_refused(setting):
    with pytest.raises(ConfigError, match=f"'{next(iter(setting))}'.*--model hf:NAME"):
        vit.published({"model_type": "vit", **setting})


def test_other_data_is_refused():
    with pytest.raises(ConfigError, match=r"takes one image column; the input columns are 'n' \(number\)"):
        vit.build(vit.Config(), DataSpec(inputs=(Field(name="n", kind="number"),)))
