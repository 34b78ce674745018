"""Putting tokens back: what is masked and how often, the loss beside transformers', spans as T5 draws them, and what
comes of learning on."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom import pretrained
from fathom.core.errors import ConfigError
from fathom.core.types import END, MASK, PAD, START, DataSpec, Field
from fathom.layers.corrupt import filled, masked, ordinary, spans
from fathom.layers.scoring import NOTHING
from fathom.models import bag, bert, gpt, t5, transformer
from fathom.objectives import masked_token

SPECIAL = (PAD, 1, START, END, MASK)
FIELD = Field(name="text", kind="text", shape=(14,), vocabulary=40)
SPEC = DataSpec(inputs=(FIELD,), rows=16)
PAIR = DataSpec(inputs=(FIELD,), targets=(Field(name="other", kind="text", shape=(11,), vocabulary=40),), rows=16)


def rows(lengths: list[int], width: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 40, (len(lengths), width), generator=draw)
    for row, length in enumerate(lengths):
        tokens[row, 0], tokens[row, length - 1], tokens[row, length:] = START, END, PAD
    return tokens


def task(family=bert, spec: DataSpec = SPEC, **options) -> masked_token.MaskedToken:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 1, "num_heads": 2, "dropout": 0.0}
    if family is t5:
        small |= {"hidden": 24, "head_size": 8}
    if family is transformer:
        small |= {"token_dropout": 0.0}
    return masked_token.build(masked_token.Config(**options), spec, family.build(family.Config(**small), spec))


def test_of_the_chosen_tokens_eight_in_ten_are_masked_and_one_is_any():
    torch.manual_seed(0)
    tokens = torch.full((400, 500), 7)
    chosen = torch.rand(tokens.shape) < 0.15
    read, wanted = masked(tokens, chosen, MASK, 1000)
    assert ((wanted == NOTHING) == ~chosen).all() and (wanted[chosen] == 7).all()
    assert (read[~chosen] == 7).all()
    share = [(read[chosen] == MASK).float().mean().item(), (read[chosen] == 7).float().mean().item()]
    assert share == pytest.approx([0.8, 0.1], abs=0.01)
    others = read[chosen & (read != MASK) & (read != 7)]
    assert len(others) / int(chosen.sum()) == pytest.approx(0.1, abs=0.01) and len(others.unique()) > 800


def test_special_tokens_are_never_taken():
    objective, tokens = task(share=0.9), rows([14, 5, 9], 14)
    for corruption in ("tokens", "spans"):
        objective = task(share=0.9, corruption=corruption)
        read, wanted = objective.corrupted(tokens, FIELD)
        plain = ~ordinary(tokens, SPECIAL)
        assert (wanted[plain] == NOTHING).all() and (read[plain] == tokens[plain]).all()
        assert (wanted != NOTHING).any()


def test_the_loss_is_that_of_transformers_with_the_same_masks():
    transformers = pytest.importorskip("transformers")
    objective, tokens = task().eval(), rows([14, 5, 9], 14)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=14, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(config).eval()
    state = theirs.state_dict()
    tensors = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    pretrained.put(objective.model, tensors, tuple(bert.matches(objective.model.config)))
    teller = objective.tellers[0]
    with torch.no_grad():
        theirs.cls.predictions.bias.normal_()
        for ours, name in ((teller.linear, "transform.dense"), (teller.norm, "transform.LayerNorm")):
            part = theirs.cls.predictions.get_submodule(name)
            ours.weight.copy_(part.weight), ours.bias.copy_(part.bias)
        teller.bias.copy_(theirs.cls.predictions.bias)
        teller.norm.eps = theirs.cls.predictions.transform.LayerNorm.eps
    torch.manual_seed(3)
    read, wanted = objective.corrupted(tokens, FIELD)
    expected = theirs(input_ids=read, attention_mask=(tokens != PAD).long(), labels=wanted).loss
    torch.manual_seed(3)
    found = objective.losses({"text:text": tokens})
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-6)
    assert float(found.weight) == int((wanted != NOTHING).sum())
    found.total.backward(), expected.backward()
    gradient = theirs.bert.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(objective.model.vectors[0].weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_token_vectors_are_the_models_own_unless_told_otherwise():
    tied, untied = task(), task(tied=False)
    assert tied.tellers[0].table is None and untied.tellers[0].table.shape == (40, 16)
    names = dict(tied.named_parameters())
    assert [name for name, each in names.items() if each.shape == (40, 16)] == ["model.vectors.0.weight"]


@pytest.mark.parametrize(("share", "length"), [(0.15, 3.0), (0.5, 3.0), (0.3, 1.0)])
def test_spans_take_as_many_tokens_in_as_many_runs_as_t5s(share, length):
    torch.manual_seed(0)
    sizes = [0, 1, 2, 5, 20, 60, 100]
    candidates = torch.zeros(len(sizes), 110, dtype=torch.bool)
    for row, size in enumerate(sizes):
        candidates[row, 1 : 1 + size] = True
    seen = torch.zeros(110)
    for _ in range(200):
        taken = spans(candidates, share, length)
        assert not (taken & ~candidates).any()
        for row, size in enumerate(sizes):
            wanted = min(max(round(size * share), 1), max(size - 1, 0))  # T5's random_spans_noise_mask
            runs = min(max(round(wanted / length), 1), wanted, size - wanted)
            starts = int((taken[row, 1:] & ~taken[row, :-1]).sum())
            assert (int(taken[row].sum()), starts) == (wanted, runs if wanted else 0)
        seen += taken[-1].float()
    assert (seen[10:90] > 0).all()  # anywhere in the text


def test_runs_and_what_is_left_make_the_text_again():
    torch.manual_seed(0)
    tokens = rows([14, 6, 9, 3], 14)
    taken = spans(ordinary(tokens, SPECIAL), 0.4, 2.0)
    read, written = filled(tokens, taken, SPECIAL)
    assert read.shape == tokens.shape
    for row in range(4):
        left, runs = read[row].tolist(), written[row].tolist()
        assert runs[0] == START and runs.count(END) == 1 and set(runs[runs.index(END) + 1 :]) <= {PAD}
        parts, run = [], []
        for token in runs[1 : runs.index(END)]:
            if token == MASK:
                run = []
                parts.append(run)
            else:
                run.append(token)
        assert left.count(MASK) == len(parts) and all(parts)
        whole = [t for token in left if token != PAD for t in (parts.pop(0) if token == MASK else [token])]
        assert whole == tokens[row][tokens[row] != PAD].tolist()


@pytest.mark.parametrize("family", [t5, transformer])
def test_what_reads_and_writes_writes_the_runs(family):
    objective = task(family, PAIR, corruption="spans", share=0.4).eval()
    batch = {"text:text": rows([14, 6], 14), "target:other": rows([9, 5], 11, seed=1)}
    torch.manual_seed(1)
    loss = objective.losses(batch)
    torch.manual_seed(1)
    tokens = torch.cat([batch["text:text"], torch.nn.functional.pad(batch["target:other"], (0, 3))])
    read, written = filled(tokens, spans(ordinary(tokens, SPECIAL), 0.4, 3.0), SPECIAL)
    costs = []
    for row in range(4):
        memory = objective.model.encode({"text:text": read[row : row + 1]})
        runs = written[row][written[row] != PAD][None]
        scores = objective.model.logits(objective.model.decode(runs[:, :-1], memory))[0].detach().double().numpy()
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        costs += [-logs[place, token] for place, token in enumerate(runs[0, 1:].tolist())]
    assert loss.total.item() == pytest.approx(np.mean(costs), rel=1e-5) and float(loss.weight) == len(costs)
    torch.manual_seed(1)
    found = objective.metrics(batch)
    assert found["nats"].shape == (2,) and float(found["tokens"].sum()) == len(costs)


def test_gradients_are_those_of_finite_differences():
    objective, tokens = task().double(), {"text:text": rows([14, 9], 14)}
    objective.forward = objective.losses
    names, values = zip(*objective.named_parameters(), strict=True)

    def loss(*parameters):
        torch.manual_seed(0)
        return torch.func.functional_call(objective, dict(zip(names, parameters, strict=True)), (tokens,)).total

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


def test_two_columns_are_told_by_their_own_tokens():
    spec = bert.example()
    model = bert.build(bert.Config(width=16, depth=1, num_heads=2), spec)
    objective = masked_token.build(masked_token.Config(), spec, model)
    assert objective.tables == ["vectors.0.weight", "vectors.1.weight"]
    batch = {field.key: rows([field.shape[0]] * 3, field.shape[0]).clamp_max(19) for field in spec.texts}
    assert objective.losses(batch).total.isfinite()
    assert objective.metrics(batch)["nats"].shape == (3,)


def test_what_cannot_be_trained_so_is_refused():
    model = gpt.build(gpt.Config(width=8, num_heads=2), SPEC)
    assert "both sides" in masked_token.needs(model) and masked_token.needs(task().model) is None
    bare = Field(name="text", kind="text", shape=(9,), vocabulary=30, special=(0, 1, 2, 3, -1))
    assert "no token for what is masked" in masked_token.accepts(DataSpec(inputs=(bare,)))
    with pytest.raises(ConfigError, match=r"objective\.corruption=spans"):
        task(t5, PAIR)
    with pytest.raises(ConfigError, match="a share between 0 and 1"):
        task(share=1.5)
    with pytest.raises(ConfigError, match="says something of every token"):
        masked_token.build(masked_token.Config(), SPEC, bag.build(bag.Config(), SPEC))


def test_what_was_learned_without_labels_is_learned_on_from(tmp_path):
    draw = np.random.default_rng(0)
    things, verbs = ["sun", "moon", "star", "rain", "snow"], ["shines on", "falls on", "looks at"]
    texts = [
        f"the {draw.choice(things)} {draw.choice(verbs)} the {draw.choice(things)} and the {draw.choice(things)} {i}"
        for i in range(160)
    ]
    frame = pl.DataFrame({"text": texts, "label": ["day" if "sun" in text else "night" for text in texts]})
    small = {
        "model": {"width": 16, "depth": 1, "num_heads": 2},
        "engine": {"threads": 1, "precision": "fp32"},
        "prepare": {"vocabulary": 300},
    }
    before = fathom.fit(frame.select("text"), objective="masked_token", epochs=2, config=small, out=tmp_path / "pre")
    assert set(before.metrics["measures"]) == {"loss", "perplexity"}
    vectors = before.module.model.vectors[0].weight.detach().clone()
    engine = {"engine": {"threads": 1, "precision": "fp32", "learning_rate": 1e-12, "weight_decay": 0.0}}
    after = fathom.fit(frame, "label", weights=tmp_path / "pre", epochs=1, config=engine)
    torch.testing.assert_close(after.module.model.vectors[0].weight, vectors)
    assert after.artifact.preprocess.texts[0].tokenizer == before.artifact.preprocess.texts[0].tokenizer
