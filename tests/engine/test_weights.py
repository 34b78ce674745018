"""The moving average of weights."""

from __future__ import annotations

import torch
from torch import nn

from fathom.engine.weights import MovingAverage


class Bounded(nn.Module):
    """A weight, a running statistic that is saved, and a constant that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("bounds", torch.tensor([float("-inf"), float("inf")]), persistent=False)


def test_the_average_follows_its_formula_and_keeps_constants() -> None:
    module = Bounded()
    average = MovingAverage(module, decay=0.9)
    expected = torch.zeros(2)
    for step in range(5):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
            module.running.fill_(-step - 1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    torch.testing.assert_close(average.values["weight"], expected)
    torch.testing.assert_close(average.values["running"], -expected)
    assert torch.equal(average.values["bounds"], module.bounds)
