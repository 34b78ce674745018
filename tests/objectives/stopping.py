"""A run left undisturbed beside the same one stopped and gone on with by an objective of other first weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fathom.core.objective import Objective
from fathom.core.types import TrainingData
from fathom.engine.loop import train
from fathom.engine.plan import Plan


def whole_and_resumed(
    make: Callable[..., Objective], data: TrainingData, plan: Plan, folder: Path, after: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the last state of both.

    Args:
        make: the objective to train; with `seed=5` the one that goes on.
        after: the epoch behind which the second run stops.
    """
    ends = []
    for stops in (False, True):
        task = make()
        if stops:
            records = train(task, data, plan, folder / str(stops))
            for record in records:
                if type(record).__name__ == "Epoch" and record.epoch == after:
                    records.close()
                    break
            task = make(seed=5)
        for _ in train(task, data, plan, folder / str(stops), resume=stops):
            pass
        ends.append({key: value.clone() for key, value in task.state_dict().items()})
    return ends[0], ends[1]
