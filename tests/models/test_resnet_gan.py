"""SN-GAN: the papers' numbers, torch's spectral norm, and labels on both sides."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.roles import Adversarial
from fathom.core.types import DataSpec, Field
from fathom.models import resnet_gan


def images_of(channels: int, height: int, width: int, classes: int = 3) -> DataSpec:
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width)),),
        targets=(Field(name="label", kind="category", classes=tuple(f"c{i}" for i in range(classes))),),
        rows=1000,
    )


def network(name: str, spec: DataSpec, **options: object) -> resnet_gan.ResNetGAN:
    torch.manual_seed(0)
    return resnet_gan.build(replace(catalog.find("models", name).config, **options), spec)


def some_images(spec: DataSpec, rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {"image:photo": torch.randint(0, 256, (rows, *spec.inputs[0].shape), dtype=torch.uint8, generator=draw)}


def conv(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2 + outputs


def generator_parameters(w: int, classes: int = 0) -> int:
    """Of 32×32×3, as table 4 of the paper of 2018 has it (of 2017: table 3)."""
    norm = 2 * w * max(1, classes)
    block = 2 * norm + 2 * conv(w, w, 3) + conv(w, w, 1)
    return 128 * 16 * w + 16 * w + 3 * block + 2 * w + conv(w, 3, 3)


def judge_parameters(w: int, classes: int = 0) -> int:
    first = conv(3, w, 3) + conv(w, w, 3) + conv(3, w, 1)
    second = 2 * conv(w, w, 3) + conv(w, w, 1)
    return first + second + 2 * (2 * conv(w, w, 3)) + w + 1 + classes * w


@pytest.mark.parametrize(
    ("name", "generator", "judge", "expected"),
    [
        ("sngan", generator_parameters(256), judge_parameters(128), (4_276_739, 1_053_825)),
        ("sngan_projection", generator_parameters(256, 10), judge_parameters(128, 10), (4_304_387, 1_055_105)),
        ("wgan_gp", generator_parameters(128), judge_parameters(128), (1_204_483, 1_053_825)),
    ],
)
def test_parameter_counts_are_those_of_the_papers(
    name: str, generator: int, judge: int, expected: tuple[int, int]
) -> None:
    with torch.device("meta"):
        model = network(name, resnet_gan.paper())
    found = tuple(sum(p.numel() for p in part.parameters()) for part in (model.generator, model.judge))
    assert found == expected == (generator, judge)


@pytest.mark.parametrize(
    ("channels", "height", "width", "last"),
    [(1, 28, 28, (14, 14)), (3, 32, 32, (8, 8)), (3, 64, 64, (8, 8)), (1, 4, 7, (2, 3)), (2, 19, 33, (9, 16))],
)
@pytest.mark.parametrize("conditional", [False, True])
def test_sides_of_all_sizes(channels: int, height: int, width: int, last: tuple[int, int], conditional: bool) -> None:
    spec = images_of(channels, height, width)
    model = network("resnet_gan", spec, width=4, judge_width=6, conditional=conditional)
    assert isinstance(model, Adversarial) and model.classes == (3 if conditional else 0)
    label = torch.tensor([0, 2, 1]) if conditional else None
    image = model.generate(torch.randn(3, model.noise), label)
    assert image.shape == (3, channels, height, width)
    assert image.abs().max() <= 1
    assert model.criticise(image, label).shape == (3,)
    found = model(some_images(spec, 3))
    assert found.maps[0].shape == (3, 6, *last)
    torch.testing.assert_close(found.pooled, found.maps[0].sum((2, 3)))


def test_every_weight_of_the_judge_is_divided_by_its_largest_singular_value() -> None:
    model = network("resnet_gan", images_of(1, 8, 8), judge_width=6)
    for _ in range(50):  # each pass in training is one step of the power iteration
        model.criticise(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    layers = [m for m in model.judge.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 2 + 1 + 2 * 2 + 2  # the first block with its shortcut, two blocks without, score and label
    model.eval()
    for layer in layers:
        raw = layer.parametrizations.weight.original
        largest = torch.linalg.matrix_norm(raw.flatten(1), 2)
        torch.testing.assert_close(layer.weight, raw / largest, rtol=1e-3, atol=1e-4)
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=1e-3)
    assert not any(is_parametrized(m) for m in model.generator.modules())
    plain = network("resnet_gan", images_of(1, 8, 8), judge_width=6, spectral=False)
    assert not any(is_parametrized(m) for m in plain.modules())


def test_power_iteration_stands_still_in_evaluation() -> None:
    model = network("resnet_gan", images_of(1, 8, 8))
    image = torch.randn(2, 1, 8, 8)
    before = {name: buffer.clone() for name, buffer in model.judge.named_buffers()}
    model.eval().criticise(image)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.judge.named_buffers())
    model.train().criticise(image)
    moved = [name for name, buffer in model.judge.named_buffers() if not torch.equal(before[name], buffer)]
    assert moved and all(name.endswith(("_u", "_v")) for name in moved)


def test_state_moves_between_builds_and_training_goes_on_to_the_bit() -> None:
    spec = images_of(1, 8, 8)
    first, second = network("resnet_gan", spec), network("resnet_gan", spec)
    image, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

    def step(model: resnet_gan.ResNetGAN) -> None:
        model.criticise(image, label).square().mean().backward()
        with torch.no_grad():
            for parameter in model.judge.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    for _ in range(3):
        step(first)
    second.load_state_dict(first.state_dict(), strict=True)
    step(first), step(second)
    assert all(torch.equal(first.state_dict()[key], value) for key, value in second.state_dict().items())


def test_labels_are_heard_by_both() -> None:
    spec = images_of(1, 8, 8)
    model = network("resnet_gan", spec).eval()
    with torch.no_grad():
        for module in model.generator.modules():
            if isinstance(module, resnet_gan.ClassNorm):
                module.scale += 0.3 * torch.randn_like(module.scale)
    noise = torch.randn(2, model.noise)
    one, other = model.generate(noise, torch.tensor([0, 0])), model.generate(noise, torch.tensor([1, 0]))
    assert (one - other)[0].abs().max() > 1e-3
    torch.testing.assert_close(one[1], other[1])
    pooled = model.judge.pooled(model.judge.map(one))
    label = torch.tensor([2, 1])
    expected = model.criticise(one) + (model.judge.label.weight[label] * pooled).sum(1)  # the projection
    torch.testing.assert_close(model.criticise(one, label), expected)
    alone = network("resnet_gan", images_of(1, 8, 8, classes=1)).eval()  # of a single class, its mean is that class
    torch.testing.assert_close(alone.generate(noise), alone.generate(noise, torch.tensor([0, 0])))


def test_growing_and_shrinking_is_what_the_papers_have() -> None:
    """There 1×1 convolutions of shortcuts come after copying and before the mean; ours change places with them."""
    block = resnet_gan.GrowBlock(5, 0).eval()
    x = torch.randn(2, 5, 3, 4)
    twice = nn.Upsample(scale_factor=2)
    expected = block.shortcut(twice(x)) + block.conv_out(
        block.norm_out(block.conv_in(twice(block.norm_in(x, None).relu())), None).relu()
    )
    torch.testing.assert_close(block(x, None), expected)
    halving = resnet_gan.JudgeBlock(5, 6, halve=True)
    mean = nn.AvgPool2d(2)
    expected = mean(halving.shortcut(x)) + mean(halving.conv_out(halving.conv_in(x.relu()).relu()))
    torch.testing.assert_close(halving(x), expected)


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 8, 8)
    assert resnet_gan.accepts(spec) is None
    with pytest.raises(ConfigError, match=r"one image column.*'size' \(number\)"):
        resnet_gan.build(resnet_gan.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
    for name in ("noise", "width", "judge_width"):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            network("resnet_gan", spec, **{name: 0})
    with pytest.raises(ConfigError, match=r"'photo' are 9x3 pixels.*prepare\.image_size=4"):
        network("resnet_gan", images_of(1, 3, 9))
