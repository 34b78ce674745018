"""Recurrent networks beside torch.nn.RNN, LSTM and GRU between an embedding and the states that are pooled.

Texts come padded; the reference packs them, which is how torch reads them rightly. Images come row by row, and language
models read texts without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fathom.core.catalog import find
from fathom.core.types import DataSpec, Field
from fathom.models import recurrent

TORCHS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
VOCABULARY, ROWS, STEPS, SIDE = 10_000, 64, 64, 28


class Reference(nn.Module):
    """torch's module; the last states, or for a language model the outputs of each step."""

    def __init__(self, config: recurrent.Config, inputs: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.network = TORCHS[config.cell](
            inputs, config.width, config.depth, batch_first=True, bidirectional=config.bidirectional
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            y, state = self.network(x)
        else:
            _, state = self.network(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        if not self.pooled:
            return y
        last = state[0] if isinstance(state, tuple) else state  # [layers · directions, B, H]
        return torch.cat(list(last[-2:]), dim=1) if self.network.bidirectional else last[-1]


def cases() -> Iterator[Case]:
    """Yield each cell on padded texts and on images, and language models up to the medium size of Zaremba et al."""
    for name in ("rnn", "lstm", "gru", "bilstm", "bigru"):
        yield texts(name, padded=True)
    for name in ("rnn", "lstm", "gru", "bilstm"):
        yield images(name)
    yield texts("gru", padded=False)
    yield texts("lstm", padded=False, width=650, depth=2)


def texts(name: str, padded: bool, **options: object) -> Case:
    """Return texts of 16 to 64 tokens told apart, or of 64 tokens for a language model."""
    config = replace(find("models", name).config, dropout=0.0, **options)
    field = Field(name="text", kind="text", shape=(STEPS,), vocabulary=VOCABULARY)
    ours = recurrent.build(config, DataSpec(inputs=(field,)))
    vectors = nn.Embedding.from_pretrained(ours.vectors.weight.detach().clone(), freeze=False)
    reference = same_weights(ours, Reference(config, config.width, pooled=padded))
    theirs = nn.ModuleDict({"vectors": vectors, "reference": reference})
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, VOCABULARY, (ROWS, STEPS), generator=draw)
    lengths = torch.randint(STEPS // 4, STEPS + 1, (ROWS,), generator=draw) if padded else None
    if lengths is not None:
        tokens[torch.arange(STEPS) >= lengths[:, None]] = field.pad

    def run_ours(network: nn.Module) -> Tensor:
        found = network({field.key: tokens})
        return found.pooled if padded else found.tokens

    size = f"{name} {config.width}x{config.depth}, batch {ROWS}x{STEPS}, {'padded' if padded else 'next token'}"
    return Case(
        "recurrent",
        size,
        "torch.nn",
        ours,
        theirs,
        run_ours,
        lambda network: network["reference"](network["vectors"](tokens), lengths),
    )


def images(name: str) -> Case:
    """Return grey images of 28x28 pixels, row by row: the sequential MNIST."""
    config = replace(find("models", name).config, dropout=0.0)
    field = Field(name="digit", kind="image", shape=(1, SIDE, SIDE))
    ours = recurrent.build(config, DataSpec(inputs=(field,)))
    theirs = same_weights(ours, Reference(config, SIDE, pooled=True))
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(256, (ROWS, 1, SIDE, SIDE), dtype=torch.uint8, generator=draw)
    return Case(
        "recurrent",
        f"{name} {config.width}x{config.depth}, batch {ROWS}, rows of {SIDE}x{SIDE} images",
        "torch.nn",
        ours,
        theirs,
        lambda network: network({field.key: image}).pooled,
        lambda network: network((image.squeeze(1).float() - 127.5) / 127.5),
    )


def same_weights(ours: recurrent.Recurrent, theirs: Reference) -> Reference:
    """Return the reference with our cells' weights."""
    cells = [cell for layer in ours.stack.layers for cell in layer]
    weights = [parameter for cell in cells for parameter in cell.parameters_in_order()]
    with torch.no_grad():
        for parameter, weight in zip(theirs.network.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return theirs
