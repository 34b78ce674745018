"""The gradient of several micro-batches as that of the one batch that they are parts of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.errors import TrainingError
from fathom.core.types import Loss


class Sums:
    """Takes in the loss of each micro-batch and leaves the gradient of the whole in the parameters.

    Summands of a loss that are means of different units are kept apart until all of their units are counted: the mean
    over a batch of each is then exact, whatever the parts have of either.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        inputs: Sequence[nn.Parameter] | None,
        name: str,
        scale: float,
        alone: bool,
    ) -> None:
        """
        Args:
            parameters: whose gradients are looked at.
            inputs: whose gradients are computed; None: of all that there are.
            name: of the phase, for messages.
            scale: of the loss in half precision.
            alone: there is one micro-batch, whose mean is that of the whole.
        """
        self.parameters, self.inputs, self.name, self.scale, self.alone = parameters, inputs, name, scale, alone
        self.weights: list[Any] = []  # units of each summand so far
        self.grads: list[list[Tensor | None]] = []  # of each summand, where there are several
        self._show([None] * len(parameters))

    def add(self, loss: Loss) -> None:
        """Take in the gradient of one micro-batch's loss."""
        terms = loss.terms if loss.terms and not self.alone else (loss,)
        for index, term in enumerate(terms):
            value = term.total
            if not self.alone:
                value = value * term.weight
                self._count(index, term.weight)
            if self.scale != 1.0:
                value = value * self.scale
            if len(terms) == 1:
                value.backward(inputs=self.inputs)
                continue
            self._show(self.grads[index])
            value.backward(inputs=self.inputs, retain_graph=index + 1 < len(terms))
            self.grads[index] = [p.grad for p in self.parameters]

    def finish(self) -> None:
        """Leave the gradient of the whole in the parameters.

        Raises:
            TrainingError: no parameter has a gradient.
        """
        if len(self.weights) > 1:
            self._show(self._together())
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not grads:
            raise TrainingError(f"No weight has a gradient in phase '{self.name}': its loss depends on none.")
        if len(self.weights) == 1:
            torch._foreach_div_(grads, self.weights[0])
        if self.scale != 1.0:
            torch._foreach_mul_(grads, 1 / self.scale)

    def _count(self, index: int, weight: Any) -> None:
        if index == len(self.weights):
            self.weights.append(weight)
            self.grads.append([None] * len(self.parameters))
        else:
            self.weights[index] = self.weights[index] + weight

    def _show(self, grads: list[Tensor | None]) -> None:
        for p, grad in zip(self.parameters, grads, strict=True):
            p.grad = grad

    def _together(self) -> list[Tensor | None]:
        """Return the sum of the summands' means."""
        found: list[Tensor | None] = [None] * len(self.parameters)
        for weight, grads in zip(self.weights, self.grads, strict=True):
            for index, grad in enumerate(grads):
                if grad is not None:
                    mean, before = grad / weight, found[index]
                    found[index] = mean if before is None else before.add_(mean)
        return found
