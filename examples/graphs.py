"""A graph network learns from two nodes who sides with whom: `python examples/graphs.py`.

For two years Wayne Zachary watched a karate club of 34 members, of whom 78 pairs met outside of it too. Then the
instructor (member 0) and the administrator (member 33) fell out, the club split, and everyone had to choose. The
network is told the sides of these two alone, nothing about the members but who meets whom, and finds the others'
sides: each layer mixes a member with those he meets, so that what it learns of two reaches all. It errs about member 8,
as Zachary's own model did: he leant to the administrator, but was three weeks from a black belt in the other club.

    friendships [78, 2], no numbers of a node but its own name (one-hot)  ->  GCN  ->  [34, 2 sides]

A graph is a batch of one: all nodes are in each step, and the loss counts those whose side is known. Labels of nodes
are a tensor [B, N] in the batch; −1 stands for unknown. That is all that an objective for nodes takes, and the engine
trains it like any other.

Zachary, An Information Flow Model for Conflict and Fission in Small Groups, 1977; Kipf, Welling, Semi-Supervised
Classification with Graph Convolutional Networks, 2017, appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Field, Loss, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.models import gcn

MEETS = {  # each pair once
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31),
    1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32),
    3: (7, 12, 13),
    4: (6, 10),
    5: (6, 10, 16),
    6: (16,),
    8: (30, 32, 33),
    9: (33,),
    13: (33,),
    14: (32, 33),
    15: (32, 33),
    18: (32, 33),
    19: (33,),
    20: (32, 33),
    22: (32, 33),
    23: (25, 27, 29, 32, 33),
    24: (25, 27, 31),
    25: (31,),
    26: (29, 33),
    27: (33,),
    28: (31, 33),
    29: (32, 33),
    30: (32, 33),
    31: (32, 33),
    32: (33,),
}
WITH_INSTRUCTOR = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)  # whose club they joined in the end
MEMBERS, SEED = 34, 0
TOLD = (0, 33)


class Nodes(Objective):
    """Tells the class of every node; learns from those whose class is known."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(int(model.width), classes)  # type: ignore[arg-type]

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self.model(batch).tokens)  # [B, N, classes]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        known = batch["target:side"]  # [B, N]
        loss = F.cross_entropy(self.logits(batch).flatten(0, 1), known.flatten(), ignore_index=-1)
        return Loss(loss, weight=float((known >= 0).sum()))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"side": self.logits(batch).softmax(-1)}


def load() -> tuple[DataSpec, Batch, Tensor]:
    """Return the description of the club, the club as a batch of one, and every member's side [N]."""
    pairs = torch.tensor([(a, b) for a, others in MEETS.items() for b in others])  # [E, 2]
    sides = torch.ones(MEMBERS, dtype=torch.long)
    sides[list(WITH_INSTRUCTOR)] = 0
    known = torch.full((MEMBERS,), -1)
    known[list(TOLD)] = sides[list(TOLD)]
    field = Field(name="club", kind="graph", shape=(MEMBERS, len(pairs), MEMBERS))
    batch = {
        field.key: torch.eye(MEMBERS)[None],
        f"{field.key}:edges": pairs[None],
        f"{field.key}:size": torch.tensor([MEMBERS]),
        "target:side": known[None],
    }
    return DataSpec(inputs=(field,), rows=1), batch, sides


def main(seed: int = SEED) -> dict[str, float]:
    """Train on the two sides that are told; return how many of the other 32 are found, and both losses."""
    torch.manual_seed(seed)
    spec, batch, sides = load()
    config = gcn.Config(width=16, depth=3, last="mix", dropout=0.5, input_dropout=0.0, both_ways=True)
    objective = Nodes(gcn.build(config, spec), classes=2)
    before = float(objective.eval().losses(batch).total.detach())
    plan = Plan(epochs=100, learning_rate=1e-2, weight_decay=0.05, keep="last", seed=seed, threads=1, precision="fp32")
    for _ in train(objective, TrainingData(train=TensorStore(batch)), plan):
        pass
    with torch.no_grad():
        after = float(objective.eval().losses(batch).total)
        found = objective.predict(batch)["side"][0].argmax(-1)  # [N]
    asked = [member for member in range(MEMBERS) if member not in TOLD]
    right = (found == sides)[asked]
    wrong = [member for member, hit in zip(asked, right.tolist(), strict=True) if not hit]
    print(f"{int(right.sum())} of {len(asked)} members are put on the side that they took; wrong: {wrong or 'none'}")
    return {"right": float(right.float().mean()), "loss before": before, "loss after": after}


if __name__ == "__main__":
    main()
