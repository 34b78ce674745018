"""FT-Transformer beside the package of its authors, `rtdl_revisiting_models`, on tables of few and of many columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from case import Case
from torch import nn

from fathom.core.catalog import find
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.models import ft_transformer

ROWS = 256


def cases() -> Iterator[Case]:
    """Yield the paper's default on a narrow and on a wide table, and the small network."""
    yield case("ft_transformer_base", numbers=8, classes=())
    yield case("ft_transformer_base", numbers=24, classes=(8,) * 8)
    yield case("ft_transformer", numbers=14, classes=(8,) * 6)


def case(name: str, numbers: int, classes: tuple[int, ...]) -> Case:
    """Return the preset with its own dropout, which is part of what a step costs. Weights are as many, drawn anew."""
    import rtdl_revisiting_models as authors

    config = find("models", name).config
    columns = [Field(name=f"x{i}", kind="number", stats=Stats()) for i in range(numbers)]
    for i, size in enumerate(classes):
        columns.append(Field(name=f"c{i}", kind="category", classes=(UNKNOWN, *map(str, range(1, size)))))
    ours = ft_transformer.build(config, DataSpec(inputs=tuple(columns)))
    theirs = authors.FTTransformer(
        n_cont_features=numbers,
        cat_cardinalities=list(classes),
        d_out=config.width,
        d_block=config.width,
        n_blocks=config.depth,
        attention_n_heads=config.num_heads,
        attention_dropout=config.attention_dropout,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=config.expansion,
        ffn_dropout=config.hidden_dropout,
        residual_dropout=config.residual_dropout,
    )
    theirs.backbone.output.linear = nn.Identity()
    draw = torch.Generator().manual_seed(0)
    number = torch.randn(ROWS, numbers, generator=draw)
    category = torch.stack([torch.randint(c, (ROWS,), generator=draw) for c in classes], dim=1) if classes else None
    batch = {"number": number} | ({"category": category} if category is not None else {})
    return Case(
        "ft_transformer",
        f"{name}, {numbers} numbers, {len(classes)} categories, batch {ROWS}",
        "rtdl_revisiting_models",
        ours,
        theirs,
        lambda network: network(batch).pooled,
        lambda network: network(number, category),
    )
