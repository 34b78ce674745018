"""What it costs to write down a batch, given what a decoder makes of its code: −log p(x | code), in nats.

    numbers      a Gaussian around each given value
    images       the same of each pixel, or each pixel's brightness as a Bernoulli probability
    categories   the class drawn from the given logits
    texts        the same of each token but padding

Where the Gaussian's spread is not learned it is one and its constant is left out: what remains is half the squared
error. A learned one is shared by all pixels of an image column, and each number column has its own (Rybkin, Daniilidis,
Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.types import Batch, DataSpec, Field
from fathom.layers.image import Normalize
from fathom.layers.precision import wide


class Likelihood(nn.Module):
    """The cost of each row, summed over all of its columns.

    Args:
        spec: whose inputs are written down.
        pixels: what a pixel is. For "bernoulli" the decoder's values are taken as logits of a brightness of 0 … 1.
        learned: whether Gaussians have a spread of their own.
    """

    def __init__(self, spec: DataSpec, pixels: Literal["gaussian", "bernoulli"], learned: bool) -> None:
        super().__init__()
        self.pixels, self.images, self.texts = pixels, spec.images, {f.key: f.pad for f in spec.texts}
        self.pictures = nn.ModuleList(Normalize(field) for field in spec.images)
        sizes = {"number": len(spec.numbers)} if spec.numbers else {}
        if pixels == "gaussian":
            sizes |= {field.key: 1 for field in spec.images}
        self.spreads = nn.ParameterDict(
            {_name(key): nn.Parameter(torch.zeros(size)) for key, size in sizes.items()} if learned else {}
        )  # log of the standard deviation, on the normalised scale

    def forward(self, given: Batch, wanted: Batch, batch: Batch) -> Tensor:
        """Return each row's cost [B], at least in float32.

        Args:
            given, wanted: what a model's `decode` and `wanted` return.
            batch: the rows themselves.
        """
        costs = []
        for key, value in given.items():
            value = wide(value)
            if key in self.texts:
                costs.append(_of_classes(value, wanted[key], self.texts[key]))
            elif key == "category":
                costs.append(_of_classes(value, wanted[key], None))
            elif self.pixels == "bernoulli" and key != "number":
                light = (batch[key].to(value.dtype) / 255).clamp(0, 1)
                costs.append(F.binary_cross_entropy_with_logits(value, light, reduction="none").flatten(1).sum(1))
            else:
                costs.append(self._of_numbers(key, value, wanted[key]))
        return torch.stack(costs).sum(0)

    def pictures_of(self, given: Batch) -> dict[str, Tensor]:
        """Return what the decoder's images look like: [B, C, H, W] in 0 … 1, by the names of their columns."""
        found = {}
        for field, normalize in zip(self.images, self.pictures, strict=True):
            value = given[field.key]
            found[field.name] = value.sigmoid() if self.pixels == "bernoulli" else normalize.picture(value)  # type: ignore[operator]
        return found

    def values(self, batch: Batch) -> Tensor | float:
        """Return how many numbers, pixels, classes and tokens the rows have together, each row at least one.

        It adds up over micro-batches. Where there are texts, whose rows differ, it is a tensor that nobody waits for.
        """
        rows, each = 0, 0
        for key in ("number", "category", *(field.key for field in self.images)):
            if key in batch:
                rows, each = len(batch[key]), each + batch[key][0].numel()
        if not self.texts:
            return float(rows * max(1, each))
        tokens = torch.stack([(batch[key] != pad).sum(1) for key, pad in self.texts.items()]).sum(0)  # [B]
        return (tokens + each).clamp_min(1).sum()

    def _of_numbers(self, key: str, given: Tensor, wanted: Tensor) -> Tensor:
        error = given - wanted.to(given.dtype)
        if _name(key) not in self.spreads:
            return 0.5 * error.square().flatten(1).sum(1)
        spread = self.spreads[_name(key)].to(given.dtype)
        each = 0.5 * (error / spread.exp()).square() + spread + 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)


def _of_classes(logits: Tensor, wanted: Tensor, ignored: int | None) -> Tensor:
    """Return [B]: the cost of classes [B, C] whose logits are [B, C, K], but of those that are ignored."""
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten().long(), reduction="none").view(wanted.shape)
    return each.sum(1) if ignored is None else (each * (wanted != ignored)).sum(1)


def _name(key: str) -> str:
    """A key as the name of a parameter, which holds no dot."""
    return key.replace(".", "_")


def corrupted(batch: Batch, fields: tuple[Field, ...], share: float, how: Literal["erase", "blur"]) -> Batch:
    """Return the batch with its inputs damaged by chance.

    Args:
        fields: the input columns.
        share: of values that are erased (numbers and pixels to their mean, classes and tokens to the unknown one); of
            "blur", the standard deviation of the noise added to numbers and pixels, in units of theirs, and the share
            of classes and tokens erased.

    Source: Vincent, Larochelle, Lajoie, Bengio, Manzagol, Stacked Denoising Autoencoders, 2010.
    """
    found = dict(batch)
    for key, field in {field.key: field for field in fields}.items():
        value = batch[key]
        if field.kind in ("category", "text"):
            unknown = 0 if field.kind == "category" else max(0, field.special[1])
            gone = torch.rand(value.shape, device=value.device) < share
            gone &= value != field.pad if field.kind == "text" else True
            found[key] = value.masked_fill(gone, unknown)
            continue
        value = value if value.is_floating_point() else value.float()
        mean, std = _centre(field, value)
        if how == "blur":
            found[key] = value + share * std * torch.randn_like(value)
        else:
            found[key] = torch.where(torch.rand_like(value) < share, mean, value)
    return found


def _centre(field: Field, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the column's values as they stand in a batch; of numbers 0 and 1."""
    if field.kind != "image":
        return value.new_zeros(()), value.new_ones(())
    mean, std = (field.stats.mean, field.stats.std) if field.stats else ((127.5,), (127.5,))
    return value.new_tensor(mean).view(-1, 1, 1), value.new_tensor(std).view(-1, 1, 1)
