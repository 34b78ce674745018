"""T5 beside transformers', weight for weight; its cache beside the whole; refusals."""

from dataclasses import replace

import pytest
import torch

from fathom import pretrained
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.roles import Translator
from fathom.core.types import DataSpec, Features, Field
from fathom.layers.distances import bucket
from fathom.models import t5
from tests.conformance.samples import batch_of

SMALL = t5.Config(16, 2, 3, 2, 12, 24, dropout=0.0)
KINDS = [pytest.param(False, True, id="t5"), pytest.param(True, False, id="t5 1.1")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SPECIAL = (0, 2, 0, 1, -1)
SPEC = DataSpec(
    inputs=(Field(name="text", kind="text", shape=(40,), vocabulary=50, special=SPECIAL),),
    targets=(Field(name="answer", kind="text", shape=(30,), vocabulary=50, special=SPECIAL),),
)


def build(config: t5.Config = SMALL, spec: DataSpec = SPEC) -> t5.T5:
    torch.manual_seed(0)
    return t5.build(config, spec).eval()


def reference(config: t5.Config, vocabulary: int = 50):
    """Return transformers' network of the same configuration, with random weights, those of its norms too."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    theirs = transformers.T5ForConditionalGeneration(settings(config, vocabulary)).eval()
    if not config.tied:  # as a file with both has it; a fresh network's are one
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn_like(theirs.lm_head.weight))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return theirs


def settings(config: t5.Config, vocabulary: int = 50):
    transformers = pytest.importorskip("transformers")
    return transformers.T5Config(
        vocab_size=vocabulary,
        d_model=config.width,
        d_kv=config.head_size,
        d_ff=config.hidden,
        num_layers=config.depth,
        num_decoder_layers=config.decoder_depth,
        num_heads=config.num_heads,
        dropout_rate=config.dropout,
        feed_forward_proj="gated-gelu" if config.gated else "relu",
        tie_word_embeddings=config.tied,
        decoder_start_token_id=0,
    )


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 50, (rows, 40), generator=draw)
    lengths = torch.tensor([[40], [1], [23], [7]])[:rows]
    written = torch.randint(3, 50, (rows, 30), generator=draw)
    written[:, 0] = 0
    return {"text:text": tokens * (torch.arange(40) < lengths), "target:answer": written}


def both(config: t5.Config) -> tuple[t5.T5, torch.nn.Module]:
    theirs, ours = reference(config), build(config)
    loaded = pretrained.put(ours, theirs.state_dict(), t5.matches(config))
    assert loaded.left == () and loaded.fresh == () and loaded.changed == ()
    assert t5.published(theirs.config.to_dict()) == config
    return ours, theirs


@pytest.mark.parametrize(("gated", "tied"), KINDS)
def test_equals_transformers(gated, tied):
    """Scores, features of real tokens, and the gradients of a training step; with padding."""
    ours, theirs = both(replace(SMALL, gated=gated, tied=tied))
    rows = batch()
    source, written = rows["text:text"], rows["target:answer"]
    found = theirs(input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=written)
    memory = ours.encode(rows)
    scores = ours.logits(ours.decode(written, memory))
    torch.testing.assert_close(memory.tokens[memory.mask], found.encoder_last_hidden_state[memory.mask], **CLOSE)
    torch.testing.assert_close(scores, found.logits, **CLOSE)
    scores.square().mean().backward(), found.logits.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    translated = translate(gradients, t5.matches(ours.config)).tensors
    assert translated.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, translated[name], **CLOSE)


def test_the_published_small_one_equals_transformers():
    config = replace(t5.presets["t5_small"], dropout=0.0)
    paper = t5.paper()
    theirs = reference(config, 32_128)
    ours = build(config, paper)
    pretrained.put(ours, theirs.state_dict(), t5.matches(config))
    rows = batch()
    with torch.no_grad():
        found = theirs(
            input_ids=rows["text:text"],
            attention_mask=(rows["text:text"] != 0).long(),
            decoder_input_ids=rows["target:answer"],
        ).logits
        scores = ours.logits(ours.decode(rows["target:answer"], ours.encode(rows)))
    torch.testing.assert_close(scores / found.std(), found / found.std(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("t5_small", 60_506_624), ("t5_base", 222_903_552), ("flan_t5_small", 76_961_152), ("flan_t5_base", 247_577_856)],
)
def test_sizes(preset, parameters):
    with torch.device("meta"):
        model = t5.build(t5.presets[preset], t5.paper())
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("two_way", [True, False])
def test_buckets_equal_transformers(two_way):
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    offsets = torch.arange(-3000, 3001)
    for count, farthest in ((32, 128), (8, 20), (4, 1000)):
        theirs = attention._relative_position_bucket(offsets, two_way, count, farthest)
        assert torch.equal(bucket(offsets, count, farthest, two_way), theirs)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share():
    found = bucket(-torch.arange(200), 32, 128, two_way=False)
    assert found[:16].tolist() == list(range(16)) and (found.diff() >= 0).all()
    assert (found[128:] == 31).all() and found[100] < 31


@pytest.mark.parametrize("pieces", [(1,) * 9, (4, 1, 4), (9,)])
def test_written_step_by_step_equals_written_at_once(pieces):
    model, rows = build(replace(SMALL, decoder_depth=0)), batch()
    written = rows["target:answer"][:, :9]
    with torch.no_grad():
        memory = model.encode(rows)
        whole = model.decode(written, memory)
        cache = model.cache(memory, 12)
        parts = torch.cat([model.extend(piece, cache) for piece in written.split(pieces, 1)], 1)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_rows_of_a_cache_can_change_places():
    model, rows = build(), {key: value[:1].repeat(3, 1) for key, value in batch().items()}
    written = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 0])
    with torch.no_grad():
        memory = model.encode(rows)
        cache = model.cache(memory, 8)
        model.extend(written[:, :5], cache)
        cache.reorder(order)
        found = model.extend(written[:, 5:], cache)[:, -1]
        expected = model.decode(torch.cat([written[order, :5], written[:, 5:]], 1), memory)[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    model, rows = build(), batch()
    short = {"text:text": rows["text:text"][2:3, :23]}
    with torch.no_grad():
        found, expected = model(rows), model(short)
        written = rows["target:answer"][2:3]
        memory = Features(found.pooled[2:3], found.tokens[2:3], found.mask[2:3])
        torch.testing.assert_close(model.decode(written, memory), model.decode(written, expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled[2:3], expected.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected.pooled, expected.tokens.mean(1), atol=1e-5, rtol=1e-5)


def test_a_text_without_tokens_is_finite_in_both_directions():
    model = build().train()
    rows = {key: torch.zeros_like(value) for key, value in batch(2).items()}
    model.logits(model.decode(rows["target:answer"], model(rows))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_a_text_to_write_it_is_the_encoder_alone():
    labels = (Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),)
    encoder = build(spec=replace(SPEC, targets=labels))
    assert not isinstance(encoder, Translator) and isinstance(build(), Translator)
    whole = build()
    encoder.load_state_dict({name: value for name, value in whole.state_dict().items() if name in encoder.state_dict()})
    with torch.no_grad():
        assert torch.equal(encoder(batch()).pooled, whole(batch()).pooled)


def test_dropout_acts_in_training_only():
    model, rows = build(replace(SMALL, dropout=0.3)), batch()
    assert torch.equal(model(rows).pooled, model(rows).pooled)
    model.train()
    assert not torch.equal(model(rows).pooled, model(rows).pooled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "'model.width' was given 0; expected 1 or more"),
        ({"buckets": 2}, "'model.buckets' was given 2; expected 4 or more"),
        ({"buckets": 7}, "expected an even number of buckets"),
        ({"farthest": 16}, "given 32 and 16; expected an even number of buckets and a farthest distance of more"),
        ({"dropout": 1.0}, "'model.dropout' was given 1.0; expected at least 0 and below 1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        t5.build(replace(SMALL, **options), SPEC)


def test_other_data_are_refused_by_name():
    photo = Field(name="photo", kind="image", shape=(1, 8, 8))
    with pytest.raises(ConfigError, match=r"it reads one text column; the input columns are 'photo' \(image\)"):
        t5.build(SMALL, DataSpec(inputs=(photo,)))
    other = replace(SPEC.targets[0], vocabulary=60)
    with pytest.raises(ConfigError, match=r"'text' has 50 tokens and target 'answer' 60"):
        t5.build(SMALL, replace(SPEC, targets=(other,)))
    with pytest.raises(ConfigError, match="feed_forward_proj='swish' cannot be read"):
        t5.published({"feed_forward_proj": "swish"})


@pytest.mark.parametrize(("gated", "tied"), KINDS)
def test_every_parameter_learns(gated, tied):
    model = build(replace(SMALL, gated=gated, tied=tied)).train()
    rows = batch_of(SPEC, 8)
    model.logits(model.decode(rows["target:answer"], model(rows))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
