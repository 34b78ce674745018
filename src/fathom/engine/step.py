"""One training step: each phase's loss, its gradient, its optimiser, then the averages.

A step whose loss or gradient is not a finite number is not applied: weights, optimiser and buffers stay as they were.
On a CPU that is looked at before each step is applied. On a GPU it would make the processor wait for the device at
every step, so there the optimiser's own kernel is told to leave the weights, and the count is read now and then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fathom.core.errors import TrainingError
from fathom.core.objective import Objective
from fathom.core.types import Batch, Loss, Phase
from fathom.engine import memory, optim
from fathom.engine.distributed import SharedSums, World
from fathom.engine.form import Form
from fathom.engine.gradient import Sums
from fathom.engine.plan import Plan
from fathom.engine.randomness import generators
from fathom.engine.shard import Sharding, whole_of
from fathom.engine.weights import MovingAverage, Trailing, put

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TROUBLE_LIMIT = 10  # steps in a row that could not be applied before the run is given up
FIRST_SCALE, SCALE_RISES_AFTER = 2.0**16, 2000  # of the loss in fp16
PROTECTED = 1 << 20  # buffers of more elements than this in all are not copied before each step


class Meter:
    """Weighted sums of what an epoch's losses were; floats on a CPU, tensors on a GPU until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Any]] = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        entry = self.sums.get(name)
        if entry is None:
            self.sums[name] = [value * weight, weight]
        else:
            entry[0] = entry[0] + value * weight  # not in place: a weight may be a tensor that others hold
            entry[1] = entry[1] + weight

    def means(self) -> dict[str, float]:
        return {name: float(total) / max(float(weight), 1e-12) for name, (total, weight) in self.sums.items()}

    def state(self) -> dict[str, list[float]]:
        return {name: [float(total), float(weight)] for name, (total, weight) in self.sums.items()}


class Turn:
    """A phase with its optimisers."""

    def __init__(self, phase: Phase, plan: Plan, device: torch.device, objective: Objective, alone: bool) -> None:
        self.phase = phase
        self.parameters = [p for p in phase.parameters if p.requires_grad]
        if not self.parameters:
            raise TrainingError(f"Phase '{phase.name}' has no parameter that requires a gradient: nothing can learn.")
        tables = (m.weight for m in objective.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
        embeddings = frozenset(map(id, tables))
        self.optimizers: list[Optimizer] = optim.build(self.parameters, plan, device, embeddings)
        self.groups = [(g, g["scale"] * phase.learning_rate) for o in self.optimizers for g in o.param_groups]
        everything = {id(p) for p in objective.parameters() if p.requires_grad}
        # Where one phase moves all there is, the plain backward pass is the same and a little cheaper.
        self.inputs = None if alone and everything == {id(p) for p in self.parameters} else self.parameters
        self.label = "loss" if alone else phase.name
        self.prefix = "" if alone else f"{phase.name}."


class Stepper:
    """Applies training steps to an objective."""

    def __init__(
        self,
        objective: Objective,
        plan: Plan,
        device: torch.device,
        world: World | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.objective, self.plan, self.device = objective, plan, device
        self.world, self.sharding = world or World(), sharding
        phases = objective.phases()
        self.turns = [Turn(phase, plan, device, objective, len(phases) == 1) for phase in phases]
        self.average = MovingAverage(objective, plan.average) if plan.average else None
        averages = objective.averages()
        self.trailing = Trailing(averages) if averages else None
        self.meter = Meter()
        self._sums = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.immediate = (
            self.world.size > 1
            or device.type == "cpu"
            or not all(g.get("fused") for turn in self.turns for g, _ in turn.groups)
        )
        self._done = 0  # phases of a step that was broken off which are not to be taken again
        self._told: dict[str, list[Any]] | None = None  # the meter's sums before the present phase
        self.trouble = ""  # why the last step was not applied
        self.streak: Any = 0  # steps in a row that were not applied
        self.skipped: Any = 0
        self.scale, self.scale_age = FIRST_SCALE, 0
        self.autocast: AbstractContextManager[Any] = nullcontext()
        self.precision = "fp32"
        self.form = Form(objective, self._losses)
        slots = [(m._buffers, k) for m in objective.modules() for k, b in m._buffers.items() if b is not None]
        self._all_slots = slots
        self._generators = generators(device)
        self._slots = slots if sum(_tensor(slot).numel() for slot in slots) <= PROTECTED else []
        self._spare = [_tensor(slot).detach().clone() for slot in self._slots]

    def set_precision(self, precision: str) -> None:
        """Compute losses in fp32, or bf16 or fp16 where that is safe (automatic mixed precision)."""
        self.precision = precision
        dtype = DTYPES.get(precision)
        self.autocast = nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
        if precision == "fp16":
            self.immediate = True  # the scale of the loss must follow each overflow

    def __call__(self, step: int, progress: float, rate: float, parts: Sequence[Batch]) -> None:
        """Take one step.

        Args:
            step: its number, from 0.
            progress: share of the run done, for averages whose decay rises and weights that begin to move later.
            rate: learning rate, before the factors of phases and groups.
            parts: the micro-batches whose gradients make one.
        """
        self._protect()
        for number, turn in enumerate(self.turns):
            if step % turn.phase.every == 0 and number >= self._done:
                self._told = {name: list(entry) for name, entry in self.meter.sums.items()}
                self._turn(turn, step, progress, rate, parts)
            self._done = number + 1
        self._done, self._told = 0, None
        if self.world.size > 1:
            self.world.spread([_tensor(slot) for slot in self._all_slots])
        if self.average is not None:
            self.average.update(step)
        if self.trailing is not None:
            self.trailing.update(progress)

    def _turn(self, turn: Turn, step: int, progress: float, rate: float, parts: Sequence[Batch]) -> None:
        take = self._climb if turn.phase.climb else self._gradient
        finite = take(turn, step, parts)
        if finite is False:
            return self._refuse(turn)
        for group, factor in turn.groups:
            group["lr"] = rate * factor if progress >= group["from"] else 0.0
        return self._apply(turn, step, [p.grad for p in turn.parameters if p.grad is not None], finite)

    def _gradient(self, turn: Turn, step: int, parts: Sequence[Batch], noted: bool = True) -> Any:
        """Leave the gradient of the parts together in the parameters; return whether their loss is finite."""
        scale = self.scale if self.precision == "fp16" else 1.0
        if self.world.size > 1:
            return self._gradient_of_all(turn, step, parts, noted, scale)
        if len(parts) == 1 and scale == 1.0:
            whole = self.form.take(turn.phase.name, turn.parameters, parts[0])
            if whole is not None:
                return self._note(turn, whole, step, noted)
        sums = Sums(turn.parameters, turn.inputs, turn.phase.name, scale, len(parts) == 1)
        finite: Any = True
        for batch in parts:
            loss = self._losses(batch, turn.phase.name)
            found = self._note(turn, loss, step, noted)
            if found is False:
                return False
            finite = finite & found
            sums.add(loss)
        sums.finish()
        return finite

    def _gradient_of_all(self, turn: Turn, step: int, parts: Sequence[Batch], noted: bool, scale: float) -> bool:
        """The same for the parts of all processes. What one of them meets, all of them answer alike."""
        spread, outside = self.sharding is not None, self.meter
        sums = SharedSums(turn.parameters, turn.inputs, turn.phase.name, scale, self.world, spread)
        finite, short, self.meter = True, False, Meter()
        try:
            for number, batch in enumerate(parts):
                if self.sharding is not None:
                    self.sharding.part(number + 1 == len(parts))
                loss = self._losses(batch, turn.phase.name)
                finite = bool(self._note(turn, loss, step, noted)) and finite
                if finite or spread:  # the others wait for this process's pieces
                    sums.add(loss)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            short = True
        finally:
            mine, self.meter = self.meter, outside
        bad, short = self.world.agree(not finite, short)
        if short:
            raise MemoryError
        if bad:
            self.trouble = self.trouble or f"the loss of another process is not finite at step {step + 1}"
            return False
        sums.finish()
        found = self.world.total([value for entry in mine.state().values() for value in entry])
        for name, total, weight in zip(mine.sums, found[::2], found[1::2], strict=True):
            self.meter.add(name, total / max(weight, 1e-12), weight)
        return True

    def _climb(self, turn: Turn, step: int, parts: Sequence[Batch]) -> Any:
        """Leave the gradient at the place `climb` up the gradient; the weights, and buffers, are those of before.

        Source: Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization for Efficiently Improving
        Generalization, 2021, algorithm 1.
        """
        drawn = [generator.get_state() for generator in self._generators]
        first = self._gradient(turn, step, parts)
        if first is False:
            return False
        moved: list[Tensor] = [p for p in turn.parameters if p.grad is not None]
        grads = [p.grad for p in moved if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if self.immediate and not math.isfinite(norm.item()):
            self.trouble = f"the gradient of phase '{turn.phase.name}' is not finite at step {step + 1}"
            return False
        here = [p.detach().clone() for p in moved]
        buffers = [_tensor(slot).detach().clone() for slot in self._all_slots]
        for generator, state in zip(self._generators, drawn, strict=True):
            generator.set_state(state)
        try:
            with torch.no_grad():
                torch._foreach_mul_(grads, turn.phase.climb / (norm + 1e-12))
                torch._foreach_add_(moved, grads)
            second = self._gradient(turn, step, parts, noted=False)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, here)
                for slot, buffer in zip(self._all_slots, buffers, strict=True):
                    _tensor(slot).copy_(buffer)
        return second if second is False else first & second & torch.isfinite(norm)

    def _apply(self, turn: Turn, step: int, grads: list[Tensor], finite: Any) -> None:
        """Clip and move the weights, unless the gradient is not finite."""
        clip = self.plan.clip
        norm = whole_of(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if not self.immediate:
            bad = ~(torch.isfinite(norm) & finite)
            if clip:
                torch._foreach_mul_(grads, (clip / norm).clamp(max=1.0))
            for optimizer in turn.optimizers:
                optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by PyTorch's fused kernels
                optimizer.step()
            self._put_back(bad)
            self.streak, self.skipped = (self.streak + 1) * bad, self.skipped + bad
            return
        length = norm.item()
        if not math.isfinite(length):
            self.trouble = f"the gradient of phase '{turn.phase.name}' is not finite at step {step + 1}"
            self._refuse(turn)
            return
        if clip and length > clip:
            torch._foreach_mul_(grads, clip / length)
        for optimizer in turn.optimizers:
            optimizer.step()
        self.streak = 0
        if self.precision == "fp16":
            self.scale_age += 1
            if self.scale_age >= SCALE_RISES_AFTER:
                self.scale, self.scale_age = self.scale * 2, 0

    def _losses(self, batch: Batch, phase: str) -> Loss:
        if self.precision == "fp32":
            return self.form.losses(batch, phase)
        with self.autocast:
            return self.form.losses(batch, phase)

    def _note(self, turn: Turn, loss: Loss, step: int, noted: bool = True) -> Any:
        """Add the loss to the epoch's means; return whether it is finite (a tensor where asking would wait)."""
        total, weight, values = loss.total.detach(), loss.weight, loss.parts
        if not self.immediate:
            if not noted:
                return torch.isfinite(total)
            self.meter.add(turn.label, total.to(self._sums), weight)
            for name, part in values.items():
                self.meter.add(turn.prefix + name, part.detach().to(self._sums), weight)
            return torch.isfinite(total)
        number, weight = total.item(), float(weight)
        if not math.isfinite(number):
            named = [name for name, part in values.items() if not math.isfinite(float(part.detach()))]
            what = f"loss part '{named[0]}'" if named else "the loss"
            self.trouble = f"{what} is {number} at step {step + 1}"
            return False
        if not noted:
            return True
        self.meter.add(turn.label, number, weight)
        for name, part in values.items():
            self.meter.add(turn.prefix + name, part.item(), weight)
        return True

    def undo(self) -> None:
        """Leave everything as it was before the phase that a step was broken off in; the next call goes on with it."""
        if self._told is not None:
            self._put_back(None)
            self.meter.sums = self._told
        self.clear()

    def _refuse(self, turn: Turn) -> None:
        """Leave everything as it was before the step."""
        self._put_back(None)
        self.streak += 1
        self.skipped += 1
        if self.precision == "fp16":
            self.scale, self.scale_age = self.scale / 2, 0
        for p in turn.parameters:
            p.grad = None

    def _protect(self) -> None:
        """Copy the buffers: one bad batch would poison running statistics for ever."""
        if self._spare:
            torch._foreach_copy_(self._spare, [_tensor(slot) for slot in self._slots])

    def _put_back(self, where: Tensor | None) -> None:
        for slot, spare in zip(self._slots, self._spare, strict=True):
            buffer = _tensor(slot)
            buffer.copy_(spare if where is None else torch.where(where, spare, buffer))

    def clear(self) -> None:
        """Free the gradients."""
        for turn in self.turns:
            for p in turn.parameters:
                p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimisers' and the moving average's tensors by name."""
        found = {
            f"optimizer/{where}/{key}": value
            for where, state, _, _ in self._states()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        if self.average is not None:
            found |= {f"average/{name}": value for name, value in self.average.values.items()}
        return found

    def state(self) -> dict[str, Any]:
        """Return what else must survive, as plain values."""
        return {
            "meter": self.meter.state(),
            "streak": int(self.streak),
            "skipped": int(self.skipped),
            "scale": [self.scale, self.scale_age],
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take back what `tensors` and `state` returned."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            room, _, rest = name.partition("/")
            if room == "optimizer":
                where, _, key = rest.rpartition("/")
                found.setdefault(where, {})[key] = value
            elif room == "average" and self.average is not None:
                put(self.average.values[rest], value)
        for turn in self.turns:
            for optimizer in turn.optimizers:
                optimizer.state.clear()
        for where, _, optimizer, (p, fused) in self._states():
            for key, value in found.get(where, {}).items():
                # The layout must be the weight's own: fused kernels walk both as flat memory.
                like = torch.empty_like(p, dtype=value.dtype) if value.shape == p.shape else torch.empty_like(value)
                kept = put(like, value)
                optimizer.state[p][key] = kept.to(p.device) if fused or value.shape == p.shape else kept.cpu()
        self.meter.sums = {name: list(entry) for name, entry in state["meter"].items()}
        self.streak, self.skipped = state["streak"], state["skipped"]
        self.scale, self.scale_age = state["scale"]

    def _states(self) -> list[tuple[str, dict[str, Any], Optimizer, tuple[nn.Parameter, bool]]]:
        """Every parameter's optimiser state, with a name that is the same in each run of the same plan."""
        return [
            (f"{t}/{o}/{g}/{i}", optimizer.state.get(p, {}), optimizer, (p, bool(group.get("fused"))))
            for t, turn in enumerate(self.turns)
            for o, optimizer in enumerate(turn.optimizers)
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
        ]


def _tensor(slot: tuple[dict[str, Tensor | None], str]) -> Tensor:
    """Return the buffer that stands at a place now: a module may put another there at any step."""
    buffer = slot[0][slot[1]]
    assert buffer is not None
    return buffer
