"""The diffusion transformer: the paper's numbers, and diffusers' network weight for weight."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom import pretrained
from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.roles import Denoiser
from fathom.core.types import DataSpec, Field
from fathom.models import dit


def images_of(channels: int, height: int, width: int, classes: int = 10) -> DataSpec:
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width)),),
        targets=(Field(name="label", kind="category", classes=tuple(f"c{i}" for i in range(classes))),),
        rows=1000,
    )


def network(name: str, spec: DataSpec, **options: object) -> dit.DiT:
    torch.manual_seed(0)
    return dit.build(replace(catalog.find("models", name).config, **options), spec)


def randomized(model: nn.Module) -> nn.Module:
    """The same network with no weight left at zero, so that every path counts."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.mark.parametrize(
    ("name", "parameters"),  # with the fixed positions, which the paper's code counts and we do not learn
    [
        ("dit_s_2", 32_963_360),
        ("dit_s_4", 32_945_024),
        ("dit_s_8", 33_148_160),
        ("dit_b_2", 130_512_416),
        ("dit_b_4", 130_475_648),
        ("dit_b_8", 130_881_536),
        ("dit_l_2", 458_102_816),
        ("dit_xl_2", 675_129_632),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(name, dit.paper())
    assert sum(p.numel() for p in model.parameters()) + model.positions.numel() == parameters


def diffusers_dit(config: dit.Config, channels: int, side: int, classes: int) -> nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="the reference implementation is not installed")
    from diffusers.models.embeddings import Timesteps

    torch.manual_seed(1)
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        in_channels=channels,
        out_channels=2 * channels if config.variance else channels,
        num_layers=config.depth,
        sample_size=side,
        patch_size=config.patch,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    ).eval()  # in training it would replace labels by that of none at random
    told = reference.transformer_blocks[0].norm1.emb
    told.time_proj = Timesteps(
        dit.WAVES, flip_sin_to_cos=True, downscale_freq_shift=0
    )  # the paper's; theirs differ a bit
    for block in reference.transformer_blocks:
        block.norm1.emb = told  # the paper has one for all blocks
    return randomized(reference)


def filled(model: nn.Module, reference: nn.Module, config: dit.Config) -> None:
    loaded = pretrained.put(model, reference.state_dict(), dit.matches(config))
    assert loaded.fresh == loaded.changed == ()
    again = [f"transformer_blocks.{index}.norm1.emb." for index in range(1, config.depth)]
    assert all(name.startswith(tuple(again)) for name in loaded.left)


@pytest.mark.parametrize("variance", [False, True])
def test_equals_diffusers_weight_for_weight(variance: bool) -> None:
    config = dit.Config(width=48, depth=3, num_heads=4, patch=2, variance=variance)
    model = dit.build(config, images_of(3, 12, 12))
    reference = diffusers_dit(config, 3, 12, model.classes)
    filled(model, reference, config)
    x, time, label = torch.randn(4, 3, 12, 12), torch.tensor([0, 17, 500, 999]), torch.tensor([0, 3, 9, 10])
    ours, theirs = model.outputs(x, time, label), reference(x, timestep=time, class_labels=label).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(model.denoise(x, time, label), ours[:, :3])
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = translate({name: p.grad for name, p in reference.named_parameters()}, dit.matches(config)).tensors
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_dit_s_equals_diffusers_at_full_size() -> None:
    model, config = network("dit_s_4", dit.paper()).eval(), catalog.find("models", "dit_s_4").config
    reference = diffusers_dit(config, 4, 32, 1000)
    filled(model, reference, config)
    x, time, label = torch.randn(1, 4, 32, 32), torch.tensor([250]), torch.tensor([7])
    with torch.no_grad():
        ours, theirs = model.outputs(x, time, label), reference(x, timestep=time, class_labels=label).sample
    assert (ours - theirs).abs().max() <= 1e-4 * max(1, float(theirs.abs().max()))


def test_positions_tell_rows_from_columns() -> None:
    places = dit.sinusoidal_grid(3, 5, 16)
    assert places.shape == (15, 16)
    assert torch.equal(places[0], torch.tensor([0.0] * 4 + [1.0] * 4).view(2, 4).repeat(2, 1).flatten())
    grid = places.view(3, 5, 16)
    assert torch.equal(grid[0, :, 8:], grid[0, :1, 8:].expand(5, 8))  # one row: the same row's numbers
    assert torch.equal(grid[:, 2, :8], grid[:1, 2, :8].expand(3, 8))
    assert len({tuple(row.tolist()) for row in places}) == 15


@pytest.mark.parametrize(("height", "width", "patch"), [(28, 28, 0), (7, 5, 2), (9, 16, 4), (1, 1, 0)])
def test_sides_that_the_patches_do_not_divide(height: int, width: int, patch: int) -> None:
    spec = images_of(3, height, width)
    model = randomized(network("dit", spec, width=16, depth=2, patch=patch)).eval()
    assert isinstance(model, Denoiser)
    x = torch.randn(2, 3, height, width)
    assert model.denoise(x, torch.tensor([3.0, 4.0])).shape == x.shape
    found = model({"image:photo": torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)})
    assert found.tokens.shape == (2, model.grid[0] * model.grid[1], 16)
    torch.testing.assert_close(found.pooled, found.tokens.mean(1))


def test_patches_return_to_their_places() -> None:
    """An image goes in as patches and comes out by the same order."""
    model = network("dit", images_of(1, 4, 6), width=4, num_heads=1, depth=1, patch=2)
    x = torch.arange(24.0).view(1, 1, 4, 6)
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        model.leave.weight.copy_(torch.eye(4))
        model.tokens = lambda x, time, label, caption: model.embed(x).flatten(2).transpose(1, 2)  # nothing between
        assert torch.equal(model.denoise(x, torch.zeros(1)), x)


def test_begins_as_the_identity_and_hears_time_and_label() -> None:
    spec = images_of(1, 4, 4, classes=3)
    model = network("dit", spec)
    x, time = torch.randn(2, 1, 4, 4), torch.tensor([10.0, 10.0])
    assert model.denoise(x, time).abs().max() == 0
    tokens = torch.randn(2, 5, 128)
    assert torch.equal(model.blocks[0](tokens, torch.randn(2, 128)), tokens)
    randomized(model)
    base = model.denoise(x, time, torch.tensor([0, 0]))
    assert (model.denoise(x, time + 500, torch.tensor([0, 0])) - base).abs().max() > 1e-3
    assert (model.denoise(x, time, torch.tensor([1, 0])) - base)[0].abs().max() > 1e-4
    torch.testing.assert_close(model.denoise(x, time), model.denoise(x, time, torch.tensor([3, 3])))
    assert network("dit", spec, conditional=False).label is None
    assert network("dit", replace(spec, targets=())).classes == 0


def test_an_exported_graph_takes_any_number_of_rows() -> None:
    class Denoise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = randomized(network("dit", images_of(1, 9, 6))).eval()

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


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 8, 9)
    assert dit.accepts(spec) is None
    with pytest.raises(ConfigError, match=r"one image column.*'size' \(number\)"):
        dit.build(dit.Config(), DataSpec(inputs=(Field(name="size", kind="number"),)))
    for options, words in (
        ({"num_heads": 3}, r"does not divide the width of 128.*model\.width=129"),
        ({"width": 6, "num_heads": 2}, "multiple of 4, such as 8"),
        ({"depth": 0}, "model.depth"),
        ({"patch": -1}, "model.patch"),
        ({"patch": 9}, r"are 9x8 pixels.*model\.patch=8"),
        ({"expansion": 0}, "model.expansion"),
    ):
        with pytest.raises(ConfigError, match=words):
            network("dit", spec, **options)
