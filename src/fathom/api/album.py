"""Pictures for the report: of what an objective shows, while it is trained and afterwards.

framed   what an objective shows -> PNGs with titles
Album    those taken during training, kept beside the checkpoints, so that a resumed run has them all
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fathom.core.files import write_text
from fathom.evaluate import grid

SIDE = 64  # pixels, at least, that an image is shown in


def framed(shown: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Return images [N, C, H, W] in 0 … 1 as {"title", "image" as a data URI} each."""
    found = []
    for title, images in shown.items():
        png = grid(images.float().cpu().numpy(), zoom=max(1, SIDE // images.shape[-1]))
        found.append({"title": title, "image": "data:image/png;base64," + b64encode(png).decode()})
    return found


class Album:
    """What a model made of the same rows after several passes.

    Args:
        folder: where the run's checkpoints are; None: the run leaves nothing on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._taken: dict[int, list[dict[str, str]]] = {}

    def keep(self, epoch: int, shown: Mapping[str, Tensor]) -> None:
        """Take in what was shown after a pass; on disk it is whole or not there."""
        self._taken[epoch] = framed(shown)
        if self.folder is not None:
            with suppress(OSError):  # pictures are not worth a run; a full disk is told of by the next checkpoint
                write_text(self._path(epoch), json.dumps(self._taken[epoch]))

    def told(self, epochs: Sequence[int]) -> list[dict[str, Any]]:
        """Return {"title", "epoch", "image"} of the pictures taken after these passes, in order, but not of those that
        never change: such as views of the rows, which say nothing of the model. Those of an earlier run are removed."""
        if self.folder is not None:
            needed = {self._path(epoch) for epoch in epochs}
            for path in self.folder.glob("shown-*.json"):
                if path not in needed:
                    path.unlink(missing_ok=True)
        every: list[dict[str, Any]] = [{"epoch": epoch, **picture} for epoch in epochs for picture in self._of(epoch)]
        seen: dict[str, set[str]] = {}
        for picture in every:
            seen.setdefault(picture["title"], set()).add(picture["image"])
        return [picture for picture in every if len(seen[picture["title"]]) > 1]

    def _of(self, epoch: int) -> list[dict[str, str]]:
        if epoch not in self._taken and self.folder is not None:
            try:
                found = json.loads(self._path(epoch).read_text(encoding="utf-8"))
                self._taken[epoch] = [{name: str(each[name]) for name in ("title", "image")} for each in found]
            except (OSError, ValueError, TypeError, KeyError):  # lost or changed by hand; the others are shown
                return []
        return self._taken.get(epoch, [])

    def _path(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"shown-{epoch:06d}.json"
