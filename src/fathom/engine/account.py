"""What a run says of itself: how it starts, where it stands, how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fathom.engine.records import Finished, Started, Step

if TYPE_CHECKING:
    from fathom.engine.run import Run


def started(run: Run) -> Started:
    """Return what is said first."""
    count = [p.numel() for p in run.objective.parameters()]
    trainable = [p.numel() for p in run.objective.parameters() if p.requires_grad]
    return Started(
        rows=run.rows,
        valid_rows=run.valid_rows,
        parameters=sum(count),
        trainable=sum(trainable),
        epochs=-(-run.pace.total // run.pace.steps_per_epoch),
        steps=run.pace.total,
        batch_size=run.plan.batch_size,
        device=str(run.device),
        optimizer=run.plan.optimizer,
        learning_rate=run.plan.learning_rate,
        step=run.step,
        history=tuple(run.history),
    )


def progress(run: Run) -> Step:
    """Return where training stands."""
    return Step(
        step=run.step,
        steps=run.pace.total,
        epoch=run.epoch + 1,
        progress=run.step / run.pace.total,
        train=run.stepper.meter.means(),
        learning_rate=run.rate(),
        samples_per_second=run.speed(),
        seconds=run.seconds,
        seconds_left=seconds_left(run),
    )


def finished(run: Run, kept: str) -> Finished:
    """Return what is said last; `kept` says which weights the objective now holds."""
    best = next((e.valid for e in run.history if e.epoch == run.best_epoch), {})
    return Finished(
        reason=run.reason,
        epochs=run.epoch,
        steps=run.step,
        seconds=run.seconds,
        best_epoch=run.best_epoch,
        best=best,
        kept=kept,
        threads=run.knobs.threads,
        precision=run.knobs.precision,
        channels_last=run.knobs.channels_last,
        form=run.knobs.form,
        accumulate=run.knobs.accumulate,
        chosen=tuple(run.chosen),
        history=tuple(run.history),
        shown=tuple(run.showing.taken),
    )


def seconds_left(run: Run) -> float:
    """Return the estimate until the end of the plan: from the speed of this epoch, else of the run so far."""
    batch = run.rows / run.pace.steps_per_epoch
    speed = run.speed() if run.epoch_rows else run.step * batch / max(run.seconds, 1e-9)
    left = run.pace.total - run.step
    validations = left / run.pace.steps_per_epoch / run.plan.evaluate_every
    return left * batch / max(speed, 1e-9) + validations * run.validation_seconds
