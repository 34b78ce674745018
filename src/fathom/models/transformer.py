"""The Transformer: every token looks at every other, layer upon layer; a decoder looks at what was read, too.

    text [B, S]     ->  token + column (+ position) vectors  ->  depth × encoder block  ->  [B, S, D]
                    ->  pooled over real tokens  ->  [B, D]
    what is written so far [B, T]  ->  token (+ position) vectors
                    ->  depth × (attention to the past, attention to what was read, network)  ->  [B, T, D]
                    ->  product with the token vectors  ->  scores of the next token [B, T, V]

Where no target is a text there is the encoder alone. Several text columns are read as one sequence, one behind the
other, so that each can look at the others; each has its own vocabulary, its own positions, and a vector that says which
column a token stands in.

`transformer_2017` is that of the paper: norms after each part, sines and cosines for positions, ReLU, one table for
what is read, written and scored. `transformer` itself takes over what was found later: norms before each part (and one
behind the last), and positions by rotation. `transformer_translator` is one for some thousand pairs of texts that share
their tokens; what it reads and what it writes carry their places with them, by which the one soon finds the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.conventions import moved
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.attention import EncoderBlock, Packing, rotary_angles, sinusoids
from fathom.layers.reading import ReadingBlock
from fathom.layers.written import Written, visible_keys

REFERENCE = (
    "Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, Attention Is All You Need, 2017; "
    "Devlin, Chang, Lee, Toutanova, BERT: Pre-training of Deep Bidirectional Transformers, 2018"
)
PROVEN = "torch.nn.Transformer, weight for weight"


@dataclass(frozen=True)
class Config:
    width: int = option(128, "length of a token's vector")
    depth: int = option(2, "encoder blocks")
    num_heads: int = option(4, "heads of each attention; they divide the width")
    expansion: int = option(4, "units of a block's two-layer network, as a multiple of the width")
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = option("rotary", "how tokens know where they stand")
    pooling: Literal["mean", "first"] = option("mean", "a text's vector: the mean of its tokens', or the first one's")
    dropout: float = option(0.2, "share of units and attention weights dropped in training")
    token_dropout: float = option(0.1, "share of tokens blanked in training")
    norm: Literal["before", "after"] = option("before", "whether norms stand before each part or after it")
    activation: Literal["gelu", "relu"] = option("gelu", "between the layers of a block's network")
    shared: bool = option(False, "one table of vectors for what is read and what is written, of one vocabulary")


presets: dict[str, Config] = {
    "transformer_small": Config(width=256, depth=4, num_heads=4, dropout=0.1),
    "transformer_base": Config(width=768, depth=12, num_heads=12, dropout=0.1),
    "transformer_translator": Config(192, 3, 6, positions="sinusoidal", shared=True),
    "transformer_2017": Config(512, 6, 8, 4, "sinusoidal", "mean", 0.1, 0.0, "after", "relu", shared=True),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    return spec.unless_all("text")


def example() -> DataSpec:
    """Return two short text columns."""
    return DataSpec(
        inputs=(
            Field(name="title", kind="text", shape=(6,), vocabulary=20),
            Field(name="body", kind="text", shape=(12,), vocabulary=30),
        ),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def paper(preset: str = "transformer_2017") -> DataSpec:
    """Return the paper's pairs of sentences, of one vocabulary of 37,000; for other presets, texts to classify."""
    if preset != "transformer_2017":
        return example()
    german = Field(name="german", kind="text", shape=(512,), vocabulary=37_000)
    english = Field(name="english", kind="text", shape=(512,), vocabulary=37_000)
    return DataSpec(inputs=(english,), targets=(german,))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data.

    Narrow networks that write are moved by Muon: a token of others cost 4.47 nats after one pass over 3,600 pairs of
    verses, after AdamW's 5.02. With positions by waves it cost 3.95 after four passes over 4,000, and at twice Muon's
    usual rate 3.72; by rotation 4.18.
    """
    writes = any(field.kind == "text" for field in spec.targets)
    how = moved(writes and config.width <= 256, 1e-3, muon=0.04)
    batch = 128 if spec.rows >= 10_000 else 32
    return {"engine": {**how, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.05}}


def build(config: Config, spec: DataSpec) -> Transformer:
    """Return the network for such columns.

    Raises:
        ConfigError: the columns are of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'transformer' cannot be used: {why}.")
    at_least(config, {"width": 1, "depth": 1, "num_heads": 1, "expansion": 1})
    below_one(config, "dropout", "token_dropout")
    if config.width % config.num_heads:
        raise ConfigError(
            f"Option 'model.num_heads' was given {config.num_heads}, which does not divide the width of "
            f"{config.width}; set model.width={_next_multiple(config.width, config.num_heads)} or other heads."
        )
    if config.positions == "rotary" and config.width // config.num_heads % 2:
        raise ConfigError(
            f"Option 'model.width' was given {config.width}; rotary positions need heads of even size, and "
            f"{config.num_heads} heads have {config.width // config.num_heads} each: set "
            f"model.width={_next_multiple(config.width, 2 * config.num_heads)} or model.positions=learned."
        )
    if config.positions == "sinusoidal" and config.width % 2:
        raise ConfigError(
            f"Option 'model.width' was given {config.width}; sines and cosines come in pairs: set "
            f"model.width={config.width + 1} or model.positions=learned."
        )
    written = _written(spec)
    if written is None:
        return Transformer(config, spec)
    if config.shared and written.vocabulary != spec.inputs[0].vocabulary:
        raise ConfigError(
            f"Option 'model.shared' is on, but column '{spec.inputs[0].name}' has {spec.inputs[0].vocabulary} tokens "
            f"and target '{written.name}' {written.vocabulary}: set model.shared=false."
        )
    return EncoderDecoder(config, spec, written)


class Transformer(nn.Module):
    """The network; `width` is D."""

    segment: Tensor
    turns: Tensor | None
    waves: Tensor | None

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.keys, self.pads = tuple(c.key for c in spec.texts), tuple(c.pad for c in spec.texts)
        lengths = [column.shape[0] for column in spec.texts]
        self.vectors = nn.ModuleList(nn.Embedding(column.vocabulary, config.width) for column in spec.texts)
        segment = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])
        self.register_buffer("segment", segment, persistent=False)  # [T]: which column a place belongs to
        self.columns = nn.Parameter(torch.zeros(len(lengths), config.width)) if len(lengths) > 1 else None
        self.places = nn.Parameter(torch.zeros(sum(lengths), config.width)) if config.positions == "learned" else None
        angles = torch.cat([rotary_angles(length, config.width // config.num_heads) for length in lengths])
        self.register_buffer("turns", angles if config.positions == "rotary" else None, persistent=False)
        waves = torch.cat([sinusoids(length, config.width) for length in lengths]) if _waves(config) else None
        self.register_buffer("waves", waves, persistent=False)  # [T, D]
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(*_sizes(config)) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width) if config.norm == "before" else nn.Identity()
        self._start()

    def _start(self) -> None:
        """Draw small first weights, and smaller ones where a block adds to the stream, so that depth starts tame."""
        for name, parameter in self.named_parameters():
            if _waves(self.config) and "vectors" in name:  # beside waves of size one, after their growth by √D
                nn.init.normal_(parameter, std=self.width**-0.5)
            elif parameter.dim() > 1:
                residual = name.endswith(("project_out.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.depth) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the vectors [B, T, D] of all columns' tokens and which of them are real [B, T]."""
        tokens = [batch[key] for key in self.keys]
        vectors = [table(ids) for table, ids in zip(self.vectors, tokens, strict=True)]
        x = torch.cat(vectors, dim=1)
        real = torch.cat([ids != pad for ids, pad in zip(tokens, self.pads, strict=True)], dim=1)
        if self.training and self.config.token_dropout > 0:
            x = x * (torch.rand_like(x[..., :1]) >= self.config.token_dropout)
        if self.columns is not None:
            x = x + self.columns[self.segment]
        if self.places is not None:
            x = x + self.places[: x.shape[1]]
        if self.waves is not None:
            x = x * self.width**0.5 + self.waves[: x.shape[1]]
        return self.dropout(x), real

    def forward(self, batch: Batch) -> Features:
        x, real = self.embed(batch)
        visible = real | ~real.any(1, keepdim=True)  # a row without tokens sees its padding: no softmax over nothing
        packing = None
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph's shapes may not hang on the data
            packing = Packing(visible)
            x = packing.pack(x)  # [N, D]
        turns = None if self.turns is None else self.turns[: real.shape[1]]
        for block in self.blocks:
            x = block(x, visible[:, None, None, :], turns, packing)
        x = self.norm(x) if packing is None else packing.pad(self.norm(x))  # [B, T, D]
        if self.config.pooling == "first":
            return Features(pooled=x[:, 0], tokens=x, mask=real)
        share = real / real.sum(1, keepdim=True).clamp_min(1)  # [B, T]
        return Features(pooled=torch.einsum("bt,btd->bd", share.to(x.dtype), x), tokens=x, mask=real)


class EncoderDecoder(Transformer):
    """The whole network, a `Translator`."""

    written_turns: Tensor | None
    written_waves: Tensor | None

    def __init__(self, config: Config, spec: DataSpec, written: Field) -> None:
        super().__init__(config, spec)
        self.vocabulary, self.context, self.written_pad = written.vocabulary, written.shape[0], written.pad
        if not config.shared:
            self.written_vectors = nn.Embedding(self.vocabulary, config.width)
        places = torch.zeros(self.context, config.width)
        self.written_places = nn.Parameter(places) if config.positions == "learned" else None
        turns = rotary_angles(self.context, config.width // config.num_heads) if self.turns is not None else None
        self.register_buffer("written_turns", turns, persistent=False)
        waves = sinusoids(self.context, config.width) if _waves(config) else None
        self.register_buffer("written_waves", waves, persistent=False)
        self.written_blocks = nn.ModuleList(ReadingBlock(*_sizes(config)) for _ in range(config.depth))
        self.written_norm = nn.LayerNorm(config.width) if config.norm == "before" else nn.Identity()
        self._start()

    def encode(self, batch: Batch) -> Features:
        """Return what is read: tokens [B, S, D] and their mask [B, S]."""
        return self(batch)

    def decode(self, tokens: Tensor, memory: Features) -> Tensor:
        """Return hidden states [B, T, D] of the tokens [B, T] written so far (START first), each seeing its past."""
        x, turns = self._placed(tokens, 0)
        visible = None if memory.mask is None else visible_keys(memory.mask)
        assert memory.tokens is not None
        packing = Packing.of(tokens != self.written_pad)
        if packing is not None:
            x = packing.pack(x)  # [N, D]
        for block in self._blocks():
            x = block(x, block.reading.memory(memory.tokens), visible, turns, packing=packing)
        x = self.written_norm(x)
        return x if packing is None else packing.pad(x)  # [B, T, D]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""
        return F.linear(hidden, self._table().weight)

    def cache(self, memory: Features, length: int) -> Written:
        """Return room for up to `length` tokens written after reading `memory`.

        Raises:
            ConfigError: positions are known of fewer.
        """
        if length > self.context:
            raise ConfigError(f"{length} tokens were asked for; the model writes up to {self.context}.")
        assert memory.tokens is not None
        visible = None if memory.mask is None else visible_keys(memory.mask)
        return Written([block.reading.memory(memory.tokens) for block in self._blocks()], visible, length)

    def extend(self, tokens: Tensor, cache: Written) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds; it keeps them."""
        x, turns = self._placed(tokens, cache.length)
        for i, block in enumerate(self._blocks()):
            x = block(x, cache.memory[i], cache.visible, turns, (cache, i))
        cache.length += tokens.shape[1]
        return self.written_norm(x)

    def _placed(self, tokens: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Return the vectors of tokens that stand from `start` on, and by what attention turns them."""
        x, places = self._table()(tokens), slice(start, start + tokens.shape[1])
        if self.written_places is not None:
            x = x + self.written_places[places]
        if self.written_waves is not None:
            x = x * self.width**0.5 + self.written_waves[places]
        return self.dropout(x), None if self.written_turns is None else self.written_turns[places]

    def _table(self) -> nn.Embedding:
        return cast(nn.Embedding, self.vectors[0] if self.config.shared else self.written_vectors)

    def _blocks(self) -> Iterable[ReadingBlock]:
        return cast(Iterable[ReadingBlock], self.written_blocks)


def _sizes(config: Config) -> tuple[int, int, int, float, float, bool, Callable[[Tensor], Tensor]]:
    """Return what every block is made of."""
    activation = F.relu if config.activation == "relu" else F.gelu
    hidden = config.expansion * config.width
    return config.width, config.num_heads, hidden, config.dropout, 1e-5, config.norm == "after", activation


def _waves(config: Config) -> bool:
    return config.positions == "sinusoidal"


def _written(spec: DataSpec) -> Field | None:
    """Return the text to write, if there is one."""
    return next((field for field in spec.targets if field.kind == "text"), None)


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
