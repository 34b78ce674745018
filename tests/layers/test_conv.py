"""Blocks of convolutional networks, each beside the same thing written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fathom.layers.conv import (
    ConvNorm,
    DepthwiseBlock,
    DepthwiseConv2d,
    EvenConv2d,
    InvertedResidual,
    SameConv2d,
    SqueezeExcite,
    StochasticDepth,
    reducing,
    rounded,
)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 9, 12])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 3), (5, 4)])
def test_zeros_stand_after_the_image_where_their_number_is_odd(side: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = SameConv2d(2, 3, kernel, stride, padding=kernel // 2, bias=False)
    x = torch.randn(2, 2, side, side + 1)
    found = conv(x)
    assert found.shape == (2, 3, -(-side // stride), -(-(side + 1) // stride))
    wide = F.pad(x, (8, 8, 8, 8))  # more than enough: where a window begins is then told by its number alone
    for axis, length in ((2, side), (3, side + 1)):
        needed = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        starts = 8 - needed // 2 + stride * torch.arange(found.shape[axis])
        wide = wide.index_select(axis, (starts[:, None] + torch.arange(kernel)).flatten())
    torch.testing.assert_close(found, F.conv2d(wide, conv.weight, stride=kernel))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (2, 9), (4, 3), (7, 7)])
def test_zeros_around_narrow_maps_give_the_same_numbers(
    kernel: int, stride: int, sides: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = EvenConv2d(4, 4, kernel, stride, padding=kernel // 2, groups=4).double()
    x = torch.randn(3, 4, *sides, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    found, wanted = conv(x), F.conv2d(x, conv.weight, conv.bias, stride, kernel // 2, groups=4)
    torch.testing.assert_close(found, wanted)
    back = torch.randn_like(found)
    inputs = (x, *conv.parameters())
    gradients = torch.autograd.grad(found, inputs, back), torch.autograd.grad(wanted, inputs, back)
    torch.testing.assert_close(*gradients)


def test_a_depthwise_convolution_starts_with_the_spread_of_its_own_inputs() -> None:
    torch.manual_seed(0)
    assert ConvNorm(512, 512, 3, groups=512)[0].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert ConvNorm(64, 512, 3)[0].weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.05)


def test_activations_are_named() -> None:
    kinds = {"relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU, "relu": nn.ReLU}
    assert all(type(ConvNorm(2, 2, activation=name)[2]) is kind for name, kind in kinds.items())
    assert type(ConvNorm(2, 2)[2]) is nn.ReLU
    assert len(ConvNorm(2, 2, activation=False)) == 2


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_gates_are_decided_on_by_the_means_of_channels(gate: str) -> None:
    torch.manual_seed(0)
    layer, x = SqueezeExcite(6, 3, "silu", gate), torch.randn(2, 6, 4, 5)
    hidden = F.silu(x.mean((2, 3)) @ layer.reduce.weight.T + layer.reduce.bias)
    score = hidden @ layer.expand.weight.T + layer.expand.bias
    gates = score.sigmoid() if gate == "sigmoid" else ((score + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(layer(x), x * gates[:, :, None, None])


def test_stochastic_depth_skips_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.3), torch.ones(20_000, 2, 3)
    assert torch.equal(layer.eval()(x), x)
    found = layer.train()(x)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (found == found[:, :1, :1]).all()  # an image as a whole
    assert found.mean() == pytest.approx(1, abs=0.02)


def test_an_inverted_residual_adds_its_input_only_where_the_shapes_agree() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 6, 6)
    for block, adds in (
        (InvertedResidual(8, 16, 8), True),
        (InvertedResidual(8, 16, 8, stride=2), False),
        (InvertedResidual(8, 16, 12), False),
        (InvertedResidual(8, 16, 8, adds=False), False),
    ):
        nn.init.zeros_(block.project[1].weight)  # the branch gives out zeros
        found = block(x)
        assert torch.equal(found, x) if adds else not found.any()


@pytest.mark.parametrize("side", [2, 8])  # few pixels are scaled themselves, of many the weights
@pytest.mark.parametrize("skipped", [0.0, 0.5])
def test_pixels_are_scaled_by_the_shorter_way(side: int, skipped: float) -> None:
    torch.manual_seed(0)
    block, x = DepthwiseBlock(48, 0.5, skipped).eval(), torch.randn(2, side, side, 48)
    nn.init.uniform_(block.scale, -1, 1)
    y = block.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), x + block.scale * block.contract(F.gelu(block.expand(block.norm(y)))))


@pytest.mark.parametrize(
    ("strides", "side", "wanted", "found"),
    [
        ([2, 1, 2, 2, 2, 1, 2], 224, 0, [2, 1, 2, 2, 2, 1, 2]),
        ([2, 1, 2, 2, 2, 1, 2], 28, 0, [1, 1, 1, 2, 2, 1, 2]),
        ([2, 1, 2, 2, 2, 1, 2], 32, 0, [1, 1, 1, 2, 2, 1, 2]),
        ([2, 1, 2, 2, 2, 1, 2], 12, 0, [1, 1, 1, 1, 1, 1, 2]),
        ([2, 1, 2, 2, 2, 1, 2], 3, 0, [1] * 7),
        ([2, 1, 2, 2, 2, 1, 2], 28, 16, [1, 1, 2, 2, 2, 1, 2]),
        ([4, 2, 2], 28, 8, [2, 2, 2]),
    ],
)
def test_small_images_are_not_halved_at_first(strides: list[int], side: int, wanted: int, found: list[int]) -> None:
    assert reducing(strides, side, wanted) == found


def test_channels_are_rounded_to_multiples_and_lose_a_tenth_at_most() -> None:
    assert [rounded(n) for n in (1, 8, 11, 12, 16, 36, 44, 10)] == [8, 8, 16, 16, 16, 40, 48, 16]
    assert all(rounded(n / 4) >= 0.9 * n / 4 and rounded(n / 4) % 8 == 0 for n in range(1, 4000))


@pytest.mark.parametrize(("sides", "kernel"), [((2, 2), 7), ((4, 4), 7), ((3, 5), 3), ((1, 1), 5), ((7, 7), 7)])
def test_a_depthwise_convolution_of_small_maps_has_the_gradients_of_any(sides, kernel):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, kernel)
    x, gradient = torch.randn(16, 6, *sides, requires_grad=True), torch.randn(16, 6, *sides)
    found = ours(x)
    assert "Depthwise" in type(found.grad_fn).__name__  # it goes the short way
    wanted = torch.nn.functional.conv2d(x, ours.weight, ours.bias, padding=kernel // 2, groups=6)
    assert torch.equal(found, wanted)
    inputs = (x, ours.weight, ours.bias)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient), rtol=0, atol=2e-5
    )


def test_a_depthwise_convolution_of_large_maps_or_frozen_is_pytorchs():
    ours = DepthwiseConv2d(2, 3)
    for x in (torch.randn(2, 2, 30, 30), torch.randn(2, 2, 4, 4).bfloat16()):
        found = ours.to(x.dtype)(x)
        assert type(found.grad_fn).__name__ == "ConvolutionBackward0"
    assert ours.float().requires_grad_(False)(torch.randn(2, 2, 4, 4)).grad_fn is None
