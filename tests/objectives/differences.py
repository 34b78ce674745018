"""Gradients of an objective's loss beside those of differences, in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Total(nn.Module):
    """The loss of a batch, as a function of weights."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.task.losses(batch).total


def as_differences_say(task: nn.Module, batch: dict[str, torch.Tensor], names: Sequence[str]) -> bool:
    """Whether the gradient of these weights, all of which there have to be, is right; chance is the same each time."""
    weights = {f"task.{name}": p for name, p in task.named_parameters() if name in names}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.func.functional_call(Total(task), dict(zip(weights, values, strict=True)), (batch,))

    assert len(weights) == len(names)
    return torch.autograd.gradcheck(loss, tuple(p.detach().clone().requires_grad_() for p in weights.values()))
