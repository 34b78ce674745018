"""T5 beside transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case
from torch import Tensor, nn

from fathom import pretrained
from fathom.models import t5


def cases() -> Iterator[Case]:
    """Yield a narrow network and that of the paper, on texts half of whose rows are half padding."""
    narrow = t5.Config(128, 2, 2, 4, 32, 256, dropout=0.0)
    for name, config, rows, length in (
        ("t5, 32 × 32 to 16 tokens", narrow, 32, 32),
        ("t5_small, 4 × 64 to 32 tokens", replace(t5.presets["t5_small"], dropout=0.0), 4, 64),
    ):
        yield _case(name, config, rows, length)


def _case(name: str, config: t5.Config, rows: int, length: int) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    spec = t5.paper()
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=spec.inputs[0].vocabulary,
            d_model=config.width,
            d_kv=config.head_size,
            d_ff=config.hidden,
            num_layers=config.depth,
            num_decoder_layers=config.decoder_depth,
            num_heads=config.num_heads,
            dropout_rate=0.0,
        )
    )
    ours = t5.build(config, spec)
    pretrained.put(ours, theirs.state_dict(), t5.matches(config))
    tokens, written = torch.randint(3, 32_000, (rows, length)), torch.randint(3, 32_000, (rows, length // 2))
    tokens[::2, length // 2 :] = 0
    mask = (tokens != 0).long()

    def run_ours(network: nn.Module) -> Tensor:
        memory = network.encode({"text:text": tokens})
        return network.logits(network.decode(written, memory))

    def run_theirs(network: nn.Module) -> Tensor:
        return network(input_ids=tokens, attention_mask=mask, decoder_input_ids=written, use_cache=False).logits

    return Case("t5", name, "transformers", ours, theirs, run_ours, run_theirs)
