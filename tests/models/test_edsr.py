"""EDSR: the paper's numbers, its formulas restated, sides that nothing divides, and an example to begin with."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats
from fathom.models import edsr
from fathom.objectives import translate_image


def images_of(channels: int, height: int, width: int) -> DataSpec:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width), stats=stats),), rows=1000
    )


def network(name: str, spec: DataSpec, **options: object) -> edsr.EDSR:
    torch.manual_seed(0)
    return edsr.build(replace(catalog.find("models", name).config, **options), spec)


def some_images(spec: DataSpec, rows: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (rows, *spec.inputs[0].shape), dtype=torch.uint8, generator=draw)


def randomized(model: edsr.EDSR) -> edsr.EDSR:
    """The same network with no weight left at zero, so that every path counts."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


@pytest.mark.parametrize(("name", "millions"), [("edsr_baseline", 1.5), ("edsr_2017", 43)])
def test_parameters_are_as_many_as_in_the_paper(name: str, millions: float) -> None:
    """Table 1 of the paper, for four times the side: with the layer that makes colours, and a first one that is given
    a small image."""
    spec = images_of(3, 96, 96)
    with torch.device("meta"):
        task = translate_image.build(translate_image.Config(), spec, network(name, spec, shrink=4))
    count = sum(p.numel() for p in task.parameters()) - 3 * (16 - 1) * 9 * task.model.width
    assert round(count / 1e6, 1 if millions < 10 else 0) == millions


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_an_enlarged_image_is_read_as_the_papers_network_reads_the_small_one(shrink: int) -> None:
    """Where all pixels of a square are alike, the first layer's weights of them add up to those of one pixel."""
    spec = images_of(3, 5 * shrink, 6 * shrink)
    model = randomized(network("edsr", spec, width=8, depth=3, shrink=shrink, scale=0.1))
    small = some_images(images_of(3, 5, 6), 2)
    large = small.repeat_interleave(shrink, 2).repeat_interleave(shrink, 3)
    with torch.no_grad():
        found = model({"image:photo": large})
        wanted = _papers(model, small.float() / 127.5 - 1)
    torch.testing.assert_close(found.maps[0], wanted)
    torch.testing.assert_close(found.pooled, wanted.mean((2, 3)))


def _papers(model: edsr.EDSR, small: Tensor) -> Tensor:
    """What the network of Lim et al. makes of small images, but for its last layer."""
    first = model.enter.weight.unflatten(1, (3, -1)).sum(2)
    x = begun = F.conv2d(small, first, model.enter.bias, padding=1)
    for block in model.blocks:
        inner = F.relu(F.conv2d(x, block.first.weight, block.first.bias, padding=1))
        x = x + 0.1 * F.conv2d(inner, block.second.weight, block.second.bias, padding=1)
    x = F.conv2d(x, model.leave.weight, model.leave.bias, padding=1) + begun
    for grow in model.grow:
        x = F.conv2d(x, grow.weight, grow.bias, padding=1)
        rows, channels, height, width = x.shape
        x = x.reshape(rows, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(rows, channels // 4, 2 * height, 2 * width)
    return x


def test_sides_that_nothing_divides_are_carried_on_by_their_edges() -> None:
    model = randomized(network("edsr", images_of(1, 5, 7), width=8, depth=1, shrink=4))
    image = some_images(images_of(1, 5, 7), 2)
    filled = F.pad(image.float(), (0, 1, 0, 3), mode="replicate").to(torch.uint8)
    with torch.no_grad():
        found, whole = model({"image:photo": image}).maps[0], model({"image:photo": filled}).maps[0]
    assert found.shape == (2, 8, 5, 7)
    torch.testing.assert_close(found, whole[:, :, :5, :7])


def test_it_begins_by_leaving_images_as_they_are() -> None:
    spec = images_of(3, 8, 8)
    task = translate_image.build(translate_image.Config(), spec, network("edsr", spec)).eval()
    with torch.no_grad():
        found = task.metrics({"image:photo": some_images(spec, 4)})
    torch.testing.assert_close(found["psnr"], found["psnr_before"])


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 0}, {"shrink": 3}, {"scale": -1.0}])
def test_options_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"model.{next(iter(options))}"):
        network("edsr", images_of(1, 8, 8), **options)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="edsr"):
        edsr.build(edsr.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
