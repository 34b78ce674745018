"""Weights in half as many bytes while texts are written, and the full ones wherever half could decide otherwise.

On a processor a new token costs the time that it takes to read all weights from memory. In half precision (11 bits)
they are half as many bytes; sums and activations stay in single precision. What a token's scores change by is about a
thousandth of their spread, so that the most probable token is the same nearly always. What is left is guarded by this:

    where the two best tokens of a text are closer than half precision could have moved them, what was read of that
    text with halved weights so far is read again with the full ones, and those decide

How far halving moves scores is measured on the last tokens before it begins, and taken `SAFETY` times: a margin found
by trial and not a bound, so that equal tokens are what is expected and tested rather than what is proven.

    Halves       a network's linear layers with packed weights, to be put in place and taken out again
    Checked      a pen that writes with halves, and greedily what the full weights would
    lightened    a pen -> the same with halves, where they pay

The reading again is what is called verifying in Leviathan, Kalman, Matias, Fast Inference from Transformers via
Speculative Decoding, 2023; here it is done where it can matter, rather than every few tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.generate.pens import Continuing
from fathom.generate.settings import Settings
from fathom.layers.cache import Cache

# Times the largest change of any token's score that was seen, within which the full weights decide. The best tokens'
# distance changes by less: of SmolLM2-135M by 0.002 in the median and 0.01 at most, where scores spread by 3.6.
SAFETY = 1.5
WORTH = 4_000_000  # weights from which packing pays
PATIENCE = 32  # tokens that are written without halves before they are made: what that costs, in tokens
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
        linear = [module for module in model.modules() if type(module) is nn.Linear]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing itself knows one thread only
            packed = pool.map(lambda module: _packed(module.weight, module.bias), linear)
            self.forwards += [(module, partial(_multiplied, each)) for module, each in zip(linear, packed, strict=True)]
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
    if len(pen.tokens) > MOST_ROWS or not isinstance(pen.cache, Cache) or not _suits(pen.model):
        return pen
    return Checked(pen, settings.temperature == 0)


def halves(model: Any) -> Halves | None:
    """Return a network's halves, kept until its weights change; None where they cannot be or would not pay."""
    if not _suits(model):
        return None
    kept = _known(model)
    if kept is None and all(max(map(abs, w.detach().aminmax())) <= LARGEST for w in _matrices(model)):
        kept = _kept[model] = Halves(model)
    return kept


class Checked:
    """A pen that writes with halves.

    Packing takes as long as writing some tokens, and how many will be written is known to nobody: so halves that are
    not there yet are made once so many have been written without them, and cost at most twice what was needed.

    Args:
        pen: writes with the full weights.
        greedy: whether the most probable tokens will be taken, which the full weights then have the last word on.
            Tokens that are drawn are drawn by the halves' probabilities, the first ones by the full weights' whether
            there are halves or not, so that the same is drawn again.
    """

    def __init__(self, pen: Continuing, greedy: bool) -> None:
        self.pen, self.model, self.greedy = pen, pen.model, greedy
        self.packed = _known(pen.model) if greedy else None
        self.patience = PATIENCE
        self.unread: list[Tensor] = []  # tokens [B] that the cache holds as halves made them, of one row or more
        self.since = torch.zeros(len(pen.tokens), dtype=torch.long)  # [B], from which of them on those of each row are
        self.margin = 0.0

    def first(self) -> Tensor:
        scores = self.pen.first()
        if self.packed is not None:
            self._measure(self.pen.tokens[:, -1], scores)
        return scores

    def next(self, tokens: Tensor) -> Tensor:
        if self.packed is None:
            self.patience -= 1
            if self.patience < 0:
                self.packed = halves(self.model)
            if self.packed is None or self.greedy:
                scores = self.pen.next(tokens)
                if self.packed is not None:
                    self._measure(tokens, scores)
                return scores
        self.unread.append(tokens)
        scores = self._halved(tokens)
        if not self.greedy:
            return scores
        best = scores.topk(2, dim=-1).values
        close = (best[:, 0] - best[:, 1] <= self.margin).nonzero().squeeze(1)
        return self._reread(close, scores) if len(close) else scores

    def reorder(self, rows: Tensor) -> None:
        self.pen.reorder(rows)
        self.unread = [tokens.index_select(0, rows) for tokens in self.unread]
        self.since = self.since.index_select(0, rows)

    def _measure(self, tokens: Tensor, scores: Tensor) -> None:
        """Read the last tokens [B] again, whose scores the full weights gave, and note what halves change."""
        if self.greedy:
            self.pen.cache.length -= 1
            self.margin = SAFETY * float((self._halved(tokens) - scores).abs().max())
            self.unread.append(tokens)

    def _halved(self, tokens: Tensor) -> Tensor:
        assert self.packed is not None
        with self.packed.in_place():
            return self.packed.logits(self.model.extend(tokens[:, None], self.pen.cache)[:, -1])

    def _reread(self, rows: Tensor, scores: Tensor) -> Tensor:
        """Let the full weights read what halves have read of some rows, and return the scores with theirs in place."""
        first = int(self.since[rows].min())
        tokens = torch.stack(self.unread[first:], 1)[rows]
        part = self.pen.cache.part(rows, self.pen.cache.length - tokens.shape[1])
        found = self.model.logits(self.model.extend(tokens, part)[:, -1])
        self.pen.cache.take(rows, part, tokens.shape[1])
        self.since[rows] = len(self.unread)
        return scores.index_copy(0, rows, found)


def _suits(model: Any) -> bool:
    """Return whether a network is of a kind whose halves there can be, and so large that they pay."""
    weights = _matrices(model)
    alike = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    known = "fbgemm" in torch.backends.quantized.supported_engines and hasattr(model, "width")
    return alike and known and sum(w.numel() for w in weights) >= WORTH


def _matrices(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.dim() > 1]


def _known(model: Any) -> Halves | None:
    """Return the halves that were made of a network, unless its weights have changed since."""
    kept = _kept.get(model)
    return kept if kept is not None and kept.versions == _versions(model) else None


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
