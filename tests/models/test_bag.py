"""The bag of n-grams: its hashing, weights and padding, against plain loops; and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from fathom.core.errors import ConfigError
from fathom.core.types import PAD, DataSpec, Field
from fathom.layers import ngrams
from fathom.layers.ngrams import NGrams, hash_ngrams
from fathom.models import bag
from tests.conformance.samples import batch_of

SMALL = bag.Config(size=8, longest=3, buckets=64, hidden=12)


def build(config: bag.Config = SMALL, spec: DataSpec | None = None) -> bag.Bag:
    torch.manual_seed(0)
    return bag.build(config, spec or bag.example()).eval()


def hash_by_hand(run: list[int], buckets: int) -> int:
    value = run[0] + 1
    for token in run[1:]:
        value = (value * ngrams.STEP + token + 1) % ngrams.PRIME
    return (value * ngrams.SPREAD % ngrams.PRIME) ** 2 % ngrams.PRIME % buckets


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_hash_equals_a_plain_loop_in_unbounded_integers(n):
    tokens = torch.randint(0, 1_000_000, (5, 11), generator=torch.Generator().manual_seed(0))
    rows = tokens.tolist()
    expected = [[hash_by_hand(row[i : i + n], 1000) for i in range(11 - n + 1)] for row in rows]
    assert hash_ngrams(tokens, n, 1000).tolist() == expected


def test_hash_tells_order_apart_and_fills_the_buckets_evenly():
    first, second = torch.meshgrid(torch.arange(5, 305), torch.arange(5, 305), indexing="ij")
    pairs = torch.stack([first.flatten(), second.flatten()], dim=1)  # 90,000 bigrams
    buckets = hash_ngrams(pairs, 2, 65_536).flatten()
    mirrored = hash_ngrams(pairs.flip(1), 2, 65_536).flatten()
    assert (buckets == mirrored).float().mean() < 0.01
    used = buckets.unique().numel()
    by_chance = 65_536 * (1 - math.exp(-90_000 / 65_536))
    assert used == pytest.approx(by_chance, rel=0.05)


@pytest.mark.parametrize("weighted", [True, False])
def test_mean_equals_a_plain_loop(weighted):
    shares = (0.0, *(0.02 * k for k in range(1, 20))) if weighted else ()
    module = NGrams(20, 4, longest=3, buckets=16, frequencies=shares)
    tokens = torch.tensor([[5, 6, 7, 5, PAD, PAD], [9, PAD, PAD, PAD, PAD, PAD]])
    found = module(tokens)
    for row, length in ((0, 4), (1, 1)):
        ids = tokens[row, :length].tolist()
        total, weight = torch.zeros(4), 0.0
        for n in (1, 2, 3):
            for start in range(length - n + 1):
                run = ids[start : start + n]
                rarity = sum(-math.log(shares[t]) if weighted else math.log(2) for t in run) / n
                vector = module.vectors[run[0] if n == 1 else 20 + hash_by_hand(run, 16)]
                total, weight = total + rarity * vector, weight + rarity
        torch.testing.assert_close(found[row], total / weight)


def test_rare_and_common_tokens_have_bounded_weights():
    module = NGrams(4, 2, frequencies=(0.0, 1.0, 0.5, 1e-9))
    assert module.rarity.tolist() == pytest.approx(
        [-math.log(ngrams.RAREST), -math.log(ngrams.COMMONEST), math.log(2), -math.log(ngrams.RAREST)]
    )


def test_padding_changes_nothing():
    spec = bag.example()
    batch = batch_of(spec, 8)
    model = build()
    longer = {
        key: torch.nn.functional.pad(value, (0, 5)) if key in model.keys else value for key, value in batch.items()
    }
    torch.testing.assert_close(model(longer).pooled, model(batch).pooled)


def test_rows_do_not_touch_one_another():
    batch = batch_of(bag.example(), 8)
    model, order = build(), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(model(shuffled).pooled, model(batch).pooled[order])


def test_texts_without_tokens_and_of_one_token_are_taken():
    spec = DataSpec(inputs=(Field(name="a", kind="text", shape=(1,), vocabulary=9),))
    pooled = build(SMALL, spec)({"text:a": torch.tensor([[PAD], [7]])}).pooled
    assert pooled.isfinite().all()
    assert not torch.equal(pooled[0], pooled[1])


def test_word_order_counts_only_where_there_are_phrases():
    spec = DataSpec(inputs=(Field(name="a", kind="text", shape=(4,), vocabulary=9),))
    forth, back = {"text:a": torch.tensor([[5, 6, 7, 8]])}, {"text:a": torch.tensor([[8, 7, 6, 5]])}
    words = build(replace(SMALL, longest=1), spec)
    torch.testing.assert_close(words(forth).pooled, words(back).pooled)
    phrases = build(replace(SMALL, longest=2), spec)
    assert not torch.allclose(phrases(forth).pooled, phrases(back).pooled, atol=1e-4)


def test_sizes():
    """A vector for each token and bucket of each column, and a layer where one is wanted."""
    count = sum(p.numel() for p in build().parameters())
    assert count == (20 + 64) * 8 + (30 + 64) * 8 + 16 * 12 + 12
    assert build().width == 12
    words = build(replace(SMALL, longest=1, hidden=0))
    assert sum(p.numel() for p in words.parameters()) == 20 * 8 + 30 * 8
    assert words.width == 16


def test_every_parameter_learns_and_dropout_acts_in_training_only():
    model, batch = build(replace(SMALL, token_dropout=0.5)), batch_of(bag.example(), 8)
    assert torch.equal(model(batch).pooled, model(batch).pooled)
    model.train()
    assert not torch.equal(model(batch).pooled, model(batch).pooled)
    model(batch).pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_compiles_whole_and_exports(integer):
    model, batch = build(), batch_of(bag.example(), 4)
    batch = {key: batch[key].to(integer) for key in model.keys}
    expected = model(batch).pooled
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(batch).pooled, expected)
    torch.testing.assert_close(torch.export.export(Pooled(model), (batch,)).module()(batch), expected)


class Pooled(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(batch).pooled


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "model.size"),
        ({"longest": 0}, "model.longest"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"hidden": -1}, "model.hidden"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=f"'{said}' was given .*; expected"):
        bag.build(replace(SMALL, **options), bag.example())


def test_other_columns_are_refused_by_name():
    spec = DataSpec(inputs=(Field(name="age", kind="number"),))
    with pytest.raises(ConfigError, match=r"'bag' cannot be used: it takes texts; column 'age' is number\."):
        bag.build(SMALL, spec)
    with pytest.raises(ConfigError, match="at least one text column"):
        bag.build(SMALL, DataSpec(inputs=()))


def test_recipe_takes_fewer_passes_over_more_rows():
    few, many = (bag.recipe(SMALL, DataSpec(inputs=bag.example().inputs, rows=rows)) for rows in (500, 50_000))
    assert few["engine"]["epochs"] > many["engine"]["epochs"]
    assert few["engine"]["batch_size"] < many["engine"]["batch_size"]
