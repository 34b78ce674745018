"""A step's forward and backward pass as one recorded program, played back without Python.

Small models spend most of a step in Python and in the bookkeeping of automatic differentiation. Here the operations
that a step carries out are recorded once, forward and backward, and played back by PyTorch's interpreter in C++: the
same kernels in the same order, so that not a bit differs. Recording takes a fraction of a second, where compiling
takes many.

A recording holds for one shape of batch, and only for what depends on tensors alone, shapes not on what they hold. So
it is used only once it has given the loss, the parts, the gradients, the buffers and the random state of the plain
step, to the bit, for three batches. What cannot be recorded is run as it is.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss
from fathom.engine.script import program

MOST_SHAPES = 4  # of batches that are recorded; an epoch has two
CHECKS = 3  # batches for which a recording must give what the plain step gives
Price = Callable[[Batch, str], Loss]


class CannotRecordError(Exception):
    """A step that is no fixed sequence of operations on tensors."""


class Recordings:
    """The recordings of one phase, by the shapes of batches.

    Args:
        objective: whose buffers are looked after.
        price: its losses, in the precision of the run.
        phase: what `price` is asked for.
        parameters: whose gradients are wanted.
    """

    def __init__(self, objective: Objective, price: Price, phase: str, parameters: Sequence[nn.Parameter]) -> None:
        self.objective, self.price, self.phase, self.parameters = objective, price, phase, list(parameters)
        self._found: dict[Any, _Shape] = {}

    def take(self, batch: Batch) -> Loss | None:
        """Leave the loss's gradient in the parameters and return the loss; None where the plain step is to be taken."""
        key = tuple((name, t.shape, t.dtype, t.stride()) for name, t in batch.items())
        shape = self._found.get(key)
        if shape is None:
            shape = self._found[key] = _Shape(self._record(batch) if len(self._found) < MOST_SHAPES else None)
        if shape.recording is None:
            return None
        if shape.checks < CHECKS:
            shape.checks += 1
            if not self._same(shape.recording, batch):
                shape.recording = None
            return None
        return shape.recording(batch)

    def _record(self, batch: Batch) -> Recording | None:
        kept = _Kept(self.objective)
        try:
            made = Recording(self.price, self.phase, self.parameters, batch, kept.storages)
            return None if kept.changed_otherwise() else made
        except Exception:  # PyTorch has a dozen kinds of errors for what it cannot record
            return None
        finally:
            kept.put_back()

    def _same(self, recording: Recording, batch: Batch) -> bool:
        """Whether it leaves what the plain step leaves, to the bit."""
        kept = _Kept(self.objective)
        left = self._outcome(self._plainly, batch, kept)
        try:
            right = self._outcome(recording, batch, kept)
        except RuntimeError:  # the interpreter cannot run what was recorded
            kept.put_back()
            return False
        return len(left) == len(right) and all(_equal(a, b) for a, b in zip(left, right, strict=True))

    def _plainly(self, batch: Batch) -> Loss:
        for p in self.parameters:
            p.grad = None
        loss = self.price(batch, self.phase)
        loss.total.backward(inputs=self.parameters)
        return loss

    def _outcome(self, step: Callable[[Batch], Loss], batch: Batch, kept: _Kept) -> list[Tensor | None]:
        loss = step(batch)
        numbers = [loss.total, *(loss.parts[name] for name in sorted(loss.parts)), torch.as_tensor(loss.weight)]
        grads = [None if p.grad is None else p.grad.detach() for p in self.parameters]
        found = [*(n.detach().clone() for n in numbers), *grads, *(b.clone() for b in self.objective.buffers())]
        found.append(torch.get_rng_state())
        kept.put_back()
        return found


class _Shape:
    """What is known of batches of one shape."""

    def __init__(self, recording: Recording | None) -> None:
        self.recording, self.checks = recording, 0


class _Kept:
    """What a step may change besides gradients: buffers, wherever they stand, and random states."""

    def __init__(self, objective: Objective) -> None:
        self._slots = [(m._buffers, k, b) for m in objective.modules() for k, b in m._buffers.items() if b is not None]
        self._values = [buffer.detach().clone() for _, _, buffer in self._slots]
        self._torch, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        tensors = [*objective.parameters(), *(buffer for _, _, buffer in self._slots)]
        self.storages = {t.untyped_storage().data_ptr() for t in tensors}

    def changed_otherwise(self) -> bool:
        """Whether something changed that a recording would not change again."""
        replaced = any(place[key] is not buffer for place, key, buffer in self._slots)
        here: Any = np.random.get_state()
        there: Any = self._numpy
        drawn = random.getstate() != self._python or here[2] != there[2] or not np.array_equal(here[1], there[1])
        return replaced or drawn

    @torch.no_grad()
    def put_back(self) -> None:
        for (place, key, buffer), value in zip(self._slots, self._values, strict=True):
            place[key] = buffer.copy_(value)
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


class Recording:
    """One recorded step: called with a batch, it leaves the gradients and returns the loss.

    Raises:
        CannotRecordError, or what PyTorch raises: the step is no fixed sequence of operations.
    """

    def __init__(
        self, price: Price, phase: str, parameters: list[nn.Parameter], batch: Batch, storages: set[int]
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        self.parameters, self._keys = parameters, list(batch)
        self._parts: list[str] = []
        self._weight: float | None = None
        self._moved: list[nn.Parameter] = []

        def forward_and_backward(*columns: Tensor) -> list[Tensor]:
            loss = price(dict(zip(self._keys, columns, strict=True)), phase)
            if loss.total.dtype != torch.float32:
                raise CannotRecordError(f"the loss is {loss.total.dtype}")
            tail = [loss.weight] if isinstance(loss.weight, Tensor) else []
            self._parts, self._weight = list(loss.parts), None if tail else float(loss.weight)
            grads = torch.autograd.grad(loss.total, parameters, allow_unused=True)
            seen = storages | {column.untyped_storage().data_ptr() for column in columns}
            pairs = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
            self._moved = [p for p, _ in pairs]
            return [loss.total, *loss.parts.values(), *tail, *(_own(g, p, seen) for p, g in pairs)]

        columns = list(batch.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, on the age of its interpreter
            graph = make_fx(forward_and_backward, tracing_mode="real")(*columns)
            if any(map(_unsteady, graph.graph.nodes)):  # it may pass every check, and fail at a batch much later
                raise CannotRecordError("how long some of its tensors are depends on values")
            self._held = _as_inputs(graph)
            self._play = program(graph.graph)

    def __call__(self, batch: Batch) -> Loss:
        with torch.no_grad():
            found = self._play(*self._held, *(batch[key] for key in self._keys))
        count = 1 + len(self._parts)
        parts = dict(zip(self._parts, found[1:count], strict=True))
        weight: Any = self._weight
        if weight is None:
            weight, count = found[count], count + 1
        if len(self._moved) < len(self.parameters):
            for p in self.parameters:
                p.grad = None
        for p, grad in zip(self._moved, found[count:], strict=True):
            p.grad = grad
        return Loss(found[0], parts, weight)


def _own(grad: Tensor, parameter: Tensor, seen: set[int]) -> Tensor:
    """Return the gradient in the layout of its parameter, in memory of its own, as optimisers take it."""
    place = grad.untyped_storage()
    if grad.stride() == parameter.stride() and place.data_ptr() not in seen and place.nbytes() == grad.nbytes:
        seen.add(place.data_ptr())
        return grad
    return torch.empty_like(parameter, requires_grad=False).copy_(grad)


def _unsteady(node: Any) -> bool:
    """Whether the shape of what an operation returns depends on more than shapes: rows that a mask chooses, …"""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    return any(place is not None and place.meta["val"].dtype in (torch.bool, torch.uint8) for place in node.args[1])


def _as_inputs(graph: Any) -> list[Tensor]:
    """Turn the tensors that a graph holds into its first inputs, and return them; drop what only marks gradients."""
    nodes = list(graph.graph.nodes)
    held: list[Tensor] = []
    for node in nodes:
        if node.op == "get_attr":
            held.append(getattr(graph, node.target).detach())
            with graph.graph.inserting_before(nodes[0]):
                given = graph.graph.placeholder(f"held_{len(held)}")
            node.replace_all_uses_with(given)
        elif node.target is not torch.ops.aten.detach.default:
            continue
        else:
            node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    return held


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors hold the same bits, not-a-number where the other is so too."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))
