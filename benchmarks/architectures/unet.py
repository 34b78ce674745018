"""U-Nets for diffusion beside diffusers' UNet2DModel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from case import Case

from fathom.core import catalog
from fathom.core.types import DataSpec, Field
from fathom.models import unet
from fathom.pretrained import put

SIZES = [("unet", 1, 28, 32), ("unet_small", 1, 28, 16), ("ddpm", 3, 32, 4)]  # preset, channels, side, rows


def cases() -> Iterator[Case]:
    """Yield noise of the data's shape being taken out, at random times, of each preset."""
    from diffusers import UNet2DModel

    for name, channels, side, rows in SIZES:
        torch.manual_seed(0)
        spec = DataSpec(inputs=(Field(name="image", kind="image", shape=(channels, side, side)),))
        config = replace(catalog.find("models", name).config, dropout=0.0)
        ours = unet.build(config, spec)
        widths = [stage.blocks[0].conv_out.out_channels for stage in ours.down]  # where left open, of these images
        attention = {index % len(widths) for index in config.attention}
        kinds = ["AttnDownBlock2D" if index in attention else "DownBlock2D" for index in range(len(widths))]
        theirs = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=kinds,
            up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
            block_out_channels=widths,
            layers_per_block=config.depth,
            attention_head_dim=config.head_width or None,
            norm_num_groups=config.groups,
            attn_norm_num_groups=config.groups,
            norm_eps=1e-6,
            resnet_time_scale_shift="scale_shift" if config.modulation == "scale_shift" else "default",
        )
        loaded = put(ours, theirs.state_dict(), unet.matches(replace(config, widths=tuple(widths))))
        assert not loaded.left and not loaded.fresh
        x, time = torch.randn(rows, channels, side, side), torch.randint(0, 1000, (rows,)).float()
        yield Case(
            "unet",
            f"{name}, {rows} of {channels}×{side}×{side}",
            "diffusers",
            ours,
            theirs,
            lambda network, x=x, time=time: network.denoise(x, time),
            lambda network, x=x, time=time: network(x, time).sample,
            images=True,
        )
