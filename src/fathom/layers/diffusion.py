"""Blocks of the U-shaped networks that take noise out of images.

    TimeBlock          two 3×3 convolutions, told the time, added to what came in
    PixelAttention     every pixel looks at every other, added to what came in
    Shrink, Grow       half and twice the resolution, by a convolution
    Stage              blocks at one resolution, and the way to the next

Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020; scales by the time beside shifts: Dhariwal,
Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6  # added to variances


@dataclass(frozen=True)
class BlockOptions:
    """What the blocks of one network have in common.

    Attributes:
        time: length of the time's vector.
        groups: of each group norm.
        scales: whether the time scales the second norm's output, beside shifting it.
        dropout: share of units dropped between the convolutions in training.
        head_width: channels of an attention head; 0: one head of all.
    """

    time: int
    groups: int = 32
    scales: bool = False
    dropout: float = 0.0
    head_width: int = 0


class TimeBlock(nn.Module):
    """A residual block that is told the time: [B, C, H, W], [B, T] -> [B, O, H, W]. It begins as its shortcut."""

    def __init__(self, inputs: int, outputs: int, options: BlockOptions) -> None:
        super().__init__()
        self.scales = options.scales
        self.norm_in = nn.GroupNorm(options.groups, inputs, EPSILON)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(options.time, 2 * outputs if options.scales else outputs)
        self.norm_out = nn.GroupNorm(options.groups, outputs, EPSILON)
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        for layer in (self.conv_in, self.time, self.shortcut):
            begin(layer)
        begin(self.conv_out, zero=True)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        told = self.time(time)[:, :, None, None]  # [B, O or 2·O, 1, 1]
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            hidden = self.norm_out(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm_out(hidden + told)
        return self.shortcut(x) + self.conv_out(self.dropout(F.silu(hidden)))


class PixelAttention(nn.Module):
    """Self-attention of pixels: [B, C, H, W] -> the same. It begins as the identity."""

    def __init__(self, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.num_heads = width // options.head_width if options.head_width else 1
        self.norm = nn.GroupNorm(options.groups, width, EPSILON)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        begin(self.project_in)
        begin(self.project_out, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        parts = self.project_in(pixels).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, C/heads] each
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.project_out(found).transpose(1, 2).unflatten(2, x.shape[2:])


class Shrink(nn.Conv2d):
    """[B, C, H, W] -> [B, C, ⌈H/2⌉, ⌈W/2⌉]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2, padding=1)
        begin(self)


class Grow(nn.Module):
    """Each pixel four times, then a convolution: [B, C, H, W] -> [B, C, 2·H, 2·W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        begin(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Blocks at one resolution, each followed by attention where wished, and the way to the next resolution.

    Args:
        inputs: channels that each block gets.
        outputs: channels that each gives.
        attention: whether attention follows each block.
        resize: to the next stage's resolution; None in the last.
    """

    def __init__(
        self, inputs: Sequence[int], outputs: int, attention: bool, options: BlockOptions, resize: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TimeBlock(size, outputs, options) for size in inputs)
        self.attentions = nn.ModuleList(
            PixelAttention(outputs, options) if attention else nn.Identity() for _ in inputs
        )
        self.resize = resize

    def down(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """Return what each block gives, and last what goes on to the next stage, if there is one."""
        found = []
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x, time))
            found.append(x)
        return [*found, self.resize(x)] if self.resize is not None else found

    def up(self, x: Tensor, skipped: list[Tensor], time: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the last block gives, and what goes on to the next stage; takes from the end of `skipped`."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(torch.cat([x, skipped.pop()], dim=1), time))
        return x, self.resize(x) if self.resize is not None else x


def begin(layer: nn.Module, zero: bool = False) -> None:
    """Draw a layer's first weights with variance 2 / (inputs + outputs), as Glorot and Bengio, 2010, or zeros."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        if zero:
            nn.init.zeros_(layer.weight)
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
