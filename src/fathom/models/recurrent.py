"""Recurrent networks: a sequence is read one step at a time, and what was read is carried along in a state.

    text [B, T]         ->  token vectors    [B, T, I]  ─┐
    image [B, C, H, W]  ->  its rows, H of C·W numbers  ─┴─  depth × cells  ->  [B, T, D]  ->  pooled  [B, D]

Three cells: `rnn` (Elman's, which forgets soon), `lstm` and `gru` (whose gates decide what to keep). Their equations
stand in `layers/recurrent.py`, to be read and, with `cells="readable"`, to be run; `cells="fast"` takes the same steps
on torch's kernels. With `bidirectional` a second cell of each layer reads from the end, and D is twice the width.

Several text columns are read as one sequence, one behind the other. Padding is not read: tokens are moved to the left
before, and back to their places after. A network that reads one text column forwards only is a language model as well,
whose cache is its states.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.image import Normalize
from fathom.layers.recurrent import AdditiveAttention, RecurrentStack, States, take_steps

REFERENCE = (
    "Elman, Finding Structure in Time, 1990; Hochreiter, Schmidhuber, Long Short-Term Memory, 1997; "
    "Gers, Schmidhuber, Cummins, Learning to Forget: Continual Prediction with LSTM, 2000; "
    "Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014; "
    "Bahdanau, Cho, Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015; "
    "Zaremba, Sutskever, Vinyals, Recurrent Neural Network Regularization, 2014"
)
PROVEN = "torch.nn.RNN, LSTM and GRU, weight for weight"
VECTOR_SPREAD = 0.1  # standard deviation of first token vectors: tied, they also read out, and scores begin small


@dataclass(frozen=True)
class Config:
    cell: Literal["rnn", "lstm", "gru"] = option(
        "lstm", "rnn: Elman's network; lstm: long short-term memory; gru: gated recurrent units"
    )
    width: int = option(128, "units of a layer, in each direction")
    depth: int = option(1, "layers")
    bidirectional: bool = option(False, "read backwards too: each step knows what follows, and D is twice the width")
    vector_size: int = option(0, "length of a token's vector; 0: the width")
    pooling: Literal["last", "mean", "attention"] = option(
        "last", "a sequence's vector: the state at its end, the mean of all, or their mean weighted by attention"
    )
    readout: Literal["auto", "tied", "own", "none"] = option(
        "auto",
        "of the next token: tied to the token vectors, by a matrix of its own, or none; auto: tied, where the network "
        "reads one text column, forwards only, and vectors are as long as states",
    )
    forget_bias: float = option(1.0, "at which an LSTM's forget gates begin; higher remembers longer")
    dropout: float = option(0.1, "share dropped of token vectors, between layers, and of what the last one gives out")
    cells: Literal["fast", "readable"] = option("fast", "fast: torch's kernels; readable: the equations, step by step")


presets: dict[str, Config] = {
    "rnn": Config(cell="rnn"),
    "lstm": Config(cell="lstm"),
    "gru": Config(cell="gru"),
    "bilstm": Config(cell="lstm", bidirectional=True),
    "bigru": Config(cell="gru", bidirectional=True),
    "lstm_attention": Config(cell="lstm", bidirectional=True, pooling="attention"),
    "lstm_medium": Config(width=650, depth=2, readout="own", dropout=0.5, forget_bias=0.0),
    "lstm_large": Config(width=1500, depth=2, readout="own", dropout=0.65, forget_bias=0.0),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    kinds = [column.kind for column in spec.inputs]
    if kinds and (kinds == ["image"] or set(kinds) == {"text"}):
        return None
    given = ", ".join(f"'{column.name}' ({column.kind})" for column in spec.inputs[:4]) or "none"
    return f"it takes text columns, or one image column; the input columns are {given}"


def example() -> DataSpec:
    """Return short texts of two classes."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(8,), vocabulary=30),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return the Penn Treebank as Zaremba et al. cut it: 10,000 words, 35 steps."""
    return DataSpec(inputs=(Field(name="text", kind="text", shape=(35,), vocabulary=10_000),))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data.

    Gradients of long sequences now and then explode; clipping their length keeps the step small (Pascanu, Mikolov,
    Bengio, On the Difficulty of Training Recurrent Neural Networks, 2013).
    """
    large = spec.rows >= 10_000
    rate = 1e-3 if config.cell == "rnn" or config.width > 256 else 2e-3
    epochs = (10 if large else 20) if spec.texts else (8 if large else 30)
    return {"engine": {"learning_rate": rate, "epochs": epochs, "batch_size": 128 if large else 32, "clip": 1.0}}


def build(config: Config, spec: DataSpec) -> Recurrent:
    """Return the network for such columns: a language model where it reads one text column, forwards only.

    Raises:
        ConfigError: the columns are of another kind, an option is out of range, or a read-out is asked for where there
            can be none.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'recurrent' cannot be used: {why}.")
    at_least(config, {"width": 1, "depth": 1, "vector_size": 0})
    below_one(config, "dropout")
    readout = _readout(config, spec)
    return Recurrent(config, spec) if readout == "none" else RecurrentLanguageModel(config, spec, readout == "tied")


class Recurrent(nn.Module):
    """The network; `width` is D."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.keys = tuple(column.key for column in spec.inputs)
        self.pads = tuple(column.pad for column in spec.texts)
        if spec.texts:
            inputs = config.vector_size or config.width
            sizes = [column.vocabulary for column in spec.texts]
            self.offsets = tuple(accumulate(sizes[:-1], initial=0))  # where a column's vectors begin in the one table
            self.vectors = nn.Embedding(sum(sizes), inputs)
            nn.init.normal_(self.vectors.weight, std=VECTOR_SPREAD)
        else:
            channels, _, pixels = spec.inputs[0].shape
            inputs = channels * pixels
            self.normalize = Normalize(spec.inputs[0])
        self.dropout = nn.Dropout(config.dropout)
        self.stack = RecurrentStack(
            config.cell,
            inputs,
            config.width,
            config.depth,
            config.bidirectional,
            config.dropout,
            config.forget_bias,
            config.cells == "fast",
        )
        self.width = self.stack.width
        self.attention = AdditiveAttention(self.width, config.width) if config.pooling == "attention" else None

    def forward(self, batch: Batch) -> Features:
        if not self.pads:
            y, last = self.stack(self.rows(batch[self.keys[0]]))  # [B, H, D], [B, D]
            y, last = self.dropout(y), self.dropout(last)
            return Features(pooled=self.pool(y, last), tokens=y)
        tokens, real = self.tokens(batch)
        places, lengths = to_the_left(real), real.sum(1)
        x = self.vectors(torch.zeros_like(tokens).scatter(1, places, tokens))  # [B, T, I], real tokens on the left
        y, last = self.stack(self.dropout(x), lengths)  # [B, T, D], [B, D]
        y, last = self.dropout(y), self.dropout(last)
        return Features(pooled=self.pool(y, last, lengths), tokens=take_steps(y, places), mask=real)

    def tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the tokens of all columns, by their places in the one table, and which are real: [B, T] each."""
        columns = [batch[key] for key in self.keys]
        real = [tokens != pad for tokens, pad in zip(columns, self.pads, strict=True)]
        placed = [tokens + offset for tokens, offset in zip(columns, self.offsets, strict=True)]
        return torch.cat(placed, dim=1), torch.cat(real, dim=1)

    def rows(self, image: Tensor) -> Tensor:
        """Return an image's rows from top to bottom: [B, C, H, W] -> [B, H, C·W]."""
        return self.normalize(image).transpose(1, 2).flatten(2)

    def pool(self, y: Tensor, last: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return one vector [B, D] of each sequence.

        Args:
            y: [B, T, D], of whose steps the first `lengths` [B] are real (None: all).
            last: [B, D], the states in which they end.
        """
        if self.config.pooling == "last":
            return last
        real = None if lengths is None else torch.arange(y.shape[1], device=y.device) < lengths[:, None]  # [B, T]
        if self.attention is not None:
            return self.attention(last, y, real)
        if real is None or lengths is None:
            return y.mean(1)
        share = real / lengths.clamp_min(1)[:, None]  # [B, T]
        return (share.to(y.dtype)[:, None] @ y).squeeze(1)


class RecurrentLanguageModel(Recurrent):
    """A network that reads one text column forwards, and so can tell the next token from its states.

    Args:
        tied: whether the token vectors that are read in are also what states are compared with.
    """

    context = sys.maxsize  # a state has no last place

    def __init__(self, config: Config, spec: DataSpec, tied: bool) -> None:
        super().__init__(config, spec)
        self.vocabulary = spec.texts[0].vocabulary
        self.readout = None if tied else nn.Linear(self.width, self.vocabulary)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""
        return F.linear(hidden, self.vectors.weight) if self.readout is None else self.readout(hidden)

    def cache(self, rows: int, length: int) -> States:
        """Return room for what is kept of `rows` sequences: their states, however long they are."""
        return States(self.config.depth)

    def extend(self, tokens: Tensor, cache: States, mask: Tensor | None = None) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds, and put them there.

        Args:
            mask: [B, t], false at padding, which leaves a row's state as it was.
        """
        return self.dropout(self.stack.extend(self.dropout(self.vectors(tokens)), cache, mask))


def to_the_left(real: Tensor) -> Tensor:
    """Return where each token goes so that real ones come first, all in their order: [B, T] bool -> [B, T]."""
    behind = real.sum(1, keepdim=True) + (~real).cumsum(1)
    return torch.where(real, real.cumsum(1), behind) - 1


def _readout(config: Config, spec: DataSpec) -> Literal["tied", "own", "none"]:
    """Return how the next token is read out of the states."""
    fits = config.vector_size in (0, config.width)
    if len(spec.texts) != 1:
        why = "a language model reads one text column"
    elif config.bidirectional:
        why = "a network that reads backwards has seen the next token: set model.bidirectional=false"
    elif config.readout == "tied" and not fits:
        why = (
            f"token vectors of {config.vector_size} numbers cannot be compared with states of {config.width}: set "
            f"model.vector_size={config.width} or model.readout=own"
        )
    elif config.readout == "auto":
        return "tied" if fits else "none"
    else:
        return config.readout
    if config.readout in ("auto", "none"):
        return "none"
    raise ConfigError(f"Option 'model.readout' was given '{config.readout}', but {why}.")
