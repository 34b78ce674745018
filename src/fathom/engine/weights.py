"""Sets of weights beside the live ones: the moving average, the best so far, the networks that trail others.

The weights of a module are all its parameters and buffers by name, non-persistent buffers too (a tied tensor once).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fathom.core.types import Average
from fathom.engine.schedule import decay

Weights = dict[str, Tensor]


def weights(module: nn.Module) -> Weights:
    """Return the module's live tensors by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def copy(source: Mapping[str, Tensor]) -> Weights:
    """Return copies, with the same memory layout."""
    return {name: tensor.detach().clone() for name, tensor in source.items()}


@torch.no_grad()
def assign(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy values of the same names into live tensors, in place."""
    for name, tensor in source.items():
        put(target[name], tensor)


@torch.no_grad()
def put(target: Tensor, source: Tensor) -> Tensor:
    """Copy a tensor into another, which may be spread over several processes while the first is whole."""
    if hasattr(target, "device_mesh") and not hasattr(source, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        mesh, places = target.device_mesh, target.placements
        source = distribute_tensor(source.to(target.device), mesh, places, src_data_rank=None)
    return target.copy_(source)


class MovingAverage:
    """Exponential moving average of an objective's weights: average ← decay · average + (1 − decay) · weights.

    For the first steps the decay is lower, (1 + n) / (10 + n) at the n-th, so that the random start is soon
    forgotten. Floating-point buffers of the state (running statistics) are averaged too. Other buffers are copied:
    those that are not saved are constants, which may be infinite, and an average with infinity is not a number.

    Source: Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.module = decay, module
        self.values = copy(weights(module))
        self._live = [(p, n) for n, p in module.named_parameters() if p.is_floating_point()]
        # A buffer is found by its place: a module may put another tensor there at any step.
        saved = module.state_dict().keys()
        self._buffers = [(_place(module, n), n, n in saved) for n, _ in module.named_buffers()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step of that number, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        live: list[Tensor] = [p for p, _ in self._live]
        kept = [self.values[n] for _, n in self._live]
        for (buffers, key), name, saved in self._buffers:
            buffer = buffers[key]
            assert buffer is not None
            if saved and buffer.is_floating_point():
                live.append(buffer)
                kept.append(self.values[name])
            else:
                self.values[name].copy_(buffer)
        torch._foreach_lerp_(kept, live, share)


@contextmanager
def averaged(module: nn.Module, average: MovingAverage | None) -> Iterator[None]:
    """For a while the module holds its moving average, where one is kept."""
    live = weights(module)
    aside = copy(live) if average is not None else {}
    try:
        if average is not None:
            assign(live, average.values)
        yield
    finally:
        assign(live, aside)


def _place(module: nn.Module, name: str) -> tuple[dict[str, Tensor | None], str]:
    parent, _, key = name.rpartition(".")
    return module.get_submodule(parent)._buffers, key


class Trailing:
    """The objective's own averages: targets that follow their sources after each step."""

    def __init__(self, averages: Sequence[Average]) -> None:
        self._averages = [(a, *_pairs(a)) for a in averages]

    @torch.no_grad()
    def update(self, progress: float) -> None:
        for average, sources, targets in self._averages:
            share = 1 - decay(progress, average.decay, average.final_decay)
            if targets:
                torch._foreach_lerp_(targets, sources, share)
            for ours, theirs in zip(average.target.buffers(), average.source.buffers(), strict=True):
                if average.buffers == "averaged" and ours.is_floating_point():
                    ours.lerp_(theirs, share)
                else:
                    ours.copy_(theirs)


def _pairs(average: Average) -> tuple[list[Tensor], list[Tensor]]:
    sources, targets = dict(average.source.named_parameters()), dict(average.target.named_parameters())
    assert sources.keys() == targets.keys(), "an average's source and target have the same parameters"
    return list(sources.values()), [targets[name] for name in sources]
