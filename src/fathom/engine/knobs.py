"""What may be measured and chosen before the first step; kept to the run's end and in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.engine.plan import Plan


@dataclass
class Knobs:
    """How steps are run. It nearly all changes how results are rounded, so a resumed run takes it as it was."""

    threads: int
    precision: str
    channels_last: bool
    accumulate: int = 1  # parts that a batch is worked through in: more than asked for where memory ran out
    judged: int = 0  # rows of a validation at once; 0: twice a part
    form: str = "plain"  # plain, recorded or compiled
    memory: str = "returned"  # what becomes of freed memory: returned to the system, or kept; no result depends on it


def asked(plan: Plan, threads: int) -> Knobs:
    """Return what the plan asks for, with PyTorch's own way where that is left to be measured."""
    return Knobs(
        plan.threads or threads,
        "fp32" if plan.precision == "auto" else plan.precision,
        plan.channels_last == "yes",
        plan.accumulate,
        form="plain" if plan.form == "auto" else plan.form,
        memory="returned" if plan.memory == "auto" else plan.memory,
    )
