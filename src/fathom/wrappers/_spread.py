"""Targets spread among rows that lie near each other: what is known of few says what the others are.

    Y ← α S Y + (1 - α) Y₀

Y₀ has the classes of rows with a target, S the shares in which a row hears its neighbours: those nearest by a trained
network's features, and those that it is itself nearest to. A class may lie in several places, some of them far from
each row that is known to be of it: it is followed there through the rows in between.

Sources: Zhou, Bousquet, Lal, Weston, Schölkopf, Learning with Local and Global Consistency, 2004 (the formula);
Iscen, Tolias, Avrithis, Chum, Label Propagation for Deep Semi-supervised Learning, 2019 (of a network's features).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fathom.core.ahead import announced
from fathom.core.objective import Objective, embedding
from fathom.core.types import Batch, Field, Store
from fathom.layers.similar import unit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ALPHA = 0.99  # how far what is known goes, from neighbour to neighbour
MOST_ROUNDS = 1_000
SETTLED = 1e-3  # change in a round, as a share of all that was known to begin with
AT_ONCE = 256  # rows that a network is asked about


class Spread:
    """What the rows near a given one were found to be, by a trained network's features.

    Args:
        teacher: the network, with the objective that asks it.
        store: all rows, N; those known have their target's class.
        targets: categories.
        neighbours: of each row, that it hears.
    """

    def __init__(self, teacher: Objective, store: Store, targets: list[Field], neighbours: int) -> None:
        batches = announced(store, torch.arange(len(store)).split(AT_ONCE))
        self.places = torch.cat([places(teacher, store.gather(index)) for index in batches])
        web = graph(self.places, neighbours)
        self.said = {t.name: spread(web, store.column(t.target_key), len(t.classes)) for t in targets}

    def __call__(self, teacher: Objective, batch: Batch) -> dict[str, Tensor]:
        """Return of each target what the row is nearest to was found to be, [B, C]: of these rows, what they were."""
        here = places(teacher, batch)
        if self.places.device != here.device:
            self.places = self.places.to(here.device)
            self.said = {name: said.to(here.device) for name, said in self.said.items()}
        with torch.autocast(here.device.type, enabled=False):
            nearest = (here @ self.places.T).argmax(1)
        return {name: said[nearest] for name, said in self.said.items()}


@torch.no_grad()
def places(teacher: Objective, batch: Batch) -> Tensor:
    """Return where rows lie on the sphere of a network's features, [B, D] float32."""
    return unit(embedding(teacher, batch))


def graph(places: Tensor, neighbours: int) -> csr_array:
    """Return who hears whom, [N, N]: the nearest, and those whom a row is among the nearest of."""
    from scipy.sparse import csr_array
    from sklearn.neighbors import kneighbors_graph

    near = kneighbors_graph(places.numpy(), min(neighbours, len(places) - 1), mode="connectivity")
    return csr_array(near + near.T)


def spread(web: csr_array, codes: Tensor, classes: int) -> Tensor:
    """Return how probable each class is of each row, [N, C]: alike where nothing known is connected with it.

    Args:
        codes: [N], the class of rows that are known, below 0 elsewhere.
    """
    from sklearn.semi_supervised import LabelSpreading

    known = codes >= 0
    method = LabelSpreading(
        kernel=lambda left, right: web, alpha=ALPHA, max_iter=MOST_ROUNDS, tol=SETTLED * float(known.sum())
    )
    method.fit(np.zeros((len(codes), 1)), torch.where(known, codes, -1).numpy())
    found = torch.zeros(len(codes), classes)
    found[:, torch.from_numpy(method.classes_)] = torch.from_numpy(method.label_distributions_).float()
    return torch.where(found.sum(1, keepdim=True) > 0, found, 1.0 / classes)
