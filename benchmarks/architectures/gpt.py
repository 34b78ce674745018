"""GPT-2 beside transformers', from the scores of the next token, on full batches; also with narrow blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from case import Case

from fathom import pretrained
from fathom.core.types import DataSpec, Field
from fathom.models import gpt

VOCABULARY = 8_192
CASES: list[tuple[str, dict[str, Any], int, int]] = [  # name, settings, rows, tokens of each
    ("128 wide, 2 blocks", {"n_embd": 128, "n_layer": 2, "n_head": 4}, 32, 64),
    ("256 wide, 4 blocks", {"n_embd": 256, "n_layer": 4, "n_head": 4}, 8, 128),
    ("512 wide, 4 blocks", {"n_embd": 512, "n_layer": 4, "n_head": 8}, 2, 256),
    ("768 wide, 6 blocks, one text", {"n_embd": 768, "n_layer": 6, "n_head": 12}, 1, 256),
]
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # either draws other numbers


def cases() -> Iterator[Case]:
    import transformers

    for name, settings, rows, length in CASES:
        torch.manual_seed(0)
        given = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=length, **settings, **STILL)
        given.bos_token_id = given.eos_token_id = 1
        theirs = transformers.GPT2LMHeadModel._from_config(given, attn_implementation="sdpa")
        config = gpt.published(given.to_dict())
        field = Field(name="a", kind="text", shape=(length,), vocabulary=VOCABULARY)
        ours = gpt.build(config, DataSpec(inputs=(field,)))
        pretrained.put(ours, theirs.state_dict(), gpt.matches(config))
        tokens = torch.randint(5, VOCABULARY, (rows, length))
        yield Case(
            family="gpt",
            name=f"{name}, {rows} × {length} tokens",
            reference="transformers",
            ours=ours,
            theirs=theirs,
            run_ours=lambda network, tokens=tokens: network.logits(network({"text:a": tokens}).tokens),  # type: ignore[misc]
            run_theirs=lambda network, tokens=tokens: network(tokens, use_cache=False).logits,  # type: ignore[misc]
        )
