"""When memory runs out: how that is told from other errors, and how a run goes on with less at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fathom.core.errors import TrainingError
from fathom.engine.records import Chose

if TYPE_CHECKING:
    from fathom.engine.run import Run


def ran_out(error: BaseException) -> bool:
    """Say whether an error means that there was too little memory."""
    short = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, short) or "can't allocate memory" in str(error)


def fits(work: Callable[[], None]) -> bool:
    """Do the work; return whether there was memory enough for it."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    return True


def free(device: torch.device) -> None:
    """Give back the memory of what was broken off."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def take_less(run: Run, rows: int) -> None:
    """Have the run work through twice as many parts of each batch, so that fewer rows are in memory at once.

    Args:
        rows: of the batch, in this process.

    Raises:
        TrainingError: a part is one row already.
    """
    parts = run.knobs.accumulate
    if parts >= rows:
        raise TrainingError(
            f"Memory ran out at a single row of a batch of {rows} rows; a smaller model or shorter inputs may fit."
        )
    run.knobs = replace(run.knobs, accumulate=min(2 * parts, rows))
    why = f"memory ran out at {-(-rows // parts)} rows; the batch still has {rows}, but batch norm sees each part alone"
    choice = Chose(what="accumulate", value=str(run.knobs.accumulate), why=why)
    run.chosen = [*(c for c in run.chosen if c.what != "accumulate"), choice]
    run.news.append(choice)
    free(run.device)
