"""Recurrent networks beside torch.nn.RNN, LSTM and GRU between an embedding and the states that are pooled.

Padded texts are the rule in practice; the reference then packs them, which is how torch reads them rightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fathom.core.catalog import find
from fathom.core.types import DataSpec, Field
from fathom.models import recurrent

TORCHS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
VOCABULARY, ROWS, STEPS = 10_000, 64, 64


class Reference(nn.Module):
    """An embedding and torch's module; the last states of texts, or the outputs of each step."""

    def __init__(self, config: recurrent.Config) -> None:
        super().__init__()
        self.vectors = nn.Embedding(VOCABULARY, config.width)
        self.network = TORCHS[config.cell](
            config.width, config.width, config.depth, batch_first=True, bidirectional=config.bidirectional
        )

    def forward(self, tokens: Tensor, lengths: Tensor | None, pooled: bool) -> Tensor:
        x = self.vectors(tokens)
        if lengths is not None:
            y, state = self.network(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            y = pad_packed_sequence(y, batch_first=True, total_length=tokens.shape[1])[0]
        else:
            y, state = self.network(x)
        if not pooled:
            return y
        last = state[0] if isinstance(state, tuple) else state  # [layers · directions, B, H]
        return torch.cat(list(last[-2:]), dim=1) if self.network.bidirectional else last[-1]


def cases() -> Iterator[Case]:
    """Yield each cell on padded texts, on full ones, and the language models of Zaremba et al.'s medium size."""
    for name in ("rnn", "lstm", "gru", "bilstm", "bigru"):
        yield case(name, padded=True, pooled=True)
    for name in ("rnn", "lstm", "gru"):
        yield case(name, padded=False, pooled=True)
    yield case("lstm", padded=False, pooled=False, width=650, depth=2)


def case(name: str, padded: bool, pooled: bool, **options: object) -> Case:
    config = replace(find("models", name).config, dropout=0.0, **options)
    field = Field(name="text", kind="text", shape=(STEPS,), vocabulary=VOCABULARY)
    ours = recurrent.build(config, DataSpec(inputs=(field,)))
    theirs = Reference(config)
    with torch.no_grad():
        theirs.vectors.weight.copy_(ours.vectors.weight)
        cells = [cell for layer in ours.stack.layers for cell in layer]
        weights = [parameter for cell in cells for parameter in cell.parameters_in_order()]
        for parameter, weight in zip(theirs.network.parameters(), weights, strict=True):
            parameter.copy_(weight)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, VOCABULARY, (ROWS, STEPS), generator=draw)
    lengths = torch.randint(STEPS // 4, STEPS + 1, (ROWS,), generator=draw) if padded else None
    if lengths is not None:
        tokens[torch.arange(STEPS) >= lengths[:, None]] = field.pad

    def run_ours(network: nn.Module) -> Tensor:
        found = network({field.key: tokens})
        return found.pooled if pooled else found.tokens

    return Case(
        "recurrent",
        f"{name} {config.width}x{config.depth}, batch {ROWS}{', padded' if padded else ''}",
        "torch.nn",
        ours,
        theirs,
        run_ours,
        lambda network: network(tokens, lengths, pooled),
    )
