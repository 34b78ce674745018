"""What an image model is told beside the image: how much noise there is, and which class to make or what is to be seen.

    label_classes         how many classes the data's first target has
    unless_classes        why images of a target's classes cannot be asked for
    unless_captions       why these columns are not images, perhaps with captions
    categories_as_texts   what to do where captions were taken for classes
    sinusoids             times as sines and cosines
    TimeEmbedding         times -> vectors
    LabelEmbedding        classes, and one that stands for none -> vectors
    CaptionEmbedding      texts, and none -> vectors

Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020 (the sines and cosines are those of Vaswani et
al., Attention Is All You Need, 2017); the class that stands for none is that of Ho, Salimans, Classifier-Free Diffusion
Guidance, 2022; that what is said in words goes in by the time's vector is of Nichol et al., GLIDE: Towards
Photorealistic Image Generation and Editing with Text-Guided Diffusion Models, 2022, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.types import DataSpec, Field
from fathom.layers.attention import EncoderBlock, Packing
from fathom.layers.attention import sinusoids as places

LONGEST = 10_000.0  # 2π times this is the longest wave, in units of time
CAPTION_WIDTH, CAPTION_DEPTH, CAPTION_HEADS = 64, 2, 4  # of the network that reads captions


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


def unless_captions(spec: DataSpec) -> str | None:
    """Return why these input columns are not images, alone or with one column of texts, or None where they are."""
    images, texts = len(spec.images), len(spec.texts)
    if images == 1 and texts <= 1 and len(spec.inputs) == images + texts:
        return None
    why = "it takes one image column, and perhaps one text column that says what is to be seen"
    return f"{why}; there are {spec.given}{categories_as_texts(spec)}"


def categories_as_texts(spec: DataSpec) -> str:
    """Return how a refusal ends where texts are missed: captions that repeat look like classes."""
    names = [field.name for field in spec.categories[:1]]
    return "".join(f" (to read categories as texts, set data.kinds.{name}=text)" for name in names)


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


class CaptionEmbedding(nn.Module):
    """What a text says, read by a small transformer: [B, T] tokens -> [B, D], a linear layer of the tokens' mean.

    A row of padding alone is no caption, for which there is one vector.

    Args:
        field: the text column.
        width: D.
    """

    places: Tensor

    def __init__(self, field: Field, width: int) -> None:
        super().__init__()
        self.pad = field.pad
        self.vectors = nn.Embedding(field.vocabulary, CAPTION_WIDTH)
        self.register_buffer("places", places(field.shape[0], CAPTION_WIDTH), persistent=False)  # [T, E]
        self.blocks = nn.ModuleList(
            EncoderBlock(CAPTION_WIDTH, CAPTION_HEADS, 4 * CAPTION_WIDTH) for _ in range(CAPTION_DEPTH)
        )
        self.norm, self.leave = nn.LayerNorm(CAPTION_WIDTH), nn.Linear(CAPTION_WIDTH, width)
        self.none = nn.Parameter(torch.randn(width) * 0.02)
        nn.init.normal_(self.vectors.weight)

    def forward(self, tokens: Tensor | None, rows: int) -> Tensor:
        """Return the captions' vectors; without captions, `rows` times that of none."""
        if tokens is None:
            return self.none.expand(rows, -1)
        real = tokens != self.pad  # [B, T]
        told = real.any(1, keepdim=True)
        seen = real | ~told  # a row without tokens sees its padding: no softmax over nothing
        x, packing = self.vectors(tokens) + self.places, Packing.of(seen)  # [B, T, E]
        visible = seen[:, None, None, :]
        if packing is not None:
            x = packing.pack(x)
        for block in self.blocks:
            x = block(x, visible, packing=packing)
        if packing is not None:
            x = packing.pad(x)
        share = seen / seen.sum(1, keepdim=True)  # [B, T]
        said = self.leave(self.norm(torch.einsum("bt,bte->be", share.to(x.dtype), x)))
        return torch.where(told, said, self.none.to(said.dtype))
