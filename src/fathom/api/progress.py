"""What a person sees while a model trains: a live bar on a terminal; elsewhere a line an epoch, and one a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fathom.engine.records import Chose, Epoch, Finished, Record, Started, Step, Warned

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MEASURED = ("memory", "threads", "channels_last", "precision", "form", "remembered")
SILENCE = 60.0  # seconds after which a run that prints lines says where it stands


def say(text: str) -> None:
    """Print one line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def watch(records: Iterator[Record], show: bool) -> Iterator[Record]:
    """Yield the records on, shown to the user on the way if `show`."""
    if not show:
        yield from records
    elif sys.stderr.isatty():
        yield from _with_bar(records)
    else:
        yield from _with_lines(records)


def clock(seconds: float) -> str:
    """Return a duration as 0:42, 12:05 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _with_lines(records: Iterator[Record]) -> Iterator[Record]:
    told: float | None = None  # seconds of the run when something was last said of how it goes
    for record in records:
        if isinstance(record, Step):
            told = record.seconds if told is None else told
            if record.seconds - told >= SILENCE:
                say(f"epoch {record.epoch}, step {record.step:,} of {record.steps:,}: {_state(record)}")
                told = record.seconds
        elif isinstance(record, Epoch):
            told = record.seconds
        _log(record, say)
        yield record


def _with_bar(records: Iterator[Record]) -> Iterator[Record]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=1.0, state="")
        for record in records:
            if isinstance(record, Step):
                _advance(bar, task, record)
            else:
                _log(record, console.out)
            yield record


def _advance(bar: Progress, task: TaskID, step: Step) -> None:
    bar.update(task, completed=step.progress, description=f"epoch {step.epoch}", state=_state(step))


def _state(step: Step) -> str:
    return f"{_values(step.train)} · {step.samples_per_second:,.0f} samples/s · {clock(step.seconds_left)} left"


def _log(record: Record, line: Callable[[str], None]) -> None:
    if isinstance(record, Started):
        again = f", going on from step {record.step:,}" if record.step else ""
        line(
            f"training on {record.rows:,} rows ({record.valid_rows:,} to validate), {record.parameters:,} parameters, "
            f"{record.device}, {record.optimizer}, batches of {record.batch_size}{again}"
        )
    elif isinstance(record, Chose) and record.what == "settings":
        line(f"{record.gain:.1f}× over PyTorch's defaults: {record.value}; {record.why}")
    elif isinstance(record, Chose) and record.what not in MEASURED:  # those the settings sum up
        gain = f", {record.gain:.1f}× as fast" if record.gain > 1.05 else ""
        line(f"chose {record.what} = {record.value}: {record.why}{gain}")
    elif isinstance(record, Epoch):
        line(_epoch_line(record))
    elif isinstance(record, Warned):
        line(f"warning: {record.message}")
    elif isinstance(record, Finished):
        line(f"trained {record.epochs} epochs in {clock(record.seconds)} ({record.reason}); kept: {record.kept}")


def _epoch_line(epoch: Epoch) -> str:
    valid = f" · validation {_values(epoch.valid)}" if epoch.valid else ""
    best = " *" if epoch.best else ""
    return (
        f"epoch {epoch.epoch}: train {_values(epoch.train)}{valid}{best} · "
        f"{epoch.samples_per_second:,.0f} samples/s · {clock(epoch.seconds)}, {clock(epoch.seconds_left)} left"
    )


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
