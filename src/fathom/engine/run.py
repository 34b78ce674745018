"""One run: everything that changes while an objective is trained, and how it is saved and restored.

All of a run's state is in the objective's weights and in the fields listed in `Run.snapshot`; what is not there must
be a pure function of what is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fathom.core import config
from fathom.core.errors import ConfigError, DataError, TrainingError
from fathom.core.objective import Objective
from fathom.core.types import Batch, TrainingData
from fathom.engine import (
    account,
    allocator,
    distributed,
    fingerprint,
    memory,
    order,
    schedule,
    shard,
    validate,
    weights,
)
from fathom.engine.checkpoint import Snapshot
from fathom.engine.knobs import Knobs, asked
from fathom.engine.pace import Pace
from fathom.engine.plan import Plan
from fathom.engine.randomness import Randomness
from fathom.engine.records import Chose, Epoch
from fathom.engine.showing import Showing
from fathom.engine.step import TROUBLE_LIMIT, Stepper

_DETERMINISM: Any = torch.utils.deterministic
FORGETTING = 0.95  # of the speed, from one look to the next
VALIDATION = -1  # the step whose randomness every validation has


class Run:
    """The state of one training run."""

    def __init__(
        self, objective: Objective, data: TrainingData, plan: Plan, identity: Mapping[str, Any] | None = None
    ) -> None:
        self.rows = len(data.train)
        if not self.rows:
            raise DataError("There are no training rows; give a source with at least one usable row.")
        self.objective, self.data, self.identity = objective, data, dict(identity or {})
        self.plan = plan.resolved(self.rows)
        if plan.accumulate > self.plan.batch_size:
            raise ConfigError(
                f"Option 'accumulate' was given {plan.accumulate}; a batch of {self.plan.batch_size} rows cannot be "
                "cut into more parts than it has rows."
            )
        self.world = distributed.join()
        self.world.check(self.rows, self.plan.batch_size)
        self.device = self.world.device(plan.device)
        if plan.precision == "fp16" and self.device.type == "cpu":
            raise ConfigError("Option 'precision' was given fp16, which needs a GPU; on a CPU give bf16, fp32 or auto.")
        self.valid_rows = validate.rows_used(len(data.valid), self.rows) if data.valid is not None else 0
        self.objective.to(self.device).train()
        self.world.spread(list(weights.weights(objective).values()))
        self.sharding: shard.Sharding | None = None
        if plan.shard and self.world.size > 1:
            shard.refuse_what_cannot(objective, plan.optimizer)
            self.sharding = shard.Sharding(objective, self.device, self.world.size)
        self.stepper = Stepper(objective, self.plan, self.device, self.world, self.sharding)
        self.order = order.Order(data.train, self.plan.batch_size, plan.seed, objective.together)
        stream = order.mix(plan.seed, self.world.rank) if self.world.rank else plan.seed
        self.random = Randomness(stream, self.device)  # a process of its own varies its rows in a way of its own
        self.pace = Pace(
            order.steps_per_epoch(self.rows, self.plan.batch_size), self.plan.epochs, plan.minutes, plan.evaluate_every
        )
        self._threads_before = torch.get_num_threads()
        self._exact_before = (torch.get_deterministic_debug_mode(), _DETERMINISM.fill_uninitialized_memory)
        self.knobs = asked(plan, self._threads_before)
        self.epoch = self.batch = self.step = 0
        self.history: list[Epoch] = []
        self.chosen: list[Chose] = []
        self.news: list[Chose] = []  # of them, what was not reported yet
        self.best: dict[str, Tensor] = {}
        self.best_epoch: int | None = None
        self.stale = 0  # validations since the best
        self.showing = Showing()
        self.reason = ""  # why the run is over; empty while it is not
        self._skipped = 0  # steps not applied that were looked at
        self.validation_seconds = 0.0  # that the last one took
        self.aside_seconds = 0.0  # of this session that went into anything but steps
        self._recent = [0.0, 0.0]  # seconds and steps of late, older ones counting less
        self._marked = [0.0, 0]  # seconds and step when the speed was last looked at
        self._before = 0.0  # seconds of earlier sessions
        self._began = time.perf_counter()
        self._epoch_began, self.epoch_rows = self._began, 0

    @property
    def seconds(self) -> float:
        """Seconds spent on this run, interruptions not counted."""
        return self._before + time.perf_counter() - self._began

    def turn_knobs(self) -> None:
        """Put `knobs` into effect."""
        torch.set_num_threads(self.knobs.threads)
        # On two threads even a plain `weight[index]` has a gradient whose sum depends on who came first.
        torch.set_deterministic_debug_mode("warn")
        _DETERMINISM.fill_uninitialized_memory = False
        self.stepper.set_precision(self.knobs.precision)
        if self.sharding is not None:
            return  # pieces are flat
        layout = torch.channels_last if self.knobs.channels_last else torch.contiguous_format
        self.objective.to(memory_format=layout)  # type: ignore[call-overload]
        allocator.set_memory(self.knobs.memory)
        self.stepper.form.turn_to(self.knobs.form if self.world.size == 1 else "plain", self.knobs.precision)

    def measure(self, choose: Callable[[Run], list[Chose]]) -> None:
        """Let `choose` turn the knobs and plan the length; of several processes the first one's choice counts."""
        if self.sharding is not None:
            return self.turn_knobs()  # a step takes all processes, and each would take another number of them
        together, alone = self.world, distributed.World()
        self.world = self.stepper.world = alone
        try:
            found = choose(self)
        finally:
            self.world = self.stepper.world = together
        mine = [config.as_dict(self.knobs), config.as_dict([*self.chosen, *found]), self.pace.state()]
        knobs, chosen, pace = together.share(mine)
        self.knobs, self.chosen = config.build(Knobs, knobs), [Chose(**each) for each in chosen]
        self.news = []
        self.pace.restore(pace)
        return self.turn_knobs()

    def leave(self) -> None:
        """Give back what belongs to the process."""
        torch.set_num_threads(self._threads_before)
        torch.set_deterministic_debug_mode(self._exact_before[0])
        _DETERMINISM.fill_uninitialized_memory = self._exact_before[1]
        self.stepper.clear()
        allocator.set_memory("returned")
        if self.sharding is not None:
            if self.reason:
                self.sharding.gather()
            return
        self.objective.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def batches(self) -> tuple[Tensor, ...]:
        """Return the row numbers of each batch of the present epoch."""
        self._epoch_began, self.epoch_rows = time.perf_counter(), 0
        return self.order.batches(self.epoch)

    def train_on(self, index: Tensor) -> None:
        """Take one step on the rows at `index` [B].

        Raises:
            TrainingError: memory ran out at a single row.
        """
        step = self.step
        self._draw(step)
        progress = self.pace.progress(step)
        rate = self.plan.learning_rate * schedule.factor(progress, self.plan.schedule, self.plan.warmup)
        while not memory.fits(lambda: self.stepper(step, progress, rate, self._gather(index))):
            self.stepper.undo()
            memory.take_less(self, len(index) // self.world.size)
            self._draw(step)
        self.step += 1
        self.batch += 1
        self.epoch_rows += len(index)

    def _draw(self, step: int) -> None:
        """Seed what is random in a step."""
        self.random.at_step(step)
        if self.world.size > 1:
            self.world.reseed(self.plan.seed, step)

    def begin(self) -> None:
        """Start the clock by which the speed of steps is told, before the first step of a session."""
        self.aside_seconds = self.seconds
        self._marked = [0.0, self.step]

    def adjust_length(self, saving_seconds: float) -> None:
        """Where there is a time limit, plan the number of steps anew by the speed of late."""
        now = self.seconds - self.aside_seconds
        taken = (now - self._marked[0], self.step - self._marked[1])
        self._recent = [FORGETTING * old + new for old, new in zip(self._recent, taken, strict=True)]
        self._marked = [now, self.step]
        seconds = self._recent[0] / max(self._recent[1], 1e-9)
        aside = saving_seconds + self.showing.seconds
        self.pace.adjust(self.step, self.seconds + aside, seconds, self.validation_seconds)

    def check_trouble(self) -> str:
        """Return a sentence, now and then, if steps could not be applied since the last look.

        Raises:
            TrainingError: too many in a row were not.
        """
        streak, skipped = int(self.stepper.streak), int(self.stepper.skipped)
        if skipped == self._skipped:
            return ""
        self._skipped = skipped
        what = self.stepper.trouble or f"a loss or gradient is not finite before step {self.step}"
        self.stepper.trouble = ""
        where = f"{what} (epoch {self.epoch + 1}, batch {self.batch})"
        limit = 3 * TROUBLE_LIMIT if self.knobs.precision == "fp16" else TROUBLE_LIMIT
        if streak >= limit:
            raise TrainingError(
                f"Training stopped after {streak} steps in a row that could not be applied: {where}; the weights are "
                f"those before them. A learning_rate below {self.plan.learning_rate:g} or cleaner inputs may help."
            )
        if self.knobs.precision == "fp16" or skipped & (skipped - 1):  # told at 1, 2, 4, 8, …
            return ""
        return f"Steps left out so far: {skipped}; the last because {where}."

    def time_validation(self, most: int) -> float:
        """Return the seconds that a validation will take, from one of so many rows at most."""
        rows = min(self.valid_rows, most)
        if rows:
            self._validate(rows)
            self.validation_seconds *= self.valid_rows / rows
        return self.validation_seconds

    def _validate(self, wanted: int) -> dict[str, float]:
        """Return the validation metrics, of the moving average where one is kept."""
        if self.data.valid is None or not wanted:
            return {}
        began = time.perf_counter()
        with weights.averaged(self.objective, self.stepper.average):
            metrics = self._judge(wanted)
        self.validation_seconds = time.perf_counter() - began
        self.aside_seconds += self.validation_seconds
        return metrics

    def _judge(self, wanted: int) -> dict[str, float]:
        """Return the metrics, of fewer rows at once where memory runs out."""
        found: dict[str, float] = {}
        rows = self.knobs.judged or 2 * -(-self.plan.batch_size // self.knobs.accumulate)

        def judge() -> None:
            self.random.at_step(VALIDATION)
            valid, precision = self.data.valid, self.stepper.autocast
            assert valid is not None
            found.update(validate.evaluate(self.objective, valid, wanted, rows, self.move, precision, self.world))
            if self.sharding is not None:
                self.sharding.rest()

        while not memory.fits(judge):
            if rows == 1:
                raise TrainingError("Memory ran out at a single validation row; a smaller model or inputs may fit.")
            rows = -(-rows // 2)
            self.knobs = replace(self.knobs, judged=rows)
            memory.free(self.device)
        return found

    def end_epoch(self) -> tuple[Epoch, bool]:
        """Validate, keep the best, decide whether to stop; return the record and whether the best weights changed."""
        speed = self.speed()
        done = self.step >= self.pace.total
        due = done or (self.epoch + 1) % self.plan.evaluate_every == 0
        metrics = self._validate(self.valid_rows) if due else {}
        better = self._is_better(metrics)
        if better:
            average = self.stepper.average
            self.best = weights.copy(average.values if average is not None else weights.weights(self.objective))
            self.best_epoch = self.epoch + 1
        if metrics:
            self.stale = 0 if better else self.stale + 1
        if done:
            self.reason = "complete" if self.pace.total >= self.pace.most else "time"
        elif self.plan.patience and self.stale >= self.plan.patience:
            self.reason = "patience"
        if due:
            self.showing.look(self, VALIDATION)
        record = Epoch(
            epoch=self.epoch + 1,
            step=self.step,
            train=self.stepper.meter.means(),
            valid=metrics,
            learning_rate=self.rate(),
            samples_per_second=speed,
            seconds=self.seconds,
            seconds_left=0.0 if self.reason else account.seconds_left(self),
            best=better,
        )
        self.history.append(record)
        self.stepper.meter.sums.clear()
        self.epoch, self.batch = self.epoch + 1, 0
        return record, better

    def choose_weights(self) -> str:
        """Put the weights that the plan keeps into the objective; return which they are."""
        live = weights.weights(self.objective)
        if self.plan.keep == "best" and self.best:
            weights.assign(live, self.best)
            return f"best, of epoch {self.best_epoch}"
        if self.stepper.average is not None:
            weights.assign(live, self.stepper.average.values)
            return "moving average"
        return "last"

    def snapshot(self) -> Snapshot:
        """Return the whole state; its tensors are the live ones (where they are spread, all processes take part)."""
        tensors = {f"weight/{name}": t for name, t in weights.weights(self.objective).items()}
        tensors |= self.stepper.tensors()
        values = {
            "plan": config.as_dict(self.plan),
            "identity": self.identity,
            "validation_seconds": self.validation_seconds,
            "data": self._data,
            "made_with": fingerprint.made_with(),
            "position": [self.epoch, self.batch, self.step],
            "pace": self.pace.state(),
            "seconds": self.seconds,
            "knobs": config.as_dict(self.knobs),
            "chosen": config.as_dict(self.chosen),
            "history": config.as_dict(self.history),
            "best_epoch": self.best_epoch,
            "stale": self.stale,
            "shown": list(self.showing.taken),
            "reason": self.reason,
            "random": self.random.state(),
            "stepper": self.stepper.state(),
        }
        if self.sharding is not None:
            return Snapshot(shard.whole(tensors), values, shard.whole(self.best))
        return Snapshot(tensors, values, self.best)

    def restore(self, snapshot: Snapshot) -> None:
        """Take back what `snapshot` returned.

        Raises:
            ConfigError: it belongs to another plan, other data or another model.
        """
        values, live = snapshot.values, weights.weights(self.objective)
        saved = {n.removeprefix("weight/"): t for n, t in snapshot.tensors.items() if n.startswith("weight/")}
        fingerprint.check(self.plan, self.identity, self.data, live, values, saved)
        self.knobs = config.build(Knobs, values["knobs"])
        self.turn_knobs()  # before the optimisers' tensors, which take their layout from the weights
        self.rewind(snapshot)
        self.pace.restore(values["pace"])
        self._before, self._began = values["seconds"], time.perf_counter()
        self.chosen = [Chose(**each) for each in values["chosen"]]
        self.history = [Epoch(**each) for each in values["history"]]
        self.best, self.best_epoch, self.stale = dict(snapshot.best), values["best_epoch"], values["stale"]
        self.reason, self.validation_seconds = values["reason"], values["validation_seconds"]
        self.showing.taken = list(values.get("shown", ()))  # earlier versions took none

    def rewind(self, snapshot: Snapshot) -> None:
        """Take back the state that steps change, and nothing else."""
        values, tensors = snapshot.values, snapshot.tensors
        saved = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        weights.assign(weights.weights(self.objective), saved)
        self.stepper.restore(tensors, values["stepper"])
        self.epoch, self.batch, self.step = values["position"]
        self.random.restore(values["random"])
        self._skipped = values["stepper"]["skipped"]

    def speed(self) -> float:
        """Return training rows a second since the epoch began (or was resumed)."""
        return self.epoch_rows / max(time.perf_counter() - self._epoch_began, 1e-9)

    @property
    def _data(self) -> dict[str, Any]:
        if not hasattr(self, "_data_print"):
            self._data_print = fingerprint.of_data(self.data)
        return self._data_print

    def _gather(self, index: Tensor) -> list[Batch]:
        """Return the micro-batches of a batch, on the device, varied."""
        parts = min(self.knobs.accumulate, len(index) // self.world.size)  # as many in each process
        index = self.world.share_of(index)
        pieces = (index,)
        if parts > 1:
            pieces = index.split(order.sizes(len(index), parts))  # type: ignore[assignment]
        found = [self.move(self.data.train.gather(piece)) for piece in pieces]
        augment = self.data.augment
        return found if augment is None else [augment(batch) for batch in found]

    def move(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return {key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()}

    def rate(self) -> float:
        """Return the learning rate of the last step."""
        progress = self.pace.progress(max(0, self.step - 1))
        return self.plan.learning_rate * schedule.factor(progress, self.plan.schedule, self.plan.warmup)

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if not metrics:
            return False
        name, value = next(iter(metrics.items()))
        before = [e.valid[name] for e in self.history if e.best and name in e.valid]
        return math.isfinite(value) and (not before or value < before[-1])
