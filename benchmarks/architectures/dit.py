"""Diffusion transformers beside diffusers' DiTTransformer2DModel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from case import Case

from fathom.core import catalog
from fathom.core.types import DataSpec, Field
from fathom.models import dit
from fathom.pretrained import put

SIZES = [("dit", 1, 24, 32), ("dit_s_8", 4, 32, 16), ("dit_s_4", 4, 32, 4), ("dit_b_8", 4, 32, 4)]
CLASSES = 10


def cases() -> Iterator[Case]:
    """Yield noise being taken out of images or latents, at random times, with labels, of several presets.

    In training diffusers' label embedding replaces labels by that of none at random; that costs it next to nothing.
    """
    from diffusers import DiTTransformer2DModel

    for name, channels, side, rows in SIZES:
        torch.manual_seed(0)
        spec = DataSpec(
            inputs=(Field(name="image", kind="image", shape=(channels, side, side)),),
            targets=(Field(name="label", kind="category", classes=tuple("0123456789")),),
        )
        config = catalog.find("models", name).config
        ours = dit.build(config, spec)
        theirs = DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.width // config.num_heads,
            in_channels=channels,
            out_channels=2 * channels if config.variance else channels,
            num_layers=config.depth,
            sample_size=side,
            patch_size=ours.patch,
            num_embeds_ada_norm=CLASSES,
            norm_eps=1e-6,
        )
        for block in theirs.transformer_blocks:  # as the paper has it; each block of theirs goes through them anew
            block.norm1.emb = theirs.transformer_blocks[0].norm1.emb
        assert not put(ours, theirs.state_dict(), dit.matches(config)).fresh
        x, time = torch.randn(rows, channels, side, side), torch.randint(0, 1000, (rows,))
        label = torch.randint(0, CLASSES, (rows,))
        yield Case(
            "dit",
            f"{name}, {rows} of {channels}×{side}×{side}",
            "diffusers",
            ours,
            theirs,
            lambda network, x=x, time=time, label=label: network.outputs(x, time, label),
            lambda network, x=x, time=time, label=label: network(x, timestep=time, class_labels=label).sample,
        )
