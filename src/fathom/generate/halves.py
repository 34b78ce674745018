"""Weights in half as many bytes while texts are written, and the full ones wherever half could decide otherwise.

On a processor a new token costs the time that it takes to read all weights from memory. In half precision (11 bits)
they are half as many bytes; sums and activations stay in single precision. What a token's scores change by is about a
thousandth of their spread, so that the most probable token is the same nearly always. What is left is guarded by this:

    where the two best tokens are closer than half precision could have moved them, the tokens that were read with
    halved weights so far are read again with the full ones, and those decide

How far halving moves scores is measured on the prompts' last tokens, and taken `SAFETY` times: a margin found by trial
and not a bound, so that equal tokens are what is expected and tested rather than what is proven.

    Halves       a network's linear layers with packed weights, to be put in place and taken out again
    Checked      a pen that writes with halves, and greedily what the full weights would
    lightened    a pen -> the same with halves, where they pay

The reading again is what is called verifying in Leviathan, Kalman, Matias, Fast Inference from Transformers via
Speculative Decoding, 2023; here it is done where it can matter, rather than every few tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.generate.pens import Continuing
from fathom.generate.settings import Settings

# Times the largest change of any token's score that was seen, within which the full weights decide. The best tokens'
# distance changes by less: of SmolLM2-135M by 0.002 in the median and 0.01 at most, where scores spread by 3.6.
SAFETY = 1.5
WORTH = 4_000_000  # weights from which packing pays
FEW = 8  # tokens below which packing does not
MOST_ROWS = 64  # texts at once beyond which reading weights is not what costs
LARGEST = 65_504.0  # in half precision
_kept: weakref.WeakKeyDictionary[nn.Module, Halves] = weakref.WeakKeyDictionary()


class Halves:
    """A network's linear layers, and its read-out, with weights in half precision.

    Args:
        model: a language model on the CPU.
    """

    def __init__(self, model: Any) -> None:
        self.forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        for module in model.modules():
            if type(module) is nn.Linear:
                self.forwards.append((module, partial(_multiplied, _packed(module.weight, module.bias))))
        readout = _readout(model)  # of its own where it is no linear layer but the token vectors
        self.logits = model.logits if readout is None else partial(_multiplied, _packed(readout, None))
        self.versions = _versions(model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this is open, the network's linear layers use these weights."""
        for module, forward in self.forwards:
            module.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module, _ in self.forwards:
                del module.forward


def lightened(pen: Continuing, settings: Settings) -> Continuing | Checked:
    """Return a pen that writes the same with half the bytes, or the one given where that cannot be or would not pay."""
    if settings.tokens < FEW or len(pen.tokens) > MOST_ROWS or not isinstance(getattr(pen.cache, "length", None), int):
        return pen
    packed = halves(pen.model)
    return pen if packed is None else Checked(pen, packed, settings.temperature == 0)


def halves(model: Any) -> Halves | None:
    """Return a network's halves, kept until its weights change; None where they cannot be or would not pay."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    if any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
        return None
    if sum(w.numel() for w in weights) < WORTH:
        return None
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(model, "width"):
        return None
    if any(float(w.detach().abs().max()) > LARGEST for w in weights):
        return None
    kept = _kept.get(model)
    if kept is None or kept.versions != _versions(model):
        kept = _kept[model] = Halves(model)
    return kept


class Checked:
    """A pen that writes with halves.

    Args:
        pen: writes with the full weights.
        packed: the same network's halves.
        greedy: whether the most probable tokens will be taken, which the full weights then have the last word on.
            Tokens that are drawn are drawn by the halves' probabilities.
    """

    def __init__(self, pen: Continuing, packed: Halves, greedy: bool) -> None:
        self.pen, self.packed, self.model, self.greedy = pen, packed, pen.model, greedy
        self.unread: list[Tensor] = []  # tokens [B] that the cache holds as halves made them
        self.margin = 0.0

    def first(self) -> Tensor:
        """Read the prompts with the full weights, and measure on the last tokens what halves change."""
        scores, last = self.pen.first(), self.pen.tokens[:, -1:]
        if self.greedy:
            self.pen.cache.length -= 1
            self.margin = SAFETY * float((self._halved(last) - scores).abs().max())
            self.pen.cache.length -= 1
            self._full(last)
        return scores

    def next(self, tokens: Tensor) -> Tensor:
        self.unread.append(tokens)
        scores = self._halved(tokens[:, None])
        if not self.greedy:
            return scores
        best = scores.topk(2, dim=-1).values
        if bool((best[:, 0] - best[:, 1] > self.margin).all()):
            return scores
        unread, self.unread = torch.stack(self.unread, 1), []
        self.pen.cache.length -= unread.shape[1]
        return self._full(unread)

    def reorder(self, rows: Tensor) -> None:
        self.pen.reorder(rows)
        self.unread = [tokens.index_select(0, rows) for tokens in self.unread]

    def _halved(self, tokens: Tensor) -> Tensor:
        with self.packed.in_place():
            return self.packed.logits(self.model.extend(tokens, self.pen.cache)[:, -1])

    def _full(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model.extend(tokens, self.pen.cache)[:, -1])


def _readout(model: Any) -> Tensor | None:
    """Return the tensor [V, D] whose product with hidden states the scores are, if there is one."""
    hidden = torch.linspace(-1, 1, model.width)[None]
    scores = model.logits(hidden)
    for weight in model.parameters():
        if weight.shape == (model.vocabulary, model.width) and torch.equal(F.linear(hidden, weight), scores):
            return weight
    return None


def _packed(weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight.detach(), None if bias is None else bias.detach())


def _multiplied(packed: Any, x: Tensor) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16(x, packed)


def _versions(model: nn.Module) -> tuple[int, ...]:
    """Return what changes when a weight is changed in place."""
    return tuple(p._version for p in model.parameters())
