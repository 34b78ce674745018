"""The Transformer of 2017 beside torch.nn.Transformer, weight for weight; its cache beside the whole; refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.roles import Translator
from fathom.core.types import DataSpec, Features, Field
from fathom.generate import Script, Settings, write
from fathom.layers.attention import sinusoids
from fathom.models import transformer
from tests.conformance.samples import batch_of

SPEC = DataSpec(
    inputs=(Field(name="english", kind="text", shape=(9,), vocabulary=20),),
    targets=(Field(name="german", kind="text", shape=(7,), vocabulary=20),),
)
PAPER = replace(transformer.presets["transformer_2017"], width=16, depth=2, num_heads=4, dropout=0.0)
LATER = transformer.Config(16, 2, 4, 2, dropout=0.0, token_dropout=0.0)
KINDS = [PAPER, LATER, replace(LATER, positions="learned"), replace(LATER, positions="none", norm="after")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def build(config: transformer.Config, spec: DataSpec = SPEC) -> transformer.EncoderDecoder:
    torch.manual_seed(0)
    model = transformer.build(config, spec).eval()
    with torch.no_grad():  # as training leaves it: nothing is zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pairs(ours: transformer.EncoderDecoder, theirs: nn.Transformer):
    """Yield each parameter of theirs with ours, or with the part of ours that it is."""
    for blocks, layers in ((ours.blocks, theirs.encoder.layers), (ours.written_blocks, theirs.decoder.layers)):
        for block, layer in zip(blocks, layers, strict=True):
            yield from zip(layer.self_attn.parameters(), block.attention.parameters(), strict=True)
            norms = [block.norm_attention, block.norm_network]
            if hasattr(block, "reading"):
                norms.insert(1, block.norm_reading)
                cross, reading = layer.multihead_attn, block.reading
                for name in ("weight", "bias"):
                    whole = getattr(cross, f"in_proj_{name}")
                    yield whole[:16], getattr(reading.project_in, name)
                    yield whole[16:], getattr(reading.project_memory, name)
                    yield getattr(cross.out_proj, name), getattr(reading.project_out, name)
            for norm, name in zip(norms, ("norm1", "norm2", "norm3"), strict=False):
                yield from zip(getattr(layer, name).parameters(), norm.parameters(), strict=True)
            yield from zip(layer.linear1.parameters(), block.expand.parameters(), strict=True)
            yield from zip(layer.linear2.parameters(), block.contract.parameters(), strict=True)


@pytest.mark.parametrize("norm", ["after", "before"])
def test_equals_torchs_transformer(norm):
    """Hidden states with padding, and the gradients of every parameter."""
    ours = build(replace(PAPER, norm=norm))
    theirs = nn.Transformer(16, 4, 2, 2, 64, 0.0, "relu", batch_first=True, norm_first=norm == "before").eval()
    if norm == "after":
        theirs.encoder.norm = theirs.decoder.norm = None  # the paper has none behind the last block
    else:
        theirs.encoder.norm.load_state_dict(ours.norm.state_dict())
        theirs.decoder.norm.load_state_dict(ours.written_norm.state_dict())
    with torch.no_grad():
        for other, mine in pairs(ours, theirs):
            other.copy_(mine)
    batch = batch_of(SPEC, 5)
    source, written, padding = batch["text:english"], batch["target:german"], batch["text:english"] == 0
    table, future = ours.vectors[0], theirs.generate_square_subsequent_mask(7)
    wanted = theirs(
        table(source) * 4 + sinusoids(9, 16),
        table(written) * 4 + sinusoids(7, 16),
        tgt_mask=future,
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    found = ours.decode(written, ours.encode(batch))
    torch.testing.assert_close(found, wanted, **CLOSE)
    weights = [mine for _, mine in pairs(ours, theirs)]
    theirs_too = [p for p in theirs.parameters() if p.requires_grad]
    wanted_gradients = dict(zip(theirs_too, torch.autograd.grad(wanted.square().mean(), theirs_too), strict=True))
    weights = [mine for _, mine in pairs(ours, theirs)]
    gradients = torch.autograd.grad(found.square().mean(), weights, retain_graph=True)
    for gradient, (other, _) in zip(gradients, pairs(ours, theirs), strict=True):
        if other in wanted_gradients:
            part = wanted_gradients[other]
        else:  # a part of a matrix that holds queries, keys and values
            first = other.data_ptr() == other._base.data_ptr()
            part = wanted_gradients[other._base][:16] if first else wanted_gradients[other._base][16:]
        torch.testing.assert_close(gradient, part, **CLOSE)
    torch.testing.assert_close(ours.logits(found), wanted @ table.weight.T, **CLOSE)


def test_sines_and_cosines_are_those_of_the_paper():
    found = sinusoids(50, 16)
    for place in (0, 3, 49):
        for i in range(8):
            angle = place / 10_000 ** (2 * i / 16)
            assert found[place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_size():
    """Table 3 of the paper: about 65 million; one table of 37,000 tokens and twelve blocks make 63,082,496."""
    with torch.device("meta"):
        model = transformer.build(transformer.presets["transformer_2017"], transformer.paper())
    encoder = 4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    decoder = encoder + 4 * (512 * 512 + 512) + 2 * 512
    expected = 37_000 * 512 + 6 * encoder + 6 * decoder
    assert sum(p.numel() for p in model.parameters()) == expected == 63_082_496


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("pieces", [(1,) * 6, (2, 1, 3), (6,)])
def test_written_step_by_step_equals_written_at_once(config, pieces):
    model, batch = build(config), batch_of(SPEC, 4)
    written = batch["target:german"][:, :6]
    assert isinstance(model, Translator)
    with torch.no_grad():
        memory = model.encode(batch)
        whole = model.decode(written, memory)
        cache = model.cache(memory, 7)
        parts = torch.cat([model.extend(piece, cache) for piece in written.split(pieces, 1)], 1)
    torch.testing.assert_close(parts, whole, **CLOSE)


@pytest.mark.parametrize("config", KINDS)
def test_a_shorter_batch_reads_the_same(config):
    model, batch = build(config), batch_of(SPEC, 1)
    batch["text:english"][:, 5:] = 0
    with torch.no_grad():
        long, short = model(batch), model({"text:english": batch["text:english"][:, :5]})
        written = batch["target:german"]
        torch.testing.assert_close(model.decode(written, long), model.decode(written, short), **CLOSE)
    torch.testing.assert_close(long.pooled, short.pooled, **CLOSE)


def test_nobody_looks_ahead():
    model, batch = build(PAPER), batch_of(SPEC, 3)
    written = batch["target:german"]
    other = written.clone()
    other[:, 4:] = 7
    with torch.no_grad():
        memory = model.encode(batch)
        first, second = model.decode(written, memory), model.decode(other, memory)
    assert torch.equal(first[:, :4], second[:, :4]) and not torch.allclose(first[:, 4:], second[:, 4:])


@pytest.mark.parametrize("config", KINDS)
def test_every_parameter_learns(config):
    model = build(config).train()
    batch = batch_of(SPEC, 8)
    model.logits(model.decode(batch["target:german"], model(batch))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_learns_to_copy():
    """Trained on pairs of equal texts, it writes what it reads, greedily and with beams."""
    copies = replace(SPEC, targets=(replace(SPEC.targets[0], name="german", shape=(9,)),))
    torch.manual_seed(0)
    config = replace(PAPER, width=32, depth=1, norm="before")
    model = transformer.build(config, copies)
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(700):
        words = torch.randint(5, 20, (32, 4), generator=draw)
        target = nn.functional.pad(nn.functional.pad(words, (1, 0), value=2), (0, 1), value=3)
        scores = model.logits(model.decode(target[:, :-1], model.encode({"text:english": words})))
        nn.functional.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten()).backward()
        optimizer.step(), optimizer.zero_grad()
    model.eval()
    prompts = [[7, 11, 5, 19], [6, 6, 14, 9]]
    script = Script(lambda tokens: "", copies.inputs[0], frozenset({3}), start=2)
    for beams in (1, 3):
        found = write(model, prompts, script, Settings(tokens=8, beams=beams))
        assert [list(text.tokens) for text in found] == prompts and {text.reason for text in found} == {"end"}


def test_what_cannot_be_shared_is_refused():
    other = replace(SPEC, targets=(replace(SPEC.targets[0], vocabulary=30),))
    with pytest.raises(ConfigError, match=r"'english' has 20 tokens and target 'german' 30: set model.shared=false"):
        transformer.build(PAPER, other)
    assert build(replace(PAPER, shared=False), other).vocabulary == 30
    with pytest.raises(ConfigError, match=r"come in pairs: set model.width=16"):
        transformer.build(replace(PAPER, width=15, num_heads=5), SPEC)
    with pytest.raises(ConfigError, match=r"9 tokens were asked for; the model writes up to 7"):
        build(PAPER).cache(Features(torch.zeros(1, 16), torch.zeros(1, 3, 16)), 9)


def test_without_a_text_to_write_it_is_the_encoder_alone():
    assert not isinstance(transformer.build(PAPER, transformer.example()), Translator)
