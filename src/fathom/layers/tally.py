"""The mean of something over all rows of a training step, whose gradient may be gathered from several micro-batches.

Two of them make a running mean that moves once a step: one takes in the step's rows, the other trails it by an
`Average` whose buffers are "averaged". How many rows each has seen tells where a step begins: they agree there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepMean(nn.Module):
    """A mean over rows.

    Attributes:
        value: the mean.
        rows: how many rows were ever taken in.

    Args:
        value: what it is at first.
    """

    value: Tensor
    rows: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.clone())
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def take(self, mean: Tensor, rows: int, kept: StepMean) -> None:
        """Take in what so many rows are on average, beside the others of this step.

        Args:
            kept: what trails this one, and has seen the rows of all steps before.
        """
        share = rows / (self.rows - kept.rows + rows)  # 1 for a step's first rows: what was before is forgotten
        self.value.lerp_(mean.to(self.value.dtype), share.to(self.value.dtype))
        self.rows.add_(rows)
