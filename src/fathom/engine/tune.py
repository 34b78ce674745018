"""Before the first step: measure what is fastest here, on the real step, and keep that.

    threads         beside a busy neighbour one is often faster than two, and all that follows is measured sooner
    memory          freed blocks kept for the next step rather than returned to the system; slow steps keep them anyway
    channels_last   memory layout of convolutions
    precision       bf16, where the processor computes in it; it must also give the same losses
    form            the step recorded, which differs in no bit, or compiled, where that pays back in this run

They are tried in turn, each in short rounds that alternate, so that a disturbance meets all settings, and for no
longer than it takes to tell them apart. Where a whole step is too long for that, a part of a batch stands for it. A
change that rounds otherwise must gain a tenth, one that changes no bit a thirtieth; kept memory must only not lose.
All of the run's state is put back afterwards: only the knobs remain. What was found is kept for the next run of the
same model on the same machine, which then measures that alone beside the plain settings.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fathom.core.errors import TrainingError
from fathom.engine import allocator, compiled, remember, weights
from fathom.engine.checkpoint import Snapshot
from fathom.engine.knobs import Knobs, asked
from fathom.engine.records import Chose
from fathom.engine.run import Run
from fathom.engine.trial import ROUNDS, TURN, Trial

SHARE = 0.025  # of the run's estimated time goes into measuring: half of a twentieth, for it may take longer
LONGEST = 10.0  # seconds, at most
WORTH, EXACT = 1.1, 1.03  # times as fast that a change must be: any, and one on which no bit of a result depends
KEPT = 0.9  # as fast that kept memory may seem: it hardly ever harms, and a disturbance tells more than that
LEANER = 0.95  # as fast that fewer threads may be: they suffer less from whatever else runs
BUSY = 2.0  # as fast that one thread is where others wait for something else that runs
LEAST_STEPS = 40  # of a run that is worth measuring for
RECORDABLE = 0.1  # seconds of a step whose bookkeeping, which recording saves, may be a tenth
QUICK = 0.1  # seconds of a step for which it takes no time to measure what hardly ever harms
SAME_LOSS = 0.05  # relative difference that the first losses in bf16, or compiled, may have
COMPILING = (8.0, 0.5)  # seconds that compiling takes at first: of any model, and of each layer with weights
COMPILING_SHARE = 0.05  # of the run's estimated time that it may take
REMEMBERED = 60.0  # seconds that a run must take for what it found to be kept for others
KNOBS = ("threads", "memory", "channels_last", "precision", "form")


def tune(run: Run) -> list[Chose]:
    """Turn the run's knobs to what is fastest, plan its length if it has a time limit, and return what was chosen."""
    run.turn_knobs()
    limited = bool(run.plan.minutes)
    open_ = any(settings[1:] for _, settings in _settings(run, 0.0)) or _may_compile(run)
    if not limited and (run.pace.total < LEAST_STEPS or not open_):
        return []
    before = _keep(run)
    trial = Trial(run)
    try:
        noticed, small = _notice(run, trial)
        base = trial.begin(small)
        chosen = _choose_all(run, trial, before, base, run.plan.minutes * 60 or base * run.pace.total, noticed)
        seconds = base * _product(noticed) / _product(chosen[-1:])  # the last tells what all make together
        return chosen + ([_plan(run, trial, seconds)] if limited else [])
    finally:
        _put_back(run, before)


def _notice(run: Run, trial: Trial) -> tuple[list[Chose], float]:
    """Take one thread at once where something else keeps the processor busy.

    Steps on several threads then wait for it, tens of times as long: too long to find out by measuring in turns.

    Returns:
        what was chosen, and the seconds of a step on the smallest part (0: not measured).
    """
    settings = _threads(run)[1]
    if 1 not in settings[1:]:
        return [], 0.0
    kept, taken = run.knobs, {}
    for threads in (1, settings[0]):
        run.knobs = replace(kept, threads=threads)
        run.turn_knobs()
        taken[threads] = trial.part_seconds(trial.part)
    alone, all_ = taken[1], taken[settings[0]]
    if all_ < max(TURN, BUSY * alone):
        return [], all_
    run.knobs = replace(kept, threads=1)
    run.turn_knobs()
    why = f"other work keeps the processor busy: {all_ * 1e3:.3g} ms for {trial.part} rows; 1 thread: {alone * 1e3:.3g}"
    return [Chose(what="threads", value=_say("threads", 1), why=why, gain=all_ / alone)], alone


def _choose_all(
    run: Run, trial: Trial, before: Snapshot, base: float, length: float, noticed: list[Chose]
) -> list[Chose]:
    """Turn every knob that is open; return each choice and, where there are several, what they make together.

    Args:
        base: seconds of a step on a whole batch.
        length: of the run, in seconds.
        noticed: what was chosen before.
    """
    settings = _settings(run, base)
    run.knobs = replace(run.knobs, **{what: values[0] for what, values in settings})
    run.turn_knobs()
    tried = [(what, values) for what, values in settings if values[1:]]
    name = remember.key(run)
    known = (remember.recall(name) or {}) if length >= REMEMBERED else {}
    budget = min(LONGEST, SHARE * length)
    steps = ROUNDS[0] * sum(len(values) for _, values in tried)  # that are taken at least
    reserve = 1 if base <= QUICK else 2  # of slow steps, what comes before and beside takes as much again
    trial.shrink(base, budget / max(reserve * steps, 1))
    step = trial.seconds(base)
    chosen = _again(run, trial, before, tried, known.get("knobs"), budget / 2) if budget > 8 * step else None
    measured = False
    if chosen is None:
        chosen = _choose_each(run, trial, before, tried, budget, step)
        # What was not tried, or chosen in a moment that passes, is not to be remembered as the best.
        measured = len(chosen) == len(tried) and not noticed
    chosen = [*noticed, *chosen]
    gain = _product(chosen)
    compiling, why = _compile(run, trial, before, base * _product(noticed) / gain, length, known.get("compiling"))
    if compiling is not None:
        known = known | {"compiling": compiling}
        gain *= compiling["gain"] if run.knobs.form == "compiled" else 1.0
    if length >= REMEMBERED and ((measured and chosen) or compiling is not None):
        knobs = {what: getattr(run.knobs, what) for what in KNOBS} if measured else known.get("knobs")
        remember.keep(name, {"knobs": knobs, "compiling": known.get("compiling")})
    if not chosen and compiling is None:
        return []
    told = {what for what, _ in tried} | {choice.what for choice in noticed}
    value = ", ".join(_say(what, getattr(run.knobs, what)) for what in KNOBS if what in told or _moved(run, what))
    summary = Chose(what="settings", value=value or "the plain ones", why=why or "as measured", gain=gain)
    return [*chosen, summary]


def _choose_each(
    run: Run, trial: Trial, before: Snapshot, tried: Sequence[tuple[str, list[Any]]], budget: float, step: float
) -> list[Chose]:
    """Turn one knob after the other, as far as the time goes: what one leaves is for those after it."""
    chosen: list[Chose] = []
    began = time.perf_counter()
    for number, (what, settings) in enumerate(tried):
        left = began + budget - time.perf_counter()
        if left + budget < 2 * len(settings) * step:  # the last ones may take as long again
            break
        chosen.append(_choose(run, trial, before, what, settings, max(0.0, left) / (len(tried) - number)))
    return chosen


def _choose(run: Run, trial: Trial, before: Snapshot, what: str, settings: Sequence[Any], seconds: float) -> Chose:
    """Measure the settings of one knob, the present one first, for about so long, and turn it to the best."""
    knobs = [replace(run.knobs, **{what: value}) for value in settings]
    worth = {"memory": KEPT, "threads": LEANER, "form": EXACT}.get(what, WORTH)
    taken = trial.compare(knobs, seconds, worth)
    unit = "ms a step" if trial.rows == trial.whole else f"ms for {trial.rows} rows"
    why = "; ".join(f"{_say(what, v)}: {s * 1e3:.3g} {unit}" for v, s in zip(settings, taken, strict=True))
    if what == "threads":
        best = min((i for i, t in enumerate(taken) if t * worth <= min(taken)), key=lambda i: settings[i])
    else:  # the present setting, or its only alternative
        best = int(taken[1] * worth <= taken[0])
    if best and what == "precision" and not _same_losses(run, trial, before, knobs[best]):
        best, why = 0, f"{why}; but the losses differ"
    run.knobs = knobs[best]
    run.turn_knobs()
    return Chose(what=what, value=_say(what, settings[best]), why=why, gain=taken[0] / taken[best])


def _again(
    run: Run, trial: Trial, before: Snapshot, open_: Sequence[tuple[str, list[Any]]], known: Any, seconds: float
) -> list[Chose] | None:
    """Measure what an earlier run found beside the plain settings; None where that is nothing, or gains no more."""
    options = dict(open_)
    if not isinstance(known, Mapping) or not all(known.get(w, None) in options[w] for w in options):
        return None
    found = replace(run.knobs, **{what: known[what] for what in options})
    if found == run.knobs:
        return None
    tried = [run.knobs, found]
    if 1 in options.get("threads", []) and found.threads != 1:
        tried.append(replace(found, threads=1))  # the neighbours may be others than they were
    worth = WORTH if _rounds_otherwise(run.knobs, found) else EXACT
    taken = trial.compare(tried, seconds, worth)
    best = len(tried) - 1 if taken[-1] * LEANER <= taken[1] else 1
    if taken[best] * worth > taken[0]:
        return None
    found = tried[best]
    if found.precision != run.knobs.precision and not _same_losses(run, trial, before, found):
        return None
    run.knobs = found
    run.turn_knobs()
    why = f"remembered: {taken[best] * 1e3:.3g} ms a step, plainly {taken[0] * 1e3:.3g}"
    value = ", ".join(_say(what, getattr(found, what)) for what in options)
    return [Chose(what="remembered", value=value, why=why, gain=taken[0] / taken[best])]


def _compile(
    run: Run, trial: Trial, before: Snapshot, base: float, length: float, known: Any
) -> tuple[dict[str, float] | None, str]:
    """Compile the step where that will pay back, and keep it if it gains; return what was measured, and why or not."""
    if not _may_compile(run):
        return None, ""
    if isinstance(known, Mapping) and {"seconds", "gain"} <= known.keys():
        saved, cost = length * (1 - 1 / max(float(known["gain"]), 1e-9)), float(known["seconds"])
        if saved < 2 * cost:
            return None, f"compiling ({known['gain']:.2f}× after {cost:.0f} s, when last measured) would not pay back"
    elif COMPILING_SHARE * length < (cost := _compiling_seconds(run)):
        return None, f"compiling (about {cost:.0f} s) would not pay back"
    kept, setting, began = run.knobs, replace(run.knobs, form="compiled"), time.perf_counter()
    try:
        run.knobs = setting
        run.turn_knobs()
        trial.each_shape()
        cost = time.perf_counter() - began
        run.knobs = kept
        taken = trial.compare([kept, setting], max(1.0, 8 * base), WORTH)
        gain = taken[0] / taken[1]
        found = {"seconds": cost, "gain": gain}
        if gain >= WORTH and _same_losses(run, trial, before, setting):
            run.knobs = setting
            return found, f"compiled in {cost:.0f} s, {gain:.2f}×"
        return found, f"compiled in {cost:.0f} s it is no faster ({gain:.2f}×)"
    except TrainingError as error:
        run.knobs = kept
        return {"seconds": time.perf_counter() - began, "gain": 0.0}, str(error).split(";")[0]
    finally:
        run.turn_knobs()


def _settings(run: Run, step: float) -> list[tuple[str, list[Any]]]:
    """Return what may be tried of each knob where a step takes so many seconds, the present setting first."""
    return [_threads(run), _memory(run, step), _layouts(run), _precisions(run), _forms(run, step)]


def _memory(run: Run, step: float) -> tuple[str, list[str]]:
    """Kept memory hardly ever harms: to measure it is for steps that are quickly measured."""
    if run.plan.memory != "auto" or run.device.type != "cpu" or not allocator.possible():
        return "memory", [run.knobs.memory]
    return "memory", ["returned", "kept"] if step <= QUICK else ["kept"]


def _threads(run: Run) -> tuple[str, list[int]]:
    """All threads first; then one, and on a large machine a half and a quarter."""
    most = run.knobs.threads
    if run.plan.threads or run.device.type != "cpu" or most == 1:
        return "threads", [most]
    return "threads", list(dict.fromkeys([most, 1, *([most // 2, most // 4] if most >= 8 else [])]))


def _layouts(run: Run) -> tuple[str, list[bool]]:
    kernels = any(p.ndim == 4 and p.shape[-1] > 1 for p in run.objective.parameters())
    return "channels_last", [False, True] if run.plan.channels_last == "auto" and kernels else [run.knobs.channels_last]


def _precisions(run: Run) -> tuple[str, list[str]]:
    """bf16 is tried where the processor computes in it; elsewhere it is emulated and slow."""
    able = run.plan.precision == "auto"
    if run.device.type == "cuda":
        able = able and torch.cuda.is_bf16_supported(including_emulation=False)
    elif run.device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        able = able and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "precision", ["fp32", "bf16"] if able else [run.knobs.precision]


def _forms(run: Run, step: float) -> tuple[str, list[str]]:
    """A recording is of whole batches, and its proof looks at the random numbers of a processor."""
    able = run.plan.form == "auto" and run.device.type == "cpu" and run.knobs.accumulate == 1 and step <= RECORDABLE
    return "form", ["plain", "recorded"] if able and _alone() else [run.knobs.form]


def _rounds_otherwise(one: Knobs, other: Knobs) -> bool:
    """Whether settings differ in more than what no bit depends on."""
    return replace(one, memory=other.memory, form=other.form) != other


def _may_compile(run: Run) -> bool:
    """Whether compiling is open and possible."""
    able = run.plan.form == "auto" and _alone() and run.knobs.accumulate == 1
    return able and compiled.possible(run.device)


def _alone() -> bool:
    """Whether no other process trains along: while one tunes, its run knows of none."""
    found = torch.distributed
    return not (found.is_available() and found.is_initialized())


def _compiling_seconds(run: Run) -> float:
    layers = sum(any(True for _ in m.parameters(recurse=False)) for m in run.objective.modules())
    return COMPILING[0] + COMPILING[1] * layers


def _moved(run: Run, what: str) -> bool:
    """Whether a knob stands otherwise than at first, though it was not measured beside others: memory, or the form."""
    return what in ("form", "memory") and getattr(run.knobs, what) != getattr(asked(run.plan, 1), what)


def _say(what: str, value: object) -> str:
    if what == "threads":
        return f"{value} thread{'s' if value != 1 else ''}"
    if what == "channels_last":
        return "channels last" if value else "channels first"
    return f"{value} steps" if what == "form" else f"memory {value}" if what == "memory" else str(value)


def _same_losses(run: Run, trial: Trial, before: Snapshot, knobs: Knobs) -> bool:
    """Take the same first steps in both settings, and compare the mean loss."""
    means = []
    kept = run.knobs
    for setting in (kept, knobs):
        run.knobs = setting
        _put_back(run, before)
        trial.steps(min(10, run.pace.total))
        means.append(next(iter(run.stepper.meter.means().values()), float("nan")))
    run.knobs = kept
    return abs(means[0] - means[1]) <= SAME_LOSS * abs(means[0])


def _plan(run: Run, trial: Trial, seconds: float) -> Chose:
    """Set the number of steps by the speed of the settings that were chosen.

    Args:
        seconds: of a step, by what was measured so far; measured once more where that takes no time.
    """
    if trial.rows == trial.whole and seconds <= QUICK:
        seconds = trial.mean(min(0.25, SHARE * run.plan.minutes * 60))
    validation = run.time_validation(4 * trial.rows)
    run.pace.plan(0, run.seconds, seconds, validation)
    why = f"{seconds * 1e3:.3g} ms a step, {validation:.2g} s a validation, {run.plan.minutes:g} minutes in all"
    return Chose(what="steps", value=str(run.pace.total), why=why)


def _keep(run: Run) -> Snapshot:
    snapshot = run.snapshot()
    return Snapshot(weights.copy(snapshot.tensors), snapshot.values)


def _put_back(run: Run, before: Snapshot) -> None:
    run.turn_knobs()
    run.rewind(before)


def _product(chosen: Sequence[Chose]) -> float:
    found = 1.0
    for choice in chosen:
        found *= choice.gain
    return found
