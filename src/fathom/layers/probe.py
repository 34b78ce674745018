"""What kind of features a model gives: asked of the model itself, with a row of nobody's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fathom.core.modes import modes_kept
from fathom.core.types import Features, Field


def probe(model: nn.Module, fields: Sequence[Field]) -> Features:
    """Return what the model makes of one row of black images and of texts without a word; their shapes tell what an
    objective may count on.

    Args:
        fields: the images and texts that the model takes.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = {
        field.key: torch.zeros(1, *field.shape, device=device, dtype=torch.uint8)
        if field.kind == "image"
        else torch.full((1, *field.shape), field.pad, device=device, dtype=torch.int32)
        for field in fields
    }
    with asking(model):
        found: Features = model(batch)
    return found


@contextmanager
def asking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's own mode is as before."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield
