"""What was trained and learned from before: what a wrapper may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fathom.core.types import DataSpec, Store

if TYPE_CHECKING:
    from fathom.core.objective import Objective


@dataclass(frozen=True)
class Trained:
    """A model of an earlier training: its objective, in evaluation mode, and what its data was."""

    folder: str
    objective: Objective
    spec: DataSpec


class Past(Protocol):
    """Finds earlier models and their rows. What was found becomes part of what a resumed run must share.

    Attributes:
        begun: the folder of the model that this training goes on from (--from), "" where there is none.
    """

    begun: str

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        """Return the model in `folder`.

        Args:
            option: by which it was asked for, for messages.
            alike: whether it has to take the very tensors that the present rows were turned into.

        Raises:
            ConfigError: it does not. ArtifactError: it cannot be loaded.
        """

    def present(self, option: str) -> Store:
        """Return the rows that are learned from now, with their targets as far as they have any.

        Raises:
            ConfigError: there are none to look up.
        """

    def rows(self, folder: str, source: str, option: str, own: bool = True) -> Store:
        """Return rows of earlier training, with their targets.

        Args:
            folder: of the model that learned from them; "" where `source` is all there is.
            source: where they stand, all of them; "": those that the model was trained on, as its folder tells.
            own: as that model takes them; otherwise as the present one does.

        Raises:
            ConfigError, DataError: there are none, or they are of classes that the target does not have.
        """
