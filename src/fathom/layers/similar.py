"""Features that are compared with one another.

one_vector    one vector for each row, also of an ensemble
unit          vectors of length one, whose products are cosines
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fathom.layers.precision import wide


def one_vector(pooled: Tensor) -> Tensor:
    """Return features [B, D]; the K members of an ensemble, [B, K, D], speak with one voice."""
    return pooled.mean(1) if pooled.dim() == 3 else pooled


def unit(x: Tensor) -> Tensor:
    """Return vectors [..., D] of length one, at least in float32."""
    return F.normalize(wide(x), dim=-1)
