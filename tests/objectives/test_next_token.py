"""Telling the next token: the loss is that of transformers, no text sees another, and figures are bits by bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from fathom import pretrained
from fathom.core.types import END, PAD, START, DataSpec, Features, Field
from fathom.data.text import TextEncoder
from fathom.models import gpt, llama
from fathom.objectives import next_token

FIELD = Field(name="text", kind="text", shape=(12,), vocabulary=40)
LENGTHS = [3, 12, 7, 5]  # START and END included


def texts(lengths: list[int] = LENGTHS, seed: int = 0, width: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 40, (len(lengths), width), generator=draw)
    for row, length in enumerate(lengths):
        tokens[row, 0], tokens[row, length - 1], tokens[row, length:] = START, END, PAD
    return tokens


def task(family=gpt, field: Field = FIELD, smoothing: float = 0.0, **options) -> next_token.NextToken:
    torch.manual_seed(0)
    spec = DataSpec(inputs=(field,), rows=4)
    model = family.build(family.Config(**{"width": 16, "dropout": 0.0} | options), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return next_token.build(next_token.Config(smoothing), spec, model)


@pytest.mark.parametrize("family", [gpt, llama])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_formula_over_all_tokens_but_the_first_of_each_text(family, smoothing):
    objective, tokens = task(family, smoothing=smoothing), texts()
    loss = objective.eval().losses({"text:text": tokens})
    costs = []
    for row, length in zip(tokens, LENGTHS, strict=True):  # each text alone, in numpy
        hidden = objective.model({"text:text": row[None, :length]}).tokens
        scores = objective.model.logits(hidden)[0].detach().double().numpy()
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        for place in range(length - 1):
            wanted = logs[place, row[place + 1]]
            costs.append(-(1 - smoothing) * wanted - smoothing * logs[place].mean())
    assert float(loss.weight) == len(costs) == sum(LENGTHS) - len(LENGTHS)
    assert float(loss.total.detach()) == pytest.approx(np.mean(costs), rel=1e-5)


def test_the_loss_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    objective, tokens = task(num_heads=2, depth=2, hidden=64), texts()
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, n_inner=64, resid_pdrop=0, attn_pdrop=0,
        embd_pdrop=0, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    pretrained.put(objective.model, tensors, tuple(gpt.matches(objective.model.config)))
    labels = tokens.masked_fill(tokens == PAD, -100)
    wanted = theirs(input_ids=tokens, attention_mask=(tokens != PAD).long(), labels=labels).loss
    found = objective.losses({"text:text": tokens}).total
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    found.backward(), wanted.backward()
    torch.testing.assert_close(
        objective.model.vectors.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"experts": 3}])
@pytest.mark.parametrize("family", [gpt, llama])
def test_packed_texts_do_not_see_one_another(family, options):
    objective, tokens = task(family, **options).eval(), texts()
    packed = objective.model({"text:text": tokens}).tokens
    for row, length in enumerate(LENGTHS):
        alone = objective.model({"text:text": tokens[row : row + 1, :length]}).tokens
        torch.testing.assert_close(packed[row, :length], alone[0], rtol=1e-4, atol=1e-5)
    vectors = torch.randn(40, 16, requires_grad=True)
    objective.model.vectors.weight = nn.Parameter(vectors.detach().clone())
    own = [set(row.tolist()) for row in texts([4, 4], seed=3)]
    objective.model({"text:text": texts([4, 4], seed=3)}).tokens[0].square().sum().backward()
    moved = objective.model.vectors.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert set(moved) <= own[0]  # no gradient to tokens that only the other text holds


@pytest.mark.parametrize("family", [gpt, llama])
def test_packed_and_padded_give_the_same_loss_and_gradients(family, monkeypatch):
    found = []
    for packs in (True, False):
        objective = task(family, experts=2)
        if not packs:
            monkeypatch.setattr(f"{family.__name__}.Packing.of", lambda real: None)
        loss = objective.train().losses({"text:text": texts([3, 9, 7, 5])})
        loss.total.backward()
        found.append([loss.total, *(p.grad for p in objective.parameters())])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    objective, tokens = task(width=4, num_heads=2, depth=1).double(), texts([3, 6], width=6)
    names, values = zip(*objective.named_parameters(), strict=True)

    def loss(*parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(objective, given, ({"text:text": tokens},)).total

    objective.forward = objective.losses
    assert torch.autograd.gradcheck(loss, values)


def test_accumulated_micro_batches_give_the_gradient_of_one_batch():
    whole, parts = task(), task()
    tokens = texts([3, 12, 7, 5, 4, 9])
    whole.losses({"text:text": tokens}).total.backward()
    weights = 0.0
    for piece in tokens.split(2):
        loss = parts.losses({"text:text": piece})
        (loss.total * loss.weight).backward()
        weights += float(loss.weight)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad / weights, rtol=1e-4, atol=1e-6)


def test_where_the_end_is_also_the_padding_it_is_told_once():
    field = replace(FIELD, special=(END, 1, START, END, -1))
    objective, tokens = task(field=field), texts()
    tokens[tokens == PAD] = END
    wanted = objective.wanted({"text:text": tokens})
    assert (wanted != next_token.NOTHING).sum(1).tolist() == [length - 1 for length in LENGTHS]


def test_bits_are_those_of_the_bytes_as_written():
    rows = pl.Series("text", ["In the beginning, God", "", "¿Qué? – 7", "and the earth, and the sea"])
    encoder = TextEncoder.fit("text", rows, np.arange(4), 320, "keep", 0)
    tokens = np.zeros((4, encoder.length), dtype=np.int32)
    assert encoder.encode(rows, tokens) == 0
    encoder = encoder.measured(tokens)
    objective = task(field=encoder.output).eval()
    batch = {"text:text": torch.from_numpy(tokens).long()}
    found = objective.metrics(batch)
    assert found["bytes"].tolist() == [len(text.encode()) for text in rows]
    told = objective.summary({name: float(each.mean()) for name, each in found.items()})
    loss = objective.losses(batch)
    nats = float((loss.total * loss.weight).detach())
    assert told["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / sum(len(text.encode()) for text in rows), rel=1e-5
    )
    assert told["perplexity"] == pytest.approx(math.exp(float(loss.total.detach())), rel=1e-5)
    assert next(iter(told)) == "bits_per_byte"
    assert objective.predict(batch)["bits_per_byte"].shape == (4,)


def test_what_tells_no_next_token_is_refused():
    class Reader(nn.Module):
        def forward(self, batch):
            return Features(pooled=batch["number"])

    assert "such as gpt" in next_token.needs(Reader())
    assert "it takes one text column" in next_token.accepts(DataSpec(inputs=(Field(name="n", kind="number"),)))
