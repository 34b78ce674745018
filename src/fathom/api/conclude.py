"""After training: measure the model on rows that it did not learn from, and gather the evidence."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from datetime import UTC, datetime
from shlex import quote
from typing import Any

import numpy as np
import torch

from fathom import __version__
from fathom.api.album import framed
from fathom.api.assemble import Assembled
from fathom.api.config import EvaluateConfig
from fathom.api.model import Model
from fathom.api.prepare import Material, Part
from fathom.api.translate import judged, translates
from fathom.artifact import Artifact, evaluating, measured, outputs
from fathom.artifact.rebuild import described
from fathom.core.config import as_dict, build, to_toml
from fathom.core.objective import Objective, predicted
from fathom.core.types import DataSpec
from fathom.engine.records import Epoch, Finished
from fathom.evaluate import (
    Baseline,
    ColumnEvidence,
    DataEvidence,
    Evidence,
    RunEvidence,
    SetAsideEvidence,
    TargetEvidence,
    appraise,
    baselines,
    measures,
    report,
    score,
    to_json,
)
from fathom.evaluate.evidence import SHOWN_SET_ASIDE

SHOWN_ROWS = 32  # that an objective may make pictures of


def conclude(
    material: Material, assembled: Assembled, finished: Finished, folder: str, during: list[dict[str, Any]]
) -> Model:
    """Return the trained model with everything that was measured of it; `folder` is where it will be kept, `during`
    what it showed while it was trained."""
    spec = material.preprocess.spec
    seed = assembled.plan.seed
    judged_on, part = material.judge
    aims = predicted(assembled.objective, spec)
    found = outputs(assembled.objective, part.prepared.store, aims) if aims else {}
    task = assembled.objective
    own = {} if aims else measures(measured(task, part.prepared.store), seed, summary=task.summary)
    trained = Artifact(task.eval(), spec, material.preprocess, {}, {})
    own |= judged(trained, part.rows([f.source for f in (*spec.inputs, *spec.targets)])) if translates(trained) else {}
    truth = {f.name: part.prepared.store.columns[f.target_key].numpy() for f in aims}
    scores = score(aims, found, truth, seed)
    rivals = _rivals(material, assembled, part) if aims else []
    targets = appraise(
        aims,
        found,
        truth,
        rivals=rivals,
        images={f.name: part.prepared.store.columns[f.key].numpy() for f in spec.images},
        texts={f.name: _texts(part, f.source) for f in spec.texts},
        columns=_plain_columns(spec, part, material),
        scores=scores,
        seed=seed,
        rows=(part.prepared.rows + 1).tolist(),
    )
    evidence = replace(
        _evidence(material, assembled, finished, targets, folder),
        measures=own,
        pictures=_pictures(assembled.objective, part),
        during=during,
    )
    metrics = {
        "judged_on": judged_on,
        "rows": len(part.prepared.rows),
        "test": scores,
        "measures": own,
        "baselines": [rival.record() for rival in rivals],
        "verdict": {target.name: target.verdict for target in targets},
    }
    files = {
        "config.toml": to_toml(assembled.settings.groups),
        "evidence.json": to_json(evidence).decode(),
        "report.html": report(evidence),
    }
    about = {"name": evidence.title, "source": evidence.data.source}
    config = {
        "model": described(assembled.entries["model"], assembled.objective.model),
        "objective": described(assembled.entries["objective"], assembled.objective),
        "about": about,
    }
    artifact = replace(trained, config=config, metrics=metrics)
    return Model(artifact, dict(assembled.entries), files)


def _rivals(material: Material, assembled: Assembled, judge: Part) -> list[Baseline]:
    config = build(EvaluateConfig, assembled.settings.of("evaluate"), "evaluate")
    if not config.baselines or judge is material.train:
        return []
    spec, known = material.preprocess.spec, material.labelled
    return baselines(
        known.prepared.store.columns,
        judge.prepared.store.columns,
        spec,
        {f.name: (_texts(known, f.source), _texts(judge, f.source)) for f in spec.texts},
        assembled.plan.seed,
        config.baseline_seconds,
    )


def _pictures(objective: Objective, part: Part) -> list[dict[str, str]]:
    """Return what the objective makes of a few rows, as pictures for the report."""
    store = part.prepared.store
    with evaluating(objective, next(objective.parameters()).device):
        shown = objective.show(store.gather(torch.arange(min(SHOWN_ROWS, len(store)))))
    return framed(shown)


def _texts(part: Part, column: str) -> list[str]:
    return [value or "" for value in part.rows([column]).to_series().cast(str, strict=False).to_list()]


def _plain_columns(spec: DataSpec, part: Part, material: Material) -> dict[str, list[Any]]:
    """Return the judged rows' numbers, categories and dates as the user wrote them."""
    kinds = {c.name: c.kind for c in material.columns}
    sources = dict.fromkeys(f.source for f in spec.inputs if kinds.get(f.source) not in ("text", "image"))
    return part.rows(list(sources)).to_dict(as_series=False)


def _evidence(
    material: Material, assembled: Assembled, finished: Finished, targets: list[TargetEvidence], folder: str
) -> Evidence:
    spec = material.preprocess.spec
    names = ", ".join(f.name for f in predicted(assembled.objective, spec)) or _task_name(assembled)
    return Evidence(
        title=f"{names} from {os.path.basename(material.table.origin.rstrip('/'))}",  # noqa: PTH119
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=_data_evidence(material, spec, assembled.notes),
        run=_run_evidence(assembled, finished),
        targets=targets,
        judged_on=material.judge[0],
        environment={
            "fathom": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        },
        commands=[
            ("predict new rows", f"fathom predict {quote(folder)} NEW_ROWS"),
            ("score other rows", f"fathom evaluate {quote(folder)} OTHER_ROWS"),
            ("train again, the same", f"fathom fit --config {quote(folder)}/config.toml --out AGAIN"),
        ],
    )


def _data_evidence(material: Material, spec: DataSpec, notes: tuple[str, ...]) -> DataEvidence:
    parts = {"train": material.train, "valid": material.valid, "test": material.test}
    used = {f.source or f.name for f in spec.inputs}
    targets = {f.name for f in spec.targets}
    return DataEvidence(
        source=material.table.origin,
        rows=sum(len(part.prepared.rows) for part in parts.values() if part),
        columns=[
            ColumnEvidence(
                name=c.name,
                kind=c.kind,
                role="target" if c.name in targets else "input" if c.name in used else "dropped",
                why=c.why,
                missing=c.missing,
                distinct=c.distinct,
                examples=list(c.examples),
            )
            for c in material.columns
        ],
        splits={name: len(part.prepared.rows) for name, part in parts.items() if part},
        how_split=material.how_split,
        overlaps=material.overlap,
        classes={f.name: dict(zip(f.classes, f.counts, strict=False)) for f in spec.targets if f.classes},
        set_aside=[
            SetAsideEvidence(where=s.where, row=s.row, column=s.column, reason=s.reason)
            for s in material.set_aside[:SHOWN_SET_ASIDE]
        ],
        set_aside_count=len(material.set_aside),
        notes=[*material.notes, *notes],
    )


def _run_evidence(assembled: Assembled, finished: Finished) -> RunEvidence:
    entry = assembled.entries["model"]
    return RunEvidence(
        model=entry.name if entry else type(assembled.objective.model).__name__,
        objective=_task_name(assembled),
        why=assembled.why,
        parameters=sum(p.numel() for p in assembled.objective.parameters()),
        epochs=[_epoch(epoch) for epoch in finished.history],
        best_epoch=finished.best_epoch if finished.kept.startswith("best") else None,
        stopped=finished.reason,
        seconds=finished.seconds,
        seed=assembled.plan.seed,
        tuner=[{"what": r.what, "chosen": r.value, "why": r.why} for r in finished.chosen],
        settings={
            f"{group}.{name}": as_dict(value)
            for group, options in assembled.settings.groups.items()
            for name, value in options.items()
        },
    )


def _task_name(assembled: Assembled) -> str:
    entry = assembled.entries["objective"]
    return entry.name if entry else type(assembled.objective).__name__


def _epoch(epoch: Epoch) -> dict[str, float | int | None]:
    train = {f"train_{name}": value for name, value in epoch.train.items()}
    more = {"learning_rate": epoch.learning_rate, "seconds": epoch.seconds}
    return {"epoch": epoch.epoch, **train, **epoch.valid, **more}
