"""U-Nets: the papers' numbers, diffusers' network weight for weight, and sides that nothing divides."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom import pretrained
from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.roles import Denoiser
from fathom.core.types import DataSpec, Field, Stats
from fathom.layers.condition import sinusoids
from fathom.models import unet


def images_of(channels: int, height: int, width: int, classes: int = 10) -> DataSpec:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width), stats=stats),),
        targets=(Field(name="label", kind="category", classes=tuple(f"c{i}" for i in range(classes))),),
        rows=1000,
    )


def network(name: str, spec: DataSpec, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return unet.build(replace(catalog.find("models", name).config, **options), spec)


def some_images(spec: DataSpec, rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    field = spec.inputs[0]
    return {field.key: torch.randint(0, 256, (rows, *field.shape), dtype=torch.uint8, generator=draw)}


def randomized(model: nn.Module) -> nn.Module:
    """The same network with no weight left at zero, so that every path counts."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_ddpm_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        assert count(network("ddpm", unet.paper())) == 35_746_307  # "35.7 million"


def test_unet_2015_has_the_layers_of_the_paper() -> None:
    with torch.device("meta"):
        model, grey = network("unet_2015", unet.paper()), network("unet_2015", images_of(1, 512, 512))
        read_out = nn.Conv2d(grey.width, 2, 1)
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in grey.modules()) + 1 == 23  # "23 layers in total"
    assert count(grey, read_out) == 31_030_658
    assert count(model) == 31_031_680
    assert [m.out_channels for m in grey.grow] == [512, 256, 128, 64]


def diffusers_unet(config: unet.Config, channels: int, classes: int) -> nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="the reference implementation is not installed")
    there = {index % len(config.widths) for index in config.attention}
    kinds = [index in there for index in range(len(config.widths))]
    torch.manual_seed(1)
    reference = diffusers.UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["AttnDownBlock2D" if attention else "DownBlock2D" for attention in kinds],
        up_block_types=["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(kinds)],
        block_out_channels=list(config.widths),
        layers_per_block=config.depth,
        attention_head_dim=config.head_width or None,
        norm_num_groups=config.groups,
        attn_norm_num_groups=config.groups,
        norm_eps=1e-6,
        resnet_time_scale_shift="scale_shift" if config.modulation == "scale_shift" else "default",
        num_class_embeds=classes + 1 if classes else None,
    )
    return randomized(reference)


def filled(model: nn.Module, reference: nn.Module, config: unet.Config) -> None:
    loaded = pretrained.put(model, reference.state_dict(), unet.matches(config))
    assert loaded.left == loaded.fresh == loaded.changed == ()


CASES = [
    {"widths": (32, 64, 64), "depth": 2, "attention": (-1,), "groups": 8, "head_width": 16},
    {"widths": (16, 32), "depth": 1, "attention": (0, 1), "groups": 4, "modulation": "shift"},
    {"widths": (32, 32, 64), "depth": 1, "attention": (1,), "groups": 16, "conditional": False},
]


@pytest.mark.parametrize("options", CASES)
def test_equals_diffusers_weight_for_weight(options: dict[str, object]) -> None:
    spec, config = images_of(3, 16, 24), replace(unet.Config(), **options)
    model = network("unet", spec, **options)
    reference = diffusers_unet(config, 3, model.classes)
    filled(model, reference, config)
    x, time = torch.randn(3, 3, 16, 24), torch.tensor([0.0, 17.0, 999.0])
    label = torch.tensor([0, 4, 10]) if model.classes else None
    ours = model.denoise(x, time, label)
    theirs = reference(x, time, class_labels=label).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = translate({name: p.grad for name, p in reference.named_parameters()}, unet.matches(config)).tensors
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_ddpm_equals_diffusers_at_full_size() -> None:
    model, config = network("ddpm", unet.paper()).eval(), catalog.find("models", "ddpm").config
    reference = diffusers_unet(config, 3, 0).eval()
    filled(model, reference, config)
    x, time = torch.randn(1, 3, 32, 32), torch.tensor([500.0])
    with torch.no_grad():
        ours, theirs = model.denoise(x, time), reference(x, time).sample
    assert (ours - theirs).abs().max() <= 1e-4 * max(1, float(theirs.abs().max()))


def test_times_are_waves_of_falling_frequency() -> None:
    waves = sinusoids(torch.tensor([0.0, 1.0, 250.0]), 8)
    for row, time in zip(waves, (0.0, 1.0, 250.0), strict=True):
        angles = torch.tensor([time / 10_000 ** (k / 4) for k in range(4)])
        torch.testing.assert_close(row, torch.cat([angles.cos(), angles.sin()]))
    assert sinusoids(torch.tensor([3]), 5).shape == (1, 5)


@pytest.mark.parametrize("name", ["unet", "unet_2015"])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (5, 3), (1, 1), (17, 32)])
def test_sides_that_nothing_divides(name: str, height: int, width: int) -> None:
    spec = images_of(1, height, width)
    model = network(name, spec, widths=(8, 16, 16)).eval()
    found = model(some_images(spec, 2))
    assert found.pooled.shape == (2, 8)
    sizes = [(height, width), (-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))]
    assert [tuple(m.shape[2:]) for m in found.maps] == sizes
    assert [m.shape[1] for m in found.maps] == [8, 16, 16]
    torch.testing.assert_close(found.maps[0].mean((2, 3)), found.pooled)
    if isinstance(model, Denoiser):
        x = torch.randn(2, 1, height, width)
        assert model.denoise(x, torch.tensor([3.0, 4.0])).shape == x.shape


def test_padding_is_where_it_says() -> None:
    """What is cropped has been fed with zeros: the same network on the padded image gives the same at real pixels."""
    spec = images_of(1, 7, 6)
    model = randomized(network("unet", spec, widths=(8, 8))).eval()
    x, time = torch.randn(2, 1, 7, 6), torch.tensor([1.0, 2.0])
    whole = model.denoise(nn.functional.pad(x, (0, 0, 0, 1)), time)
    torch.testing.assert_close(model.denoise(x, time), whole[:, :, :7], rtol=1e-4, atol=1e-5)


def test_time_and_label_are_heard() -> None:
    spec = images_of(1, 8, 8, classes=3)
    model = randomized(network("unet", spec)).eval()
    assert isinstance(model, Denoiser) and model.classes == 3
    x, time = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 10.0])
    base = model.denoise(x, time, torch.tensor([0, 0]))
    assert (model.denoise(x, time + 500, torch.tensor([0, 0])) - base).abs().max() > 1e-3
    assert (model.denoise(x, time, torch.tensor([1, 0])) - base)[0].abs().max() > 1e-4
    none = model.denoise(x, time, torch.tensor([3, 3]))
    torch.testing.assert_close(model.denoise(x, time), none)  # no label is the label that stands for none
    assert not hasattr(network("unet_2015", spec, widths=(8, 8)), "denoise")
    assert network("unet", replace(spec, targets=())).classes == 0
    assert network("unet", spec, conditional=False).label is None


def test_begins_with_no_noise_found_and_blocks_that_change_nothing() -> None:
    spec = images_of(1, 8, 8)
    model = network("unet", spec)
    assert model.denoise(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 900.0])).abs().max() == 0
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(model.down[0].blocks[0](x, torch.randn(2, 128)), x)


def test_the_plain_network_is_one_graph_and_learns() -> None:
    spec = images_of(1, 13, 10, classes=2)
    model = network("unet_2015", spec, widths=(8, 16), dropout=0.0)
    batch = some_images(spec, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(batch).maps[0]
    torch.testing.assert_close(compiled, model(batch).maps[0])

    class FirstMap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.model(batch).maps[0]

    exported = torch.export.export(FirstMap(), (batch,)).module()
    torch.testing.assert_close(exported(batch), model(batch).maps[0], rtol=1e-4, atol=1e-5)
    head = nn.Conv2d(8, 2, 1)
    wanted = (batch["image:photo"][:, 0] > 127).long()  # [B, H, W]: a class for each pixel
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(head(model(batch).maps[0]), wanted)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert loss < 0.1


def test_an_exported_graph_takes_any_number_of_rows() -> None:
    class Denoise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = randomized(network("unet", images_of(1, 9, 6))).eval()

        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            image = {"image:photo": (x * 127).to(torch.uint8)}
            return self.model.denoise(x, time, label), self.model(image).pooled

    def some(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.rand(rows, 1, 9, 6), torch.full((rows,), 5.0), torch.arange(rows)

    whole, rows = Denoise(), {0: torch.export.Dim("rows")}
    exported = torch.export.export(whole, some(4), dynamic_shapes=(rows, rows, rows)).module()
    for given in (some(2), some(7)):
        for found, expected in zip(exported(*given), whole(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_plain_maps_keep_their_size() -> None:
    spec = images_of(3, 32, 32)
    sizes = [m.std() for m in network("unet_2015", spec, widths=(32, 64, 128, 256)).eval()(some_images(spec, 4)).maps]
    assert all(0.1 < size < 10 for size in sizes)


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 8, 8)
    assert unet.accepts(spec) is None
    table = DataSpec(inputs=(Field(name="size", kind="number"),))
    with pytest.raises(ConfigError, match=r"one image column.*'size' \(number\)"):
        unet.build(unet.Config(), table)
    for options, words in (
        ({"widths": (8, 0)}, "model.widths"),
        ({"depth": 0}, "model.depth"),
        ({"groups": 0}, "model.groups"),
        ({"groups": 5}, "does not divide the width of 32"),
        ({"head_width": 5}, "does not divide the width of 32"),
        ({"attention": (2,)}, "names stage 2; there are 2 stages"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"block": "plain", "attention": (0,)}, "for residual blocks"),
    ):
        with pytest.raises(ConfigError, match=words):
            network("unet", spec, **options)
