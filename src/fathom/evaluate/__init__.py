"""How good a model is, how sure, and where it fails.

score, METRICS        every metric with a bootstrap interval
calibration           how far its confidence can be believed; residuals, of a number
baselines, verdict    what simple methods reach on the same rows, and whether deep learning is worth it
mistakes, slices      where it fails, and for whom it does worse
recall                how often the nearest neighbour is of the same class
measures, grid        what an objective without targets reaches, and many images as one picture
Evidence, appraise    all of this as one plain value, stored as JSON
report                the same as one HTML page
"""

from fathom.evaluate.baselines import Baseline, baselines
from fathom.evaluate.calibrate import calibration, residuals
from fathom.evaluate.compare import verdict
from fathom.evaluate.evidence import (
    ColumnEvidence,
    DataEvidence,
    Evidence,
    RunEvidence,
    SetAsideEvidence,
    TargetEvidence,
    appraise,
    from_json,
    to_json,
)
from fathom.evaluate.measures import measures
from fathom.evaluate.mistakes import mistakes
from fathom.evaluate.pictures import grid
from fathom.evaluate.report import report
from fathom.evaluate.retrieve import neighbours, recall
from fathom.evaluate.score import METRICS, score
from fathom.evaluate.slices import slices

__all__ = [
    "METRICS",
    "Baseline",
    "ColumnEvidence",
    "DataEvidence",
    "Evidence",
    "RunEvidence",
    "SetAsideEvidence",
    "TargetEvidence",
    "appraise",
    "baselines",
    "calibration",
    "from_json",
    "grid",
    "measures",
    "mistakes",
    "neighbours",
    "recall",
    "report",
    "residuals",
    "score",
    "slices",
    "to_json",
    "verdict",
]
