"""Residual networks beside transformers' ResNet; and how any network for images is put beside theirs."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from case import Case
from torch import nn

from fathom import pretrained
from fathom.core.types import DataSpec, Field
from fathom.layers.image import Normalize
from fathom.models import resnet

SMALL = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}


def cases() -> Iterator[Case]:
    """Yield the papers' networks on small batches, with strides as published."""
    yield beside(resnet, "ResNet", "resnet18", 16, 64, **SMALL)
    yield beside(resnet, "ResNet", "resnet18", 4, 128, **SMALL)
    yield beside(resnet, "ResNet", "resnet50", 16, 64)


def beside(family: ModuleType, kind: str, name: str, rows: int, side: int, **settings: Any) -> Case:
    """Return a network of ours with the weights of transformers', on the same images, which both have to normalise.

    Args:
        family: the file of ours, with its table of published weights.
        kind: what the classes of theirs begin with.
        name: for the table.
        rows, side: images, and their pixels.
        settings: of their configuration, from which ours is read.
    """
    import transformers

    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # some are drawn about zero, where numbers get so small that they are slow
    field = Field(name="image", kind="image", shape=(3, side, side))
    config = family.published(theirs.config.to_dict())
    ours = family.build(config, DataSpec(inputs=(field,)))
    loaded = pretrained.put(ours, theirs.state_dict(), family.matches(config))
    assert not loaded.left and not loaded.fresh
    image, normalize = torch.randint(256, (rows, 3, side, side), dtype=torch.uint8), Normalize(field)
    return Case(
        family=family.__name__.rpartition(".")[2],
        name=f"{name}, {rows} × 3 × {side} × {side}",
        reference=f"transformers {kind}",
        ours=ours,
        theirs=theirs,
        run_ours=lambda network: network({field.key: image}).pooled,
        run_theirs=lambda network: network(normalize(image)).pooler_output.flatten(1),
        images=True,
    )
