"""Vectors of words: pairs, negatives and words left out as in the paper, and the loss written out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom.core.errors import ConfigError
from fathom.core.types import END, PAD, START, DataSpec, Field
from fathom.models import gpt, words
from fathom.objectives import embed_words
from fathom.objectives.embed_words import staying

COUNTS = (0, 0, 90, 90, 0, 400, 200, 100, 50, 25, 12, 6, 3, 2, 1)
FIELD = Field(name="text", kind="text", shape=(9,), vocabulary=15, occurrences=COUNTS)
SPEC = DataSpec(inputs=(FIELD,), rows=16)


def task(**options) -> embed_words.EmbedWords:
    torch.manual_seed(0)
    objective = embed_words.build(embed_words.Config(**options), SPEC, words.build(words.Config(6), SPEC))
    torch.nn.init.normal_(objective.context.weight), torch.nn.init.normal_(objective.model.vectors.weight)
    return objective


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.tensor([[START, 5, 6, 7, 8, 9, END, PAD, PAD], [START, 10, 5, END, PAD, PAD, PAD, PAD, PAD]])
    return {"text:text": tokens}


def test_the_loss_is_the_papers_over_all_pairs():
    objective = task(window=3, negatives=5.0, drawn=7, threshold=0.0)
    known, text, reach, negatives = objective.sampled(batch())
    assert known.tolist() == [5, 6, 7, 8, 9, 10, 5] and text.tolist() == [0] * 5 + [1] * 2
    assert reach.min() >= 1 and reach.max() <= 3 and negatives.shape == (7,)
    v, u = objective.model.vectors.weight.detach().numpy(), objective.context.weight.detach().numpy()

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    total, pairs = 0.0, 0
    for place, word in enumerate(known.tolist()):
        for other, neighbour in enumerate(known.tolist()):
            if text[place] != text[other] or other == place or abs(other - place) > int(reach[place]):
                continue
            pairs += 1
            total -= log_sigmoid(float(v[word] @ u[neighbour]))
            total -= 5.0 / 7 * sum(log_sigmoid(-float(v[word] @ u[n])) for n in negatives.tolist())
    cost, count = objective.costs(known, text, reach, negatives)
    assert count.sum().item() == pairs
    assert cost.sum().item() == pytest.approx(total, rel=1e-5)
    torch.manual_seed(5)
    loss = objective.losses(batch())
    torch.manual_seed(5)
    figures = objective.metrics(batch())
    told = objective.summary({name: float(each.detach().mean()) for name, each in figures.items()})
    assert told["loss"] == pytest.approx(loss.total.item(), rel=1e-6)


def test_negatives_are_drawn_by_counts_to_the_power():
    objective = task(drawn=200_000)
    *_, negatives = objective.sampled(batch())
    counts = np.array(COUNTS, dtype=float)
    counts[:5] = 0
    wanted = counts**0.75 / (counts**0.75).sum()
    found = np.bincount(negatives.numpy(), minlength=15) / len(negatives)
    np.testing.assert_allclose(found, wanted, atol=0.005)
    assert found[:5].sum() == 0


def test_frequent_words_are_left_out_as_often_as_in_the_program():
    counts = torch.tensor([1000.0, 100.0, 10.0, 0.0])
    total, t = 1110.0, 0.01
    program = [(math.sqrt(c / (t * total)) + 1) * (t * total) / c for c in (1000.0, 100.0, 10.0)]  # word2vec.c
    wanted = [min(1.0, p) for p in program] + [1.0]
    torch.testing.assert_close(staying(counts, t), torch.tensor(wanted))
    objective = task(threshold=0.01)
    many = {"text:text": torch.full((2000, 9), 5)}
    left = (objective.sampled(many)[0] == 5).sum().item() / 18_000
    assert left == pytest.approx(float(objective.stays[5]), abs=0.01) and left < 0.5


def test_gradients_are_those_of_finite_differences():
    objective = task(drawn=4).double()
    drawn = objective.sampled(batch())
    objective.forward = lambda: objective.costs(*drawn)[0].sum()

    def cost(v, u):
        return torch.func.functional_call(objective, {"model.vectors.weight": v, "context.weight": u}, ())

    assert torch.autograd.gradcheck(cost, (objective.model.vectors.weight, objective.context.weight))


def test_accumulated_micro_batches_weigh_pairs_alike():
    objective = task(threshold=0.0, window=1)
    whole, parts = objective.losses(batch()), []
    for row in range(2):
        parts.append(objective.losses({"text:text": batch()["text:text"][row : row + 1]}))
    assert whole.weight == sum(part.weight for part in parts) == 10


def test_data_and_models_that_do_not_fit_are_refused():
    assert "it takes one text column" in embed_words.accepts(DataSpec(inputs=(Field(name="n", kind="number"),)))

    assert embed_words.needs(words.build(words.Config(), SPEC)) is None
    assert "words" in embed_words.needs(torch.nn.Linear(2, 2))
    assert embed_words.needs(gpt.build(gpt.Config(), SPEC)) is None  # its table is one, too
    with pytest.raises(ConfigError, match=r"objective\.window"):
        task(window=0)


def test_words_used_alike_end_near_one_another(tmp_path):
    draw = np.random.default_rng(0)
    animals, fruits = ["cat", "dog", "cow", "pig"], ["apple", "pear", "plum", "fig"]
    lines = []
    for i in range(600):
        kind, doing = (animals, ["runs", "sleeps", "barks"]) if i % 2 else (fruits, ["ripens", "hangs", "falls"])
        lines.append(
            f"the {draw.choice(kind)} {draw.choice(doing)} {draw.choice(doing)} with a {draw.choice(kind)} {i}"
        )
    options = {
        "engine": {"threads": 1, "precision": "fp32", "batch_size": 64, "learning_rate": 3e-2},
        "model": {"width": 12},
    }
    trained = fathom.fit(
        pl.DataFrame({"text": lines}), objective="embed_words", epochs=40, config=options, out=tmp_path / "words"
    )
    loaded = fathom.load(tmp_path / "words")
    found = loaded.nearest("cat", count=3)
    assert found == trained.nearest("cat", count=3)
    for word, own, others in (("cat", animals, fruits), ("plum", fruits, animals)):
        cosines = dict(loaded.nearest(word, count=1000))
        assert word not in cosines and all(-1.001 <= cosine <= 1.001 for cosine in cosines.values())
        assert min(cosines[each] for each in own if each != word) > max(cosines[each] for each in others)
    with pytest.raises(ConfigError, match="'zebra'"):
        loaded.nearest("zebra")
