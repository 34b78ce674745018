"""DCGAN: the paper's numbers and shapes, sides of all sizes, and a judge that learns to tell."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.roles import Adversarial
from fathom.core.types import DataSpec, Field
from fathom.models import dcgan


def images_of(channels: int, height: int, width: int) -> DataSpec:
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width)),),
        targets=(Field(name="label", kind="category", classes=("cat", "dog")),),
        rows=1000,
    )


def network(name: str, spec: DataSpec, **options: object) -> dcgan.DCGAN:
    torch.manual_seed(0)
    return dcgan.build(replace(catalog.find("models", name).config, **options), spec)


def some_images(spec: DataSpec, rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {"image:photo": torch.randint(0, 256, (rows, *spec.inputs[0].shape), dtype=torch.uint8, generator=draw)}


def test_parameter_counts_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = network("dcgan_64", dcgan.paper())
    assert sum(p.numel() for p in model.generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in model.judge.parameters()) == 2_765_568
    convs = [m for m in model.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.in_channels for m in convs] == [100, 512, 256, 128, 64]
    assert convs[0].kernel_size == (4, 4)
    assert model.width == 16 * (64 + 128 + 256 + 512)


@pytest.mark.parametrize(
    ("channels", "height", "width", "sizes"),
    [
        (1, 28, 28, [(14, 14), (7, 7)]),
        (3, 32, 32, [(16, 16), (8, 8), (4, 4)]),
        (3, 64, 64, [(32, 32), (16, 16), (8, 8), (4, 4)]),
        (1, 9, 30, [(4, 15)]),
        (2, 8, 8, [(4, 4)]),
        (1, 37, 50, [(18, 25), (9, 12), (4, 6)]),
    ],
)
def test_sides_of_all_sizes(channels: int, height: int, width: int, sizes: list[tuple[int, int]]) -> None:
    spec = images_of(channels, height, width)
    model = network("dcgan", spec, width=4)
    assert isinstance(model, Adversarial) and model.classes == 0
    image = model.generate(torch.randn(3, model.noise))
    assert image.shape == (3, channels, height, width)
    assert image.abs().max() <= 1
    assert model.criticise(image).shape == (3,)
    found = model(some_images(spec, 3))
    assert [tuple(m.shape[2:]) for m in found.maps] == sizes
    assert found.pooled.shape == (3, model.width)


def test_features_are_the_maps_pooled_to_four_by_four() -> None:
    spec = images_of(1, 16, 16)
    model = network("dcgan", spec, width=4).eval()
    batch = some_images(spec, 2)
    maps = model.judge.maps(batch["image:photo"] / 127.5 - 1)
    expected = torch.cat([F.max_pool2d(m, m.shape[2] // 4).flatten(1) for m in maps], dim=1)
    torch.testing.assert_close(model(batch).pooled, expected)


def test_first_weights_are_those_of_the_paper() -> None:
    model = network("dcgan_64", dcgan.paper())
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert 0.018 < module.weight.std() < 0.022 and module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert 0.9 < module.weight.mean() < 1.1


def test_the_two_learn_against_one_another() -> None:
    """The judge alone comes to tell made from real; then the generator alone comes to deceive it."""
    spec = images_of(1, 16, 16)
    model = network("dcgan", spec, width=16)
    noise = torch.randn(32, model.noise)
    real = torch.linspace(-1, 1, 16).expand(32, 1, 16, 16) * torch.rand(32, 1, 1, 1)

    def learn(network: nn.Module, cost, steps: int) -> float:
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, betas=(0.5, 0.999))
        for _ in range(steps):
            loss = cost()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    made = model.generate(noise).detach()
    judged = learn(
        model.judge, lambda: F.softplus(-model.criticise(real)).mean() + F.softplus(model.criticise(made)).mean(), 40
    )
    assert judged < 0.2
    before = float(F.softplus(-model.criticise(model.generate(noise))).mean().detach())
    after = learn(model.generator, lambda: F.softplus(-model.criticise(model.generate(noise))).mean(), 60)
    assert before > 2 and after < 0.5


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 8, 8)
    assert dcgan.accepts(spec) is None
    with pytest.raises(ConfigError, match=r"one image column.*'size' \(number\)"):
        dcgan.build(dcgan.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
    for options in ({"noise": 0}, {"width": 0}, {"slope": 1.0}, {"slope": -0.1}):
        with pytest.raises(ConfigError, match=f"model.{next(iter(options))}"):
            network("dcgan", spec, **options)
    with pytest.raises(ConfigError, match=r"'photo' are 9x7 pixels.*prepare\.image_size=8"):
        network("dcgan", images_of(1, 7, 9))
