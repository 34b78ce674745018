"""Llama and Mixtral beside transformers', from the scores of the next token, on full batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from case import Case

from fathom import pretrained
from fathom.core.types import DataSpec, Field
from fathom.models import llama

VOCABULARY = 8_192
CASES: list[tuple[str, tuple[int, int, int, int, int], dict[str, Any], int, int]] = [
    # kind; width, blocks, heads of queries, of keys, hidden; settings beside; rows, tokens of each
    ("Llama", (128, 2, 4, 2, 352), {}, 32, 64),
    ("Llama", (256, 4, 4, 4, 704), {}, 8, 128),
    ("Llama", (576, 4, 9, 3, 1536), {"tie_word_embeddings": True}, 2, 256),  # blocks of SmolLM2
    ("Llama", (576, 4, 9, 3, 1536), {"tie_word_embeddings": True}, 8, 64),
    ("Mixtral", (128, 2, 4, 2, 352), {"num_local_experts": 8, "num_experts_per_tok": 2}, 32, 64),
    ("Mixtral", (256, 4, 4, 2, 704), {"num_local_experts": 4, "num_experts_per_tok": 1}, 4, 128),
]


def cases() -> Iterator[Case]:
    import transformers

    for kind, (width, depth, heads, keys, hidden), settings, rows, length in CASES:
        torch.manual_seed(0)
        given = getattr(transformers, f"{kind}Config")(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            intermediate_size=hidden,
            max_position_embeddings=length,
            **settings,
        )
        theirs = getattr(transformers, f"{kind}ForCausalLM")._from_config(given, attn_implementation="sdpa")
        # The balance loss is left out of theirs, and computed by ours as in training.
        config = llama.published(given.to_dict())
        field = Field(name="a", kind="text", shape=(length,), vocabulary=VOCABULARY)
        ours = llama.build(config, DataSpec(inputs=(field,)))
        pretrained.put(ours, theirs.state_dict(), llama.matches(config))
        tokens = torch.randint(5, VOCABULARY, (rows, length))
        experts = f", {config.experts} experts" if config.experts else ""
        yield Case(
            family="llama",
            name=f"{kind}, {width} wide, {depth} blocks{experts}, {rows} × {length}",
            reference="transformers",
            ours=ours,
            theirs=theirs,
            run_ours=lambda network, tokens=tokens: network.logits(network({"text:a": tokens}).tokens),  # type: ignore[misc]
            run_theirs=lambda network, tokens=tokens: network(tokens, use_cache=False).logits,  # type: ignore[misc]
        )
