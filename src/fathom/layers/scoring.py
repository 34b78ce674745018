"""What the tokens that were to be told cost.

    told          hidden states and wanted tokens of the places that count
    token_cost    scores, wanted tokens -> nats of each
    per_row       values of the places that count -> their sums by row

Wanted tokens are [B, T], `NOTHING` where no token is to be told. A vocabulary is large, so scores are only made where a
token is to be told; on a GPU, which would be waited for, and in a compiled graph they are made everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.layers.precision import wide

NOTHING = -100


def told(hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return what tells each token, and the token: [B, T, D], [B, T] -> [N, D], [N]."""
    hidden, wanted = hidden.flatten(0, 1), wanted.flatten()
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return hidden, wanted
    places = (wanted != NOTHING).nonzero().squeeze(1)
    return hidden.index_select(0, places), wanted.index_select(0, places)


def token_cost(scores: Tensor, wanted: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the negative log probability of each wanted token, at least in float32: [N, V], [N] -> [N].

    It is 0 where no token is wanted.

    Args:
        smoothing: share of the probability that is spread over all tokens.
    """
    return F.cross_entropy(
        wide(scores), wanted.long(), ignore_index=NOTHING, reduction="none", label_smoothing=smoothing
    )


def per_row(values: Tensor, wanted: Tensor) -> Tensor:
    """Return the sums by row of what `told` and `token_cost` made of wanted tokens [B, T]: [N] -> [B]."""
    if len(values) == wanted.numel():
        return values.view(wanted.shape).sum(1)
    rows = (wanted != NOTHING).nonzero()[:, 0]
    return values.new_zeros(len(wanted)).index_add(0, rows, values)
