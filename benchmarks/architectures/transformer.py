"""The Transformer of 2017 beside torch.nn.Transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case
from torch import Tensor, nn

from fathom.core.types import DataSpec, Field
from fathom.layers.attention import sinusoids
from fathom.models import transformer


def cases() -> Iterator[Case]:
    """Yield a narrow network and that of the paper, on texts half of whose rows are half padding."""
    paper = replace(transformer.presets["transformer_2017"], dropout=0.0)
    for name, config, rows, length in (
        ("width 128, 32 × 32 to 16 tokens", replace(paper, width=128, depth=2, num_heads=4), 32, 32),
        ("transformer_2017, 4 × 64 to 32 tokens", paper, 4, 64),
    ):
        yield _case(name, config, rows, length)


class Theirs(nn.Module):
    """torch.nn.Transformer between the vectors of tokens."""

    def __init__(self, config: transformer.Config, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, config.width)
        hidden, depth = config.expansion * config.width, config.depth
        self.network = nn.Transformer(
            config.width, config.num_heads, depth, depth, hidden, dropout=0.0, activation="relu", batch_first=True
        )
        self.network.encoder.norm = self.network.decoder.norm = None
        self.register_buffer("waves", sinusoids(length, config.width))

    def forward(self, tokens: Tensor, written: Tensor) -> Tensor:
        padding, growth = tokens == 0, self.vectors.embedding_dim**0.5
        future = nn.Transformer.generate_square_subsequent_mask(written.shape[1])
        hidden = self.network(
            self.vectors(tokens) * growth + self.waves[: tokens.shape[1]],
            self.vectors(written) * growth + self.waves[: written.shape[1]],
            tgt_mask=future,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return hidden @ self.vectors.weight.T


def _case(name: str, config: transformer.Config, rows: int, length: int) -> Case:
    torch.manual_seed(0)
    text = Field(name="text", kind="text", shape=(length,), vocabulary=8_000)
    answer = replace(text, name="answer")
    ours = transformer.build(config, DataSpec(inputs=(text,), targets=(answer,)))
    theirs = Theirs(config, text.vocabulary, length)
    tokens, written = torch.randint(5, 8_000, (rows, length)), torch.randint(5, 8_000, (rows, length // 2))
    tokens[::2, length // 2 :] = 0

    def run_ours(network: nn.Module) -> Tensor:
        memory = network.encode({text.key: tokens})
        return network.logits(network.decode(written, memory))

    return Case("transformer", name, "torch", ours, theirs, run_ours, lambda network: network(tokens, written))
