"""A norm that divides by the root of the mean square.

Source: Zhang, Sennrich, Root Mean Square Layer Normalization, 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight, over the last dimension: [..., D] -> [..., D].

    PyTorch has one kernel for it on graphics cards, and a compiler makes one; on a processor it goes through the
    numbers a dozen times, for which there is a shorter way here.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and x.dtype == self.weight.dtype
        if trained and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _ByHand.apply(x, self.weight, self.epsilon)  # type: ignore[no-any-return]
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class _ByHand(torch.autograd.Function):
    """With u = x/√(mean(x²) + ε) and g what comes back, x is owed (g·w − u · mean(g·w·u))/√(mean(x²) + ε)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]  # [..., 1]
        inverse = square.add_(epsilon).rsqrt_()
        unit = x * inverse
        ctx.save_for_backward(unit, weight, inverse)
        return unit * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, weight, inverse = ctx.saved_tensors
        product = gradient * unit  # [..., D]
        along = (product @ weight).unsqueeze(-1) / len(weight)  # [..., 1]
        owed = torch.addcmul(gradient * weight, unit, along, value=-1).mul_(inverse)
        return owed, product.reshape(-1, len(weight)).sum(0), None
