"""Parts of autoencoders, one for each kind of column: from a batch to a vector, and from a vector back to the batch.

    TableCoder   numbers and categories   layers that narrow, and the same widths back
    DenseCoder   an image                 the same, on all of its pixels at once
    ConvCoder    an image                 convolutions that halve, and transposed ones that double
    TextCoder    a text                   a GRU that reads, and a GRU that writes all tokens from the code alone

Each has `width` H, `encode` (batch -> [B, H]), `decode` ([B, H] -> a part of the batch, as models say it) and `wanted`
(what it should give).

Source: Hinton, Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006; Cho, van Merriënboer,
Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, Learning Phrase Representations using RNN Encoder–Decoder, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fathom.core.types import Batch, Field
from fathom.layers.embed import CategoryEmbedding
from fathom.layers.image import Normalize
from fathom.layers.recurrent import GRUCell, RecurrentStack, unroll

CATEGORY_SIZE = 8  # length of a category's vector


class TableCoder(nn.Module):
    """All numbers and categories of a row.

    A category's logits are [B, C, K] with K the most classes of any column; those that a column lacks are −∞.
    """

    lacking: Tensor

    def __init__(self, numbers: Sequence[Field], categories: Sequence[Field], hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [len(column.classes) for column in categories]
        self.numbers, self.columns, self.most = len(numbers), len(sizes), max(sizes, default=0)
        self.category = CategoryEmbedding(sizes, CATEGORY_SIZE) if sizes else None
        lacking = torch.arange(self.most) >= torch.tensor(sizes, dtype=torch.long)[:, None]  # [C, K]
        self.register_buffer("lacking", lacking, persistent=False)
        self.width = hidden[-1]
        self.narrow = layers([self.numbers + CATEGORY_SIZE * self.columns, *hidden])
        self.widen = layers([*reversed(hidden), self.numbers + self.columns * self.most], last=False)

    def encode(self, batch: Batch) -> Tensor:
        parts = [batch["number"]] if self.numbers else []
        if self.category is not None:
            parts.append(self.category(batch["category"]).flatten(1))
        return self.narrow(torch.cat(parts, dim=1))

    def decode(self, hidden: Tensor) -> Batch:
        values = self.widen(hidden)
        found = {"number": values[:, : self.numbers]} if self.numbers else {}
        if self.columns:
            logits = values[:, self.numbers :].unflatten(1, (self.columns, self.most))
            found["category"] = logits.masked_fill(self.lacking, -torch.inf)
        return found

    def wanted(self, batch: Batch) -> Batch:
        return {key: batch[key] for key, there in (("number", self.numbers), ("category", self.columns)) if there}


class DenseCoder(nn.Module):
    """An image, all pixels at once."""

    def __init__(self, field: Field, hidden: Sequence[int]) -> None:
        super().__init__()
        self.key, self.shape, self.width = field.key, field.shape, hidden[-1]
        self.normalize = Normalize(field)
        pixels = field.shape[0] * field.shape[1] * field.shape[2]
        self.narrow, self.widen = layers([pixels, *hidden]), layers([*reversed(hidden), pixels], last=False)

    def encode(self, batch: Batch) -> Tensor:
        return self.narrow(self.normalize(batch[self.key]).flatten(1))

    def decode(self, hidden: Tensor) -> Batch:
        return {self.key: self.widen(hidden).unflatten(1, self.shape)}

    def wanted(self, batch: Batch) -> Batch:
        return {self.key: self.normalize(batch[self.key])}


class ConvCoder(nn.Module):
    """An image, halved by each convolution and doubled by each transposed one; what is too much is cropped.

    Weights begin as He et al., Delving Deep into Rectifiers, 2015, have it.

    Args:
        widths: channels after each halving.
    """

    def __init__(self, field: Field, widths: Sequence[int]) -> None:
        super().__init__()
        self.key, self.sides = field.key, field.shape[1:]
        self.normalize = Normalize(field)
        self.last = tuple(-(-side // 2 ** len(widths)) for side in self.sides)
        self.width = widths[-1] * self.last[0] * self.last[1]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for inputs, outputs in zip((field.shape[0], *widths), widths, strict=False):
            down += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
            back = nn.ConvTranspose2d(outputs, inputs, 4, stride=2, padding=1)
            up = [back, nn.ReLU(inplace=True), *up]
        self.narrow, self.widen = nn.Sequential(*down), nn.Sequential(*up[:-1])
        for layer in (*down, *up):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif isinstance(layer, nn.ConvTranspose2d):  # of its 4×4 weights, 2×2 meet in each pixel
                nn.init.normal_(layer.weight, std=(2 / (4 * layer.in_channels)) ** 0.5)
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def encode(self, batch: Batch) -> Tensor:
        return self.narrow(self.normalize(batch[self.key])).flatten(1)

    def decode(self, hidden: Tensor) -> Batch:
        image = self.widen(hidden.unflatten(1, (-1, *self.last)))
        return {self.key: image[:, :, : self.sides[0], : self.sides[1]]}

    def wanted(self, batch: Batch) -> Batch:
        return {self.key: self.normalize(batch[self.key])}


class TextCoder(nn.Module):
    """A text [B, T]: read in both directions, and written as logits [B, T, V].

    Every step of the writer gets the code and a vector for its place, and none of the tokens before it: what is written
    hangs on the code alone, which so cannot be left unused, as it can where the writer sees its past (Bowman, Vilnis,
    Vinyals, Dai, Jozefowicz, Bengio, Generating Sentences from a Continuous Space, 2016, section 3).
    """

    def __init__(self, field: Field, size: int) -> None:
        super().__init__()
        self.key, self.pad, self.width = field.key, field.pad, 2 * size
        self.vectors = nn.Embedding(field.vocabulary, size)
        self.read = RecurrentStack("gru", size, size, both=True)
        self.told = nn.Linear(self.width, size)
        self.places = nn.Parameter(torch.randn(field.shape[0], size))
        self.write = GRUCell(size, self.width)
        self.leave = nn.Linear(self.width, field.vocabulary)

    def encode(self, batch: Batch) -> Tensor:
        tokens = batch[self.key]
        return self.read(self.vectors(tokens), (tokens != self.pad).sum(1))[1]

    def decode(self, hidden: Tensor) -> Batch:
        steps = self.told(hidden)[:, None] + self.places  # [B, T, E]
        states, _ = unroll(self.write, steps, (hidden.tanh(),))  # [B, T, 2·E]
        return {self.key: self.leave(states)}

    def wanted(self, batch: Batch) -> Batch:
        return {self.key: batch[self.key]}


def layers(sizes: Sequence[int], last: bool = True) -> nn.Sequential:
    """Return linear layers of such sizes with ReLUs between them, and one behind the last where wished."""
    found: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        found += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*found if last else found[:-1])
