"""T5: every task of text as one of reading a text and writing another.

    text [B, S]  ->  vectors  ->  depth × (attention + network)                             ->  norm  ->  [B, S, D]
    what is written so far [B, T]  ->  the same vectors
                 ->  decoder_depth × (attention to the past + attention to what was read + network)
                                                                                            ->  norm  ->  [B, T, D]
                 ->  · D^-0.5  ->  product with the vectors  ->  scores of the next token  [B, T, V]

What sets it apart from the Transformer of 2017: norms before each part, by the root mean square alone and without a
bias; no biases at all; scores of attention that are not divided by √E (the first weights of queries are small instead);
and positions that are told by a learned number for each head and each distance, which is added to the scores. Distances
share numbers the more, the longer they are.

Without a text to write, it is the encoder alone; its pooled feature is the mean over real tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.published import Match, match
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.distances import Distances, WrittenAtDistances, hide_future
from fathom.layers.written import Written, hidden_keys

REFERENCE = (
    "Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu, Exploring the Limits of Transfer Learning with a "
    "Unified Text-to-Text Transformer, 2020; gated networks: Shazeer, GLU Variants Improve Transformer, 2020"
)
PROVEN = "transformers' T5ForConditionalGeneration, weight for weight"
PUBLISHED = ("t5",)
EPSILON = 1e-6  # of the norms


@dataclass(frozen=True)
class Config:
    width: int = option(128, "D, length of a token's vector")
    depth: int = option(2, "blocks of the encoder")
    decoder_depth: int = option(0, "blocks of the decoder; 0: as many as the encoder's")
    num_heads: int = option(4, "heads of each attention")
    head_size: int = option(32, "length of a head's queries, keys and values; heads · size need not be the width")
    hidden: int = option(256, "units of a block's two-layer network")
    gated: bool = option(False, "networks whose units are gated by a GELU (T5 1.1, Flan), rather than cut by a ReLU")
    tied: bool = option(True, "read out by the tokens' own vectors, rather than by weights of their own (T5 1.1, Flan)")
    buckets: int = option(32, "numbers of a head that distances share")
    farthest: int = option(128, "distance from which all share one number")
    dropout: float = option(0.1, "share of units and attention weights dropped in training")


presets: dict[str, Config] = {
    "t5_small": Config(512, 6, 6, 8, 64, 2048),
    "t5_base": Config(768, 12, 12, 12, 64, 3072),
    "flan_t5_small": Config(512, 8, 8, 6, 64, 1024, gated=True, tied=False),
    "flan_t5_base": Config(768, 12, 12, 12, 64, 2048, gated=True, tied=False),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this model cannot take such data, or None."""
    if len(spec.inputs) != 1 or spec.inputs[0].kind != "text":
        return f"it reads one text column; the input columns are {spec.given}"
    read, written = spec.inputs[0], _written(spec)
    if written is not None and written.vocabulary != read.vocabulary:
        return (
            f"it reads and writes with one vocabulary, but column '{read.name}' has {read.vocabulary} tokens and "
            f"target '{written.name}' {written.vocabulary}"
        )
    return None


def example() -> DataSpec:
    """Return a short text to read and a shorter one to write."""
    return DataSpec(
        inputs=(Field(name="text", kind="text", shape=(10,), vocabulary=30),),
        targets=(Field(name="summary", kind="text", shape=(6,), vocabulary=30),),
        rows=16,
    )


def paper() -> DataSpec:
    """Return texts of 512 tokens of the paper's vocabulary, with its special tokens."""
    special = (0, 2, 0, 1, -1)
    text = Field(name="text", kind="text", shape=(512,), vocabulary=32_128, special=special)
    answer = Field(name="answer", kind="text", shape=(512,), vocabulary=32_128, special=special)
    return DataSpec(inputs=(text,), targets=(answer,))


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings that suit this model on such data."""
    batch = 128 if spec.rows >= 10_000 else 32
    return {"engine": {"learning_rate": 1e-3, "epochs": 12, "batch_size": batch, "warmup": 0.1, "weight_decay": 0.01}}


def published(settings: Mapping[str, Any]) -> Config:
    """Return the configuration that a published `config.json` describes.

    Raises:
        ConfigError: its network is of a kind that no published T5 has.
    """
    kind = settings.get("feed_forward_proj", "relu")
    if kind not in ("relu", "gated-gelu"):
        raise ConfigError(f"A T5 with feed_forward_proj={kind!r} cannot be read; expected 'relu' or 'gated-gelu'.")
    return Config(
        width=settings["d_model"],
        depth=settings["num_layers"],
        decoder_depth=settings.get("num_decoder_layers") or settings["num_layers"],
        num_heads=settings["num_heads"],
        head_size=settings["d_kv"],
        hidden=settings["d_ff"],
        gated=kind == "gated-gelu",
        tied=settings.get("tie_word_embeddings", True) and settings.get("scale_decoder_outputs", True),
        buckets=settings.get("relative_attention_num_buckets", 32),
        farthest=settings.get("relative_attention_max_distance", 128),
        dropout=settings.get("dropout_rate", 0.1),
    )


def matches(config: Config) -> Iterator[Match]:
    """Yield which tensors of transformers' T5 are ours. Copies that it keeps of the tied vectors are named, too."""
    yield match("vectors.weight", "shared.weight")
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        yield match("vectors.weight", copy)
    yield match("vectors.weight" if config.tied else "head.weight", "lm_head.weight")
    for stack, depth in (("encoder", config.depth), ("decoder", config.decoder_depth or config.depth)):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield match(f"{stack}.distances.numbers", first)
        yield match(f"{stack}.norm", f"{stack}.final_layer_norm")
        for i in range(depth):
            ours, theirs = f"{stack}.blocks.{i}", f"{stack}.block.{i}.layer"
            own = f"{theirs}.0.SelfAttention"
            yield match(f"{ours}.norm_attention", f"{theirs}.0.layer_norm")
            yield match(f"{ours}.attention.project_in", f"{own}.q", f"{own}.k", f"{own}.v")
            yield match(f"{ours}.attention.project_out", f"{own}.o")
            if stack == "decoder":
                cross = f"{theirs}.1.EncDecAttention"
                yield match(f"{ours}.norm_reading", f"{theirs}.1.layer_norm")
                yield match(f"{ours}.reading.project_in", f"{cross}.q")
                yield match(f"{ours}.reading.project_memory", f"{cross}.k", f"{cross}.v")
                yield match(f"{ours}.reading.project_out", f"{cross}.o")
            last = f"{theirs}.{2 if stack == 'decoder' else 1}"
            yield match(f"{ours}.norm_network", f"{last}.layer_norm")
            parts = ("wi_0", "wi_1") if config.gated else ("wi",)
            yield match(f"{ours}.network.expand", *(f"{last}.DenseReluDense.{part}" for part in parts))
            yield match(f"{ours}.network.contract", f"{last}.DenseReluDense.wo")


def build(config: Config, spec: DataSpec) -> Reader:
    """Return the network for such data: a `T5` where a target is a text, else the encoder alone.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 't5' cannot be used: {why}.")
    least = {"width": 1, "depth": 1, "decoder_depth": 0, "num_heads": 1, "head_size": 1, "hidden": 1, "buckets": 4}
    at_least(config, least)
    if config.buckets % 2 or config.farthest <= config.buckets // 2:
        raise ConfigError(
            f"Options 'model.buckets' and 'model.farthest' were given {config.buckets} and {config.farthest}; expected "
            "an even number of buckets and a farthest distance of more than half of it, such as 32 and 128."
        )
    below_one(config, "dropout")
    return Reader(config, spec) if _written(spec) is None else T5(config, spec)


class Attention(nn.Module):
    """Attention whose scores are not scaled, without biases: [B, T, D] -> [B, T, D].

    Args:
        reads: whether keys and values are of another sequence, the memory, rather than of the same.
    """

    def __init__(self, config: Config, reads: bool = False) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, nn.Dropout(config.dropout)
        inner = config.num_heads * config.head_size
        self.project_in = nn.Linear(config.width, inner if reads else 3 * inner, bias=False)
        self.project_memory = nn.Linear(config.width, 2 * inner, bias=False) if reads else None
        self.project_out = nn.Linear(inner, config.width, bias=False)
        nn.init.normal_(self.project_in.weight, std=config.width**-0.5)
        nn.init.normal_(self.project_in.weight[:inner], std=(config.width * config.head_size) ** -0.5)  # the queries'
        nn.init.normal_(self.project_out.weight, std=inner**-0.5)
        if self.project_memory is not None:
            nn.init.normal_(self.project_memory.weight, std=config.width**-0.5)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values [B, H, T, E] of a sequence that looks at itself."""
        query, key, value = self.project_in(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def query(self, x: Tensor) -> Tensor:
        """Return the queries [B, H, T, E] of a sequence that looks at a memory."""
        return self.project_in(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, H, S, E] of what was read [B, S, D]."""
        assert self.project_memory is not None
        key, value = self.project_memory(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def weights(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return how much each query gathers of each value: [B, H, T, S], sums over S being one."""
        scores = query @ key.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(-1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return what each query gathers [B, T, D]; `bias` is added to the scores [B, H, T, S]."""
        scores = query @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias if torch.compiler.is_compiling() else scores.add_(bias)
        found = self.dropout(torch.softmax(scores, dim=-1)) @ value  # [B, H, T, E]
        return self.project_out(found.transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Two layers with a ReLU between them, or a product of two with one GELU: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gated, self.dropout = config.gated, nn.Dropout(config.dropout)
        self.expand = nn.Linear(config.width, config.hidden * (2 if config.gated else 1), bias=False)
        self.contract = nn.Linear(config.hidden, config.width, bias=False)
        nn.init.normal_(self.expand.weight, std=config.width**-0.5)
        nn.init.normal_(self.contract.weight, std=config.hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.contract(self.dropout(F.gelu(gate, approximate="tanh") * x))
        return self.contract(self.dropout(F.relu(x)))


class EncoderBlock(nn.Module):
    """Attention of the tokens to one another, then the network, each on normalised input and added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_attention, self.norm_network = _norm(config), _norm(config)
        self.attention, self.network = Attention(config), Network(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(*self.attention.split(self.norm_attention(x)), bias))
        return x + self.dropout(self.network(self.norm_network(x)))


class DecoderBlock(nn.Module):
    """Attention to the past, then to what was read, then the network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_attention, self.norm_reading, self.norm_network = _norm(config), _norm(config), _norm(config)
        self.attention, self.reading = Attention(config), Attention(config, reads=True)
        self.network, self.dropout = Network(config), nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, memory: tuple[Tensor, Tensor], hidden: Tensor | None, kept: Kept | None = None
    ) -> Tensor:
        """Return what becomes of the tokens [B, T, D].

        Args:
            bias: [1, H, T, past and T], added to the scores of attention to the past.
            memory: keys and values of what was read, [B, H, S, E] each.
            hidden: [B, 1, 1, S], −∞ at padding of the memory.
            kept: where keys and values of the past are.
        """
        query, key, value = self.attention.split(self.norm_attention(x))
        if kept is not None:
            key, value = kept[0].put(kept[1], key, value)
        x = x + self.dropout(self.attention(query, key, value, bias))
        x = x + self.dropout(self.reading(self.reading.query(self.norm_reading(x)), *memory, hidden))
        return x + self.dropout(self.network(self.norm_network(x)))


Kept = tuple[Written, int]  # a cache, and which of its layers


class Stack(nn.Module):
    """The blocks of an encoder or a decoder, what they share of distances, and the last norm."""

    def __init__(self, config: Config, blocks: list[nn.Module], two_way: bool) -> None:
        super().__init__()
        scale = config.width**-0.5
        self.distances = Distances(config.num_heads, config.buckets, config.farthest, two_way, scale)
        self.blocks, self.norm = nn.ModuleList(blocks), _norm(config)


class Reader(nn.Module):
    """The encoder; `width` is D."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.key, self.pad = spec.inputs[0].key, spec.inputs[0].pad
        self.vectors = nn.Embedding(spec.inputs[0].vocabulary, config.width)
        self.encoder = Stack(config, [EncoderBlock(config) for _ in range(config.depth)], two_way=True)
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, batch: Batch) -> Features:
        """Return what is read: tokens [B, S, D], their mask [B, S], and their mean [B, D] over real tokens."""
        tokens = batch[self.key]
        real = tokens != self.pad
        x = self.dropout(self.vectors(tokens))
        bias = self.encoder.distances(tokens.shape[1]) + hidden_keys(real, x.dtype)  # [B, H, S, S]
        for block in self.encoder.blocks:
            x = block(x, bias)
        x = self.dropout(self.encoder.norm(x))
        share = real / real.sum(1, keepdim=True).clamp_min(1)  # [B, S]
        return Features(pooled=torch.einsum("bt,btd->bd", share.to(x.dtype), x), tokens=x, mask=real)

    def forward(self, batch: Batch) -> Features:
        return self.encode(batch)


class T5(Reader):
    """The whole network, a `Translator`."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        written = _written(spec)
        assert written is not None
        self.vocabulary, self.context = written.vocabulary, written.shape[0]
        depth = config.decoder_depth or config.depth
        self.decoder = Stack(config, [DecoderBlock(config) for _ in range(depth)], two_way=False)
        self.head = None if config.tied else nn.Linear(config.width, self.vocabulary, bias=False)

    def decode(self, tokens: Tensor, memory: Features) -> Tensor:
        """Return hidden states [B, T, D] of the tokens [B, T] written so far (START first), each seeing its past."""
        read, hidden = self._read(memory)
        x = self.dropout(self.vectors(tokens))
        bias = hide_future(self.decoder.distances(tokens.shape[1]))
        for block in self._blocks():
            x = block(x, bias, block.reading.memory(read), hidden)
        return self.dropout(self.decoder.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""
        if self.head is not None:
            return self.head(hidden)
        return F.linear(hidden * self.width**-0.5, self.vectors.weight)

    def cache(self, memory: Features, length: int) -> WrittenAtDistances:
        """Return room for up to `length` tokens written after reading `memory`."""
        read, hidden = self._read(memory)
        kept = [block.reading.memory(read) for block in self._blocks()]
        return WrittenAtDistances(kept, hidden, length, self.decoder.distances)

    def extend(self, tokens: Tensor, cache: WrittenAtDistances) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds; it keeps them."""
        x, bias = self.dropout(self.vectors(tokens)), cache.bias(tokens.shape[1])
        for i, block in enumerate(self._blocks()):
            x = block(x, bias, cache.memory[i], cache.visible, (cache, i))
        cache.length += tokens.shape[1]
        return self.dropout(self.decoder.norm(x))

    def _blocks(self) -> Iterable[DecoderBlock]:
        return cast(Iterable[DecoderBlock], self.decoder.blocks)

    def _read(self, memory: Features) -> tuple[Tensor, Tensor | None]:
        assert memory.tokens is not None
        return memory.tokens, None if memory.mask is None else hidden_keys(memory.mask, memory.tokens.dtype)


def _norm(config: Config) -> nn.RMSNorm:
    return nn.RMSNorm(config.width, eps=EPSILON)


def _written(spec: DataSpec) -> Field | None:
    """Return the text to write, if there is one."""
    return next((field for field in spec.targets if field.kind == "text"), None)
