"""BERT, DistilBERT and MiniLM beside transformers', on full batches and on texts of many lengths, padded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case
from torch import Tensor

from fathom import pretrained
from fathom.core import catalog
from fathom.core.types import DataSpec, Field
from fathom.models import bert

VOCABULARY = 30_522
CASES = [  # preset, rows, tokens of the longest text, whether the others are shorter
    ("bert_base", 4, 128, False),
    ("bert_base", 8, 64, True),
    ("distilbert", 4, 128, False),
    ("distilbert", 8, 64, True),
    ("minilm", 16, 128, False),
    ("minilm", 32, 64, True),
    ("minilm", 1, 256, False),
]


def cases() -> Iterator[Case]:
    for name, rows, length, shorter in CASES:
        yield _case(name, rows, length, shorter)


def _case(name: str, rows: int, length: int, shorter: bool) -> Case:
    import transformers

    torch.manual_seed(0)
    preset = catalog.find("models", name).config
    if name == "distilbert":
        theirs = transformers.DistilBertModel(transformers.DistilBertConfig())
    else:
        settings = {"hidden_size": preset.width, "num_hidden_layers": preset.depth}
        settings |= {"num_attention_heads": preset.num_heads, "intermediate_size": 4 * preset.width}
        theirs = transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=preset.pooling == "tanh")
    config = replace(bert.published(theirs.config.to_dict()), pooling=preset.pooling)
    ours = bert.build(config, DataSpec(inputs=(Field(name="a", kind="text", shape=(length,), vocabulary=VOCABULARY),)))
    pretrained.put(ours, theirs.state_dict(), bert.matches(config))
    tokens = torch.randint(5, VOCABULARY, (rows, length))
    if shorter:
        lengths = torch.linspace(length // 4, length, rows).round()  # [B]
        tokens = tokens * (torch.arange(length) < lengths[:, None])
    mask = (tokens != 0).long()  # [B, T]

    def run_theirs(network: torch.nn.Module) -> Tensor:
        found = network(input_ids=tokens, attention_mask=mask)
        if preset.pooling == "tanh":
            return found.pooler_output
        if preset.pooling == "first":
            return found.last_hidden_state[:, 0]
        return (found.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return Case(
        family="bert",
        name=f"{name}, {rows} texts of {'up to ' if shorter else ''}{length}",
        reference="transformers",
        ours=ours,
        theirs=theirs,
        run_ours=lambda network: network({"text:a": tokens}).pooled,
        run_theirs=run_theirs,
    )
