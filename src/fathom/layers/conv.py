"""Building blocks of convolutional networks.

    ConvNorm           a convolution, batch normalisation, and mostly an activation
    EvenConv2d         a convolution with as many zeros on each side, quick on small maps, too
    SameConv2d         one with zeros as TensorFlow has them
    ResidualBlock      relu(shortcut + branch)
    SqueezeExcite      each channel times a gate that all channels of the image decide on
    InvertedResidual   from few channels to many, through a depthwise convolution, and back to few
    StochasticDepth    a branch that some images skip in training
    DepthwiseConv2d    each channel by itself, with a shorter way back where maps are small
    DepthwiseBlock     a wide depthwise convolution, then a two-layer network on each pixel
    reducing           which layers halve the sides, where a network made for large images is to see small ones

Convolutions work in whichever memory layout they are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.published import Match, match

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
WORTH = 20_000  # multiplications to an image and channel, below which products of all pixels with all are shorter
IN_PLACE = ("relu", "relu6")  # of the others the gradient needs what came in


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation: [B, C, H, W] -> [B, O, ⌈H/stride⌉, ⌈W/stride⌉].

    The weights begin as He et al., Delving Deep into Rectifiers, 2015, have it: variance 2 / (kernel² · O), by which
    ReLU layers keep the size of the gradient.

    Args:
        inputs, outputs: C and O.
        kernel: side of the convolution, odd.
        stride: by how much it divides the sides of the image.
        activation: what follows; true for ReLU, false for nothing, or the name of one of `ACTIVATIONS`.
        groups: parts that the channels are cut into, which do not see one another; C for a depthwise convolution.
        eps: added to the variance.
        padding: where zeros stand: "even", as many on either side, or "after", as TensorFlow has it: only as many as
            the stride needs, and an odd one to the right and below.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        activation: bool | str = True,
        groups: int = 1,
        eps: float = 1e-5,
        padding: str = "even",
    ) -> None:
        kind = SameConv2d if padding == "after" and stride > 1 else EvenConv2d
        conv = kind(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 * groups / (kernel * kernel * outputs)))
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs, eps=eps)]
        if activation:
            layers.append(activated("relu" if activation is True else activation))
        super().__init__(*layers)


class EvenConv2d(nn.Conv2d):
    """A convolution that lays the zeros around small maps itself, the same numbers by a shorter way.

    On a processor, with channels apart from one another and a map narrower than the kernel, a convolution that is to
    pad takes ten times as long to find its gradients as one that need not.
    """

    def forward(self, input: Tensor) -> Tensor:
        narrow = min(input.shape[2:]) < min(self.kernel_size)
        if narrow and self.groups == self.in_channels > 1 and input.device.type == "cpu":
            height, width = (int(zeros) for zeros in self.padding)
            input = F.pad(input, (width, width, height, height))
            return F.conv2d(input, self.weight, self.bias, self.stride, 0, 1, self.groups)
        return super().forward(input)


class SameConv2d(nn.Conv2d):
    """A strided convolution with only as many zeros around the image as it needs, an odd one to the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        sizes = zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        needed = [max(0, (math.ceil(side / step) - 1) * step + kernel - side) for side, kernel, step in sizes]
        if all(zeros % 2 == 0 for zeros in needed):
            return F.conv2d(input, self.weight, None, self.stride, [n // 2 for n in needed], 1, self.groups)
        height, width = needed
        padded = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def activated(name: str) -> nn.Module:
    """Return an activation by its name, in place where its gradient can be told from what it gives out."""
    kind = ACTIVATIONS[name]
    return kind(inplace=True) if name in IN_PLACE else kind()


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + branch(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += self.shortcut(x)  # in place: no gradient needs what a norm gave out
        return self.relu(y)


class SqueezeExcite(nn.Module):
    """Each channel times a gate between 0 and 1, which the means of all channels decide on: [B, C, H, W] -> the same.

    Source: Hu, Shen, Albanie, Sun, Wu, Squeeze-and-Excitation Networks, 2017.

    Args:
        channels: C.
        squeezed: units between the means and the gates.
        activation: of those units.
        gate: "sigmoid", or "hardsigmoid", which is made of three straight lines.
    """

    def __init__(self, channels: int, squeezed: int, activation: str = "relu", gate: str = "sigmoid") -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        self.activation = activated(activation)
        self.gate = F.hardsigmoid if gate == "hardsigmoid" else torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(self.expand(self.activation(self.reduce(x.mean((2, 3))))))  # [B, C]
        return x * gates[:, :, None, None]


class StochasticDepth(nn.Module):
    """In training, a branch is skipped for a share of the images, and counts for more with the others.

    Source: Huang, Sun, Liu, Sedra, Weinberger, Deep Networks with Stochastic Depth, 2016.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        shape = (len(x), *(1,) * (x.dim() - 1))
        return x * x.new_empty(shape).bernoulli_(1 - self.share).div_(1 - self.share)

    def extra_repr(self) -> str:
        return f"share={self.share:.3g}"


class InvertedResidual(nn.Module):
    """From few channels to many (1×1), each by itself (k×k), and back to few (1×1): [B, C, H, W] -> [B, O, H', W'].

    Where input and output are of one shape, the input is added.

    Source: Sandler, Howard, Zhu, Zhmoginov, Chen, MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018; with
    gates between, Tan et al., MnasNet: Platform-Aware Neural Architecture Search for Mobile, 2018.

    Args:
        inputs, hidden, outputs: channels before, between and after; where hidden is C, nothing is expanded.
        kernel, stride: of the depthwise convolution.
        activation: after the first two convolutions.
        gates: what follows the depthwise convolution, if anything.
        skipped: share of images that skip the block in training.
        eps, padding: as those of `ConvNorm`.
        adds: whether the input is added where the shapes agree.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        activation: str = "relu6",
        gates: SqueezeExcite | None = None,
        skipped: float = 0.0,
        eps: float = 1e-5,
        padding: str = "even",
        adds: bool = True,
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(inputs, hidden, 1, 1, activation, eps=eps) if hidden != inputs else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, activation, hidden, eps, padding)
        self.gates = gates
        self.project = ConvNorm(hidden, outputs, 1, activation=False, eps=eps)
        self.adds = adds and stride == 1 and inputs == outputs
        self.depth = StochasticDepth(skipped) if skipped and self.adds else None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.gates is not None:
            y = self.gates(y)
        y = self.project(y)
        if self.depth is not None:
            y = self.depth(y)
        if self.adds:
            y += x  # in place: no gradient needs what a norm gave out
        return y


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself that keeps the sides: [B, C, H, W] -> the same.

    On a processor the weights' gradient takes a fixed time for each image and channel, however few pixels a map has. Of
    small maps it is taken from the products of all pixels with all others instead.

    Args:
        width: C.
        kernel: side of the convolution, odd.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self._is_learned(input) and self._is_small(*input.shape):
            return _Depthwise.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        return super().forward(input)

    def _is_learned(self, input: Tensor) -> bool:
        """Return whether there will be a gradient of the weights, in single precision on a processor."""
        single = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        return single and self.weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def _is_small(self, images: int, channels: int, height: int, width: int) -> bool:
        return (height * width) ** 2 * (images + self.weight[0].numel()) < WORTH * images


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        channels, _, kernel, _ = weight.shape
        to_x = None
        if ctx.needs_input_grad[0]:
            pad = [kernel // 2] * 2
            wanted = (True, False, False)
            to_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], channels, wanted
            )[0]
        after = gradient.permute(1, 2, 3, 0).flatten(1, 2)  # [C, P, B]
        before = x.permute(1, 0, 2, 3).flatten(2)  # [C, B, P]
        pairs = torch.bmm(after, before).flatten(1)  # [C, P·P]
        to_weight = pairs @ _places(*x.shape[2:], kernel)
        return to_x, to_weight.view_as(weight), gradient.sum((0, 2, 3))


@cache
def _places(height: int, width: int, kernel: int) -> Tensor:
    """Return a one where a kernel's weight leads from the second pixel of a pair to the first: [P·P, kernel²]."""
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)  # [P]
    down, right = (place - place[:, None] + kernel // 2 for place in (row, column))  # [P, P]
    within = (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    place = (down * kernel + right).clamp(0, kernel * kernel - 1)
    return (F.one_hot(place, kernel * kernel) * within[..., None]).flatten(0, 1).float()


class DepthwiseBlock(nn.Module):
    """A depthwise convolution, then a two-layer network on each pixel, added to the input: [B, H, W, C] -> the same.

    Channels stand last, where both the norm and the linear layers want them; a convolution reads that as it is.

    Source: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, A ConvNet for the 2020s, 2022.

    Args:
        width: C.
        scale: what the branch is multiplied with at first, channel by channel; 0: nothing.
        skipped: share of images that skip the block in training.
        kernel: side of the convolution, odd.
    """

    def __init__(self, width: int, scale: float = 1e-6, skipped: float = 0.0, kernel: int = 7) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(width, kernel)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale)) if scale else None
        self.depth = StochasticDepth(skipped) if skipped else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.gelu(self.expand(self.norm(y)))  # [B, H, W, 4·C]
        if self.scale is None:
            y = self.contract(y)
        elif 8 * x.shape[1] * x.shape[2] > x.shape[3]:  # scaling the weights is the same as scaling each pixel, and
            # less work wherever there are more pixels, over some thirty images, than weights to a channel
            y = F.linear(y, self.contract.weight * self.scale[:, None], self.contract.bias * self.scale)
        elif self.depth is None:
            return torch.addcmul(x, self.contract(y), self.scale)
        else:
            y = self.contract(y) * self.scale
        return x + (y if self.depth is None else self.depth(y))


def reducing(strides: Iterable[int], side: int, wanted: int = 0, last: int = 4) -> list[int]:
    """Return the strides of a network's layers for images of such sides: where they are small, the first do not stride.

    Args:
        strides: of the layers in order, each a power of two, as they are for large images.
        side: pixels of the shorter side of the images.
        wanted: by how much all layers together are to divide the sides; 0: as much as leaves about `last` pixels.
    """
    kept = list(strides)
    most = math.prod(kept)
    total = wanted or max(1, min(most, 2 ** math.floor(math.log2(max(1.0, side / (last - 0.5))))))
    for index, stride in enumerate(kept):
        if math.prod(kept) > total:
            kept[index] = max(1, stride // (math.prod(kept) // total))
    return kept


def rounded(channels: float, by: int = 8) -> int:
    """Return a number of channels as a multiple, the nearest that is not below nine tenths of what was asked for.

    Source: Sandler et al., 2018; the rule is that of their published networks.
    """
    near = max(by, int(channels + by / 2) // by * by)
    return near + by if near < 0.9 * channels else near


def conv_norm(ours: str, conv: str, norm: str) -> list[Match]:
    """Return the lines of a table of published weights for one `ConvNorm`."""
    return [match(f"{ours}.0", conv), match(f"{ours}.1", norm)]
