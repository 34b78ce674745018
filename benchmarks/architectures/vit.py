"""Vision transformers and DeiT beside transformers', from images of 28 pixels to those of ImageNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case

from fathom import pretrained
from fathom.core import catalog
from fathom.core.types import DataSpec, Field
from fathom.models import vit

CASES = [  # preset, images, channels, side, patch
    ("vit", 64, 1, 28, 4),
    ("vit_tiny", 8, 3, 224, 16),
    ("vit_tiny", 32, 3, 32, 4),
    ("vit_small", 4, 3, 224, 16),
    ("vit_base", 2, 3, 224, 16),
    ("deit_tiny", 8, 3, 224, 16),
    ("deit_small", 4, 3, 224, 16),
]


def cases() -> Iterator[Case]:
    for name, rows, channels, side, patch in CASES:
        yield _case(name, rows, channels, side, patch)


def _case(name: str, rows: int, channels: int, side: int, patch: int) -> Case:
    import transformers

    torch.manual_seed(0)
    field = Field(name="a", kind="image", shape=(channels, side, side))
    config = vit.resolved(replace(catalog.find("models", name).config, patch=patch), field)
    settings = {"hidden_size": config.width, "num_hidden_layers": config.depth, "patch_size": patch}
    settings |= {"num_attention_heads": config.num_heads, "intermediate_size": config.hidden}
    settings |= {"num_channels": channels, "image_size": side, "layer_norm_eps": config.epsilon}
    if config.distillation:
        theirs = transformers.DeiTModel(transformers.DeiTConfig(**settings), add_pooling_layer=False)
    else:
        theirs = transformers.ViTModel(transformers.ViTConfig(**settings), add_pooling_layer=False)
    ours = vit.build(config, DataSpec(inputs=(field,)))
    pretrained.put(ours, theirs.state_dict(), vit.matches(config))
    image = torch.randint(0, 256, (rows, channels, side, side), dtype=torch.uint8)
    normalised, leading = ours.normalize(image), len(ours.leading)
    return Case(
        family="vit",
        name=f"{name}, {rows} images of {channels}x{side}x{side}, patches of {patch}",
        reference="transformers",
        ours=ours,
        theirs=theirs,
        run_ours=lambda network: network({"image:a": image}).pooled,
        run_theirs=lambda network: network(normalised).last_hidden_state[:, :leading].mean(1),
    )
