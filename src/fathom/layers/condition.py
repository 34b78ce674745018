"""What an image model is told beside the image: how much noise there is, and which class to make.

    label_classes    how many classes the data's first target has
    unless_classes   why images of a target's classes cannot be asked for
    sinusoids        times as sines and cosines
    TimeEmbedding    times -> vectors
    LabelEmbedding   classes, and one that stands for none -> vectors

Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020 (the sines and cosines are those of Vaswani et
al., Attention Is All You Need, 2017); the class that stands for none is that of Ho, Salimans, Classifier-Free Diffusion
Guidance, 2022.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.types import DataSpec

LONGEST = 10_000.0  # 2π times this is the longest wave, in units of time


def label_classes(spec: DataSpec) -> int:
    """Return the number of classes of the first target, which are what a model can be told to make; 0: none."""
    first = spec.targets[0] if spec.targets else None
    return len(first.classes) if first is not None and first.kind == "category" else 0


def unless_classes(spec: DataSpec) -> str | None:
    """Return why images of a target's classes cannot be asked for, or None where they can or nothing is asked."""
    for target in spec.targets:
        if target.kind != "category":
            return f"target '{target.name}' is {target.kind}; images can be asked for by a category, or by none"
    return None if len(spec.targets) < 2 else f"it can be told one category; the data has {len(spec.targets)} targets"


def sinusoids(time: Tensor, size: int) -> Tensor:
    """Return each time as cosines, then sines, of falling frequency: [B] -> [B, size], float32."""
    half = size // 2
    frequency = torch.exp(
        -math.log(LONGEST) * torch.arange(half, device=time.device, dtype=torch.float32) / max(1, half)
    )
    angle = time.float()[:, None] * frequency  # [B, size / 2]
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, size % 2))  # an odd last one is 0


class TimeEmbedding(nn.Module):
    """Times as waves, through two layers: [B] -> [B, D].

    Args:
        size: waves, half of them cosines.
        width: D.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.expand, self.mix = nn.Linear(size, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        waves = sinusoids(time, self.size).to(self.expand.weight.dtype)
        return self.mix(F.silu(self.expand(waves)))  # [B, D]


class LabelEmbedding(nn.Module):
    """One vector for each class, and a last one for none: [B] int64 -> [B, D].

    Args:
        classes: K; the code K stands for none.
        width: D.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label: Tensor | None, rows: int) -> Tensor:
        """Return the labels' vectors; without labels, `rows` times that of none."""
        if label is None:
            return self.table.weight[self.classes].expand(rows, -1)
        return self.table(label)
