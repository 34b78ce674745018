"""The artifact: a trained model as a folder of plain files, which loading checks and never runs.

save, seal    write one whole, or not at all; take an edited file into the manifest
check_room    whether a folder could take one
verify        every file present, unchanged and inside the folder
load          -> Artifact: the objective, the preprocessing, the metrics; `predict` and `outputs`
outputs       the predictions of a live objective, a batch at a time; measured: its metrics; answers: anything
"""

from fathom.artifact.load import Artifact, load
from fathom.artifact.manifest import Manifest, seal, verify
from fathom.artifact.predict import answers, evaluating, frame_of, measured, outputs
from fathom.artifact.save import save
from fathom.artifact.swap import check_room

__all__ = [
    "Artifact",
    "Manifest",
    "answers",
    "check_room",
    "evaluating",
    "frame_of",
    "load",
    "measured",
    "outputs",
    "save",
    "seal",
    "verify",
]
