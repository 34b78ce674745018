"""What one family's file gives to be measured: the same network twice, ours and the reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One comparison: a training step of either network on the same batch, with the same weights.

    Attributes:
        family: the file of ours.
        name: of the preset and the size of the batch, for the table.
        reference: the library whose network is compared with.
        ours, theirs: the networks, in training mode.
        run_ours, run_theirs: the network -> what it gives out for the batch; its mean square is the loss.
        images: whether the networks are convolutional, so that either is given the memory layout that suits it best.
    """

    family: str
    name: str
    reference: str
    ours: nn.Module
    theirs: nn.Module
    run_ours: Callable[[nn.Module], Tensor]
    run_theirs: Callable[[nn.Module], Tensor]
    images: bool = False
