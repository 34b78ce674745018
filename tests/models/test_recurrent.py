"""Recurrent networks: torch's modules weight for weight, padding and columns, language models, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.roles import LanguageModel
from fathom.core.types import DataSpec, Field, Stats
from fathom.engine.plan import Plan
from fathom.generate import Script, Settings, write
from fathom.models import recurrent

SMALL = recurrent.Config(width=6, dropout=0.0)
PAD = 3  # a padding token other than zero


def texts(*columns: tuple[str, int, int], pad: int = PAD) -> DataSpec:
    """Return columns of (name, length, vocabulary)."""
    special = (pad, 1, 2, 0, 4)
    return DataSpec(
        inputs=tuple(
            Field(name=name, kind="text", shape=(length,), vocabulary=size, special=special)
            for name, length, size in columns
        )
    )


ONE = texts(("text", 9, 20))
IMAGES = DataSpec(
    inputs=(Field(name="digit", kind="image", shape=(2, 5, 4), stats=Stats(mean=(100.0,) * 2, std=(50.0,) * 2)),)
)


def network(spec: DataSpec = ONE, seed: int = 0, **options: object) -> recurrent.Recurrent:
    torch.manual_seed(seed)
    return recurrent.build(replace(SMALL, **options), spec).eval()


def tokens_of(length: int, rows: int = 5, vocabulary: int = 20) -> Tensor:
    return torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def padded(tokens: Tensor, lengths: list[int]) -> Tensor:
    return tokens.where(torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None], PAD)


@pytest.mark.parametrize(("preset", "kind"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("both", [False, True])
def test_equals_torchs_module_on_packed_texts(preset: str, kind: type[nn.RNNBase], both: bool) -> None:
    """Embedding, two layers, the last states: ours against nn.Embedding, the packed module and its h_n."""
    config = replace(catalog.find("models", preset).config, width=16, depth=2, dropout=0.0, bidirectional=both)
    torch.manual_seed(0)
    model = recurrent.build(config, ONE).eval()
    theirs = kind(16, 16, 2, batch_first=True, bidirectional=both)
    cells = [cell for layer in model.stack.layers for cell in layer]
    ours = [parameter for cell in cells for parameter in cell.parameters_in_order()]
    with torch.no_grad():
        for parameter, value in zip(theirs.parameters(), ours, strict=True):
            parameter.copy_(value)
    lengths = [9, 1, 4, 7, 2]
    tokens = padded(tokens_of(9), lengths)
    packed = nn.utils.rnn.pack_padded_sequence(model.vectors(tokens), lengths, batch_first=True, enforce_sorted=False)
    steps, last = theirs(packed)
    last = last[0] if kind is nn.LSTM else last
    steps, _ = nn.utils.rnn.pad_packed_sequence(steps, batch_first=True)
    found = model({"text:text": tokens})
    expected = torch.cat([last[-2], last[-1]], dim=1) if both else last[-1]
    torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.tokens[found.mask], steps[found.mask], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rnn", 10_000 * 128 + 2 * 128 * 128 + 2 * 128),
        ("gru", 10_000 * 128 + 3 * (2 * 128 * 128 + 2 * 128)),
        ("lstm", 10_000 * 128 + 4 * (2 * 128 * 128 + 2 * 128)),
        ("bilstm", 10_000 * 128 + 8 * (2 * 128 * 128 + 2 * 128)),
        # "20 million" and "66 million" in Zaremba et al.
        ("lstm_medium", 10_000 * 650 + 8 * (2 * 650 * 650 + 2 * 650) + 650 * 10_000 + 10_000),
        ("lstm_large", 10_000 * 1500 + 8 * (2 * 1500 * 1500 + 2 * 1500) + 1500 * 10_000 + 10_000),
    ],
)
def test_parameters_are_those_of_the_equations(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = recurrent.build(catalog.find("models", name).config, recurrent.paper())
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_where_padding_stands_makes_no_difference(cell: str, both: bool, pooling: str) -> None:
    model = network(cell=cell, bidirectional=both, pooling=pooling, depth=2)
    words = tokens_of(4, rows=3)
    pad = torch.full((3, 1), PAD, dtype=torch.int32)
    alone = model({"text:text": words})
    for pattern in ("xxxxppp", "pppxxxx", "pxxpxpx"):
        each = iter(words.split(1, dim=1))
        tokens = torch.cat([next(each) if place == "x" else pad for place in pattern], dim=1)
        found = model({"text:text": tokens})
        torch.testing.assert_close(found.pooled, alone.pooled, rtol=0, atol=1e-6)
        assert torch.equal(found.mask, tokens != PAD)
        torch.testing.assert_close(found.tokens[found.mask].view(3, 4, -1), alone.tokens, rtol=0, atol=1e-6)


def test_columns_are_read_one_behind_the_other_each_with_its_own_vectors() -> None:
    spec = texts(("title", 4, 20), ("body", 6, 30))
    model = network(spec, bidirectional=True)
    assert model.vectors.num_embeddings == 50
    title, body = padded(tokens_of(4, 3), [2, 4, 1]), padded(tokens_of(6, 3, 30), [6, 3, 1])
    found = model({"text:title": title, "text:body": body})
    for row in range(3):
        joined = torch.cat([title[row][title[row] != PAD], 20 + body[row][body[row] != PAD]])[None]
        _, last = model.stack(model.vectors(joined))
        torch.testing.assert_close(found.pooled[row], last[0], rtol=0, atol=1e-6)


def test_mean_pooling_is_over_real_tokens_and_empty_texts_are_zeros() -> None:
    for pooling in ("mean", "last", "attention"):
        model = network(pooling=pooling)
        tokens = padded(tokens_of(9, 3), [9, 4, 0])
        found = model({"text:text": tokens})
        assert not found.pooled[2].any() and found.pooled.isfinite().all()
        if pooling == "mean":
            torch.testing.assert_close(found.pooled[1], found.tokens[1, :4].mean(0))


def test_attention_weighs_the_steps_by_the_last_state() -> None:
    model = network(pooling="attention", bidirectional=True)
    found = model({"text:text": (tokens := tokens_of(9))})
    y, last = model.stack(model.vectors(tokens))
    weights = model.attention.weights(last, y)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(found.pooled, torch.einsum("bt,btd->bd", weights, y))


def test_an_image_is_read_row_by_row() -> None:
    model = network(IMAGES, depth=2, bidirectional=True)
    image = torch.randint(256, (3, 2, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = model({"image:digit": image})
    assert found.pooled.shape == (3, 12) and found.tokens.shape == (3, 5, 12)
    rows = torch.stack([((image[:, :, row].float() - 100) / 50).flatten(1) for row in range(5)], dim=1)  # [B, H, C·W]
    torch.testing.assert_close(found.pooled, model.stack(rows)[1], rtol=0, atol=1e-6)
    for pooling in ("mean", "attention"):
        assert network(IMAGES, pooling=pooling)({"image:digit": image}).pooled.shape == (3, 6)


def test_readable_and_fast_are_one_network() -> None:
    tokens = {"text:text": padded(tokens_of(9), [9, 1, 4, 7, 2])}
    for cell in ("rnn", "lstm", "gru"):
        one, other = (network(cell=cell, bidirectional=True, cells=cells) for cells in ("fast", "readable"))
        other.load_state_dict(one.state_dict())
        torch.testing.assert_close(one(tokens).pooled, other(tokens).pooled, rtol=0, atol=1e-6)


def test_it_is_a_language_model_where_it_can_be_one() -> None:
    assert isinstance(network(), LanguageModel)
    assert isinstance(network(readout="own", vector_size=4), LanguageModel)
    for other in (
        network(bidirectional=True),
        network(vector_size=4),
        network(readout="none"),
        network(texts(("a", 4, 20), ("b", 4, 20))),
        network(IMAGES),
    ):
        assert not isinstance(other, LanguageModel)


@pytest.mark.parametrize("cells", ["fast", "readable"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_cache_goes_on_where_the_whole_text_would(cell: str, cells: str) -> None:
    model = network(cell=cell, depth=2, cells=cells)
    tokens = tokens_of(9)
    whole = model({"text:text": tokens}).tokens
    cache = model.cache(5, 9)
    parts = [model.extend(part, cache) for part in tokens.split((4, 1, 1, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-6)
    rows = torch.tensor([4, 4, 1])
    cache.reorder(rows)
    again = model({"text:text": torch.cat([tokens, tokens[:, :1]], dim=1)[rows]}).tokens
    torch.testing.assert_close(model.extend(tokens[rows, :1], cache)[:, 0], again[:, -1], rtol=0, atol=1e-6)


def test_prompts_of_unlike_lengths_stand_on_the_right() -> None:
    model = network(depth=2)
    tokens, mask = tokens_of(6, 2), torch.tensor([[True] * 6, [False] * 4 + [True] * 2])
    cache = model.cache(2, 7)
    first = model.extend(tokens.where(mask, PAD), cache, mask)
    second = model.extend(tokens[:, :1], cache)
    alone = model({"text:text": torch.cat([tokens[1:, 4:], tokens[1:, :1]], dim=1)}).tokens
    torch.testing.assert_close(first[1, 4:], alone[0, :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(second[1], alone[0, 2:], rtol=0, atol=1e-6)


def test_a_state_has_seen_its_past_only() -> None:
    model, tokens = network(depth=2), tokens_of(9)
    other = tokens.clone()
    other[:, 5:] = tokens_of(4, vocabulary=15)
    one, two = (model({"text:text": t}).tokens for t in (tokens, other))
    assert torch.equal(one[:, :5], two[:, :5]) and not torch.equal(one[:, 5:], two[:, 5:])


def test_scores_are_read_out_by_the_token_vectors_or_a_matrix_of_their_own() -> None:
    tied, own = network(), network(readout="own", vector_size=4)
    hidden = torch.randn(2, 3, 6)
    torch.testing.assert_close(tied.logits(hidden), hidden @ tied.vectors.weight.T)
    assert own.logits(hidden).shape == (2, 3, 20) == tied.logits(hidden).shape
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in network(readout="none").parameters())


def test_initialisation_of_the_default_reaches_far_back() -> None:
    """After a hundred steps a gradient still arrives at the first token, and none explodes on the way."""
    for cell in ("lstm", "gru"):
        model = network(texts(("text", 100, 50)), cell=cell, width=64)
        x = model.vectors(tokens_of(100, vocabulary=50)).detach().requires_grad_()
        model.stack(x)[1].square().sum().backward()
        size = x.grad.norm(dim=-1).mean(0)  # [T]
        assert size[0] > 0 and size.max() < 1e3 * size[-1]


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch).pooled


@pytest.mark.parametrize(("cell", "pooling"), [("rnn", "mean"), ("lstm", "attention"), ("gru", "last")])
def test_both_directions_export_with_any_number_of_rows_and_of_any_lengths(cell: str, pooling: str) -> None:
    model = Pooled(network(cell=cell, bidirectional=True, pooling=pooling, depth=2))
    batch = {"text:text": padded(tokens_of(9), [9, 1, 4, 7, 2])}
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(model, (batch,), dynamic_shapes=({"text:text": {0: rows}},)).module()
    other = {"text:text": padded(tokens_of(9, rows=3), [2, 9, 5])}
    with torch.no_grad():
        torch.testing.assert_close(exported(other), model(other), rtol=0, atol=1e-6)


def test_both_directions_compile_as_one_graph() -> None:
    model = Pooled(network(texts(("text", 4, 20)), bidirectional=True, pooling="attention"))
    batch = {"text:text": padded(tokens_of(4), [4, 1, 2, 3, 2])}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), model(batch), rtol=0, atol=1e-6)


def test_the_recipe_is_a_plan_that_can_be_built() -> None:
    for rows in (0, 1_000, 50_000):
        for config in recurrent.presets.values():
            for spec in (ONE, IMAGES):
                found = recurrent.recipe(config, replace(spec, rows=rows))
                assert build_config(Plan, found["engine"], "engine").epochs >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"'model\.width' was given 0; expected 1 or more"),
        ({"depth": 0}, r"'model\.depth' was given 0; expected 1 or more"),
        ({"vector_size": -1}, r"'model\.vector_size' was given -1; expected 0 or more"),
        ({"dropout": 1.0}, r"'model\.dropout' was given 1\.0; expected at least 0 and below 1"),
        ({"readout": "tied", "bidirectional": True}, r"set model\.bidirectional=false"),
        ({"readout": "own", "bidirectional": True}, r"set model\.bidirectional=false"),
        ({"readout": "tied", "vector_size": 4}, r"set model\.vector_size=6 or model\.readout=own"),
    ],
)
def test_options_out_of_range_are_refused_with_what_to_change(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(**options)


def test_a_read_out_needs_one_text_column() -> None:
    for spec in (IMAGES, texts(("a", 4, 20), ("b", 4, 20))):
        with pytest.raises(ConfigError, match="one text column"):
            network(spec, readout="own")


def test_other_columns_are_refused_by_name() -> None:
    number = Field(name="size", kind="number")
    for inputs in ((number,), (*ONE.inputs, number), (*IMAGES.inputs, *ONE.inputs), IMAGES.inputs * 2, ()):
        assert recurrent.accepts(DataSpec(inputs=inputs))
        with pytest.raises(ConfigError, match="text columns, or one image column"):
            recurrent.build(SMALL, DataSpec(inputs=inputs))


@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_what_the_whole_text_says_comes_next(beams: int) -> None:
    """Prompts of unlike lengths, at once and through the cache, against each alone, read anew for each token."""
    model = network(width=32, depth=2, cell="gru", readout="own")
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13]]
    script = Script(decode=lambda tokens: " ".join(map(str, tokens)), read=ONE.texts[0])
    found = write(model, prompts, script, Settings(tokens=5, beams=beams))
    assert [len(text.tokens) for text in found] == [5, 5, 5]
    for prompt, text in zip(prompts, found, strict=True):
        alone = write(model, [prompt], script, Settings(tokens=5, beams=beams))
        assert text.tokens == alone[0].tokens
        if beams == 1:
            for place, token in enumerate(text.tokens):
                seen = torch.tensor([[*prompt, *text.tokens[:place]]])
                y, _ = model.stack(model.vectors(seen))
                assert int(model.logits(y[0, -1]).argmax()) == token
