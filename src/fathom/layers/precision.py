"""The precision in which sums, softmaxes and losses are taken."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return x at least in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
