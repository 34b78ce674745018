"""Translating: the loss is that of transformers with its label smoothing, greedy writing is the model's own, and two
text columns become an artifact that translates."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import polars as pl
import pytest
import torch

import fathom
from fathom import pretrained
from fathom.api.translate import bleu
from fathom.core.errors import ConfigError, DataError
from fathom.core.types import END, PAD, START, DataSpec, Field
from fathom.data import Preprocess, infer
from fathom.models import gpt, t5, transformer
from fathom.objectives import translate

READ = Field(name="text", kind="text", shape=(9,), vocabulary=30)
WRITTEN = Field(name="other", kind="text", shape=(8,), vocabulary=30)
SPEC = DataSpec(inputs=(READ,), targets=(WRITTEN,), rows=16)


def rows(lengths: list[int], width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 30, (len(lengths), width), generator=draw)
    for row, length in enumerate(lengths):
        tokens[row, 0], tokens[row, length - 1], tokens[row, length:] = START, END, PAD
    return tokens


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"text:text": rows([9, 4, 6], 9, seed), "target:other": rows([3, 7, 5], 8, seed + 1)}


def task(family=t5, smoothing: float = 0.1, **options) -> translate.Translate:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 1, "num_heads": 2, "dropout": 0.0}
    small |= {"hidden": 24, "head_size": 8} if family is t5 else {"token_dropout": 0.0}
    model = family.build(family.Config(**small | options), SPEC)
    return translate.build(translate.Config(smoothing), SPEC, model)


@pytest.mark.parametrize("family", [t5, transformer])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_formula_for_each_pair_alone(family, smoothing):
    objective, given = task(family, smoothing).eval(), batch()
    costs = []
    for row in range(3):
        read, written = (given[key][row] for key in ("text:text", "target:other"))
        read, written = read[read != PAD][None], written[written != PAD][None]
        memory = objective.model.encode({"text:text": read})
        scores = objective.model.logits(objective.model.decode(written[:, :-1], memory))[0].detach().double().numpy()
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        for place, token in enumerate(written[0, 1:].tolist()):
            costs.append(-(1 - smoothing) * logs[place, token] - smoothing * logs[place].mean())
    loss = objective.losses(given)
    assert float(loss.weight) == len(costs) == 2 + 6 + 4
    assert loss.total.item() == pytest.approx(np.mean(costs), rel=1e-5)
    with torch.no_grad():
        figures = objective.metrics(given)
    told = objective.summary({name: float(each.mean()) for name, each in figures.items()})
    if not smoothing:
        assert told["loss"] == pytest.approx(np.mean(costs), rel=1e-5)
        assert told["perplexity"] == pytest.approx(math.exp(np.mean(costs)), rel=1e-5)


def test_the_loss_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.trainer_pt_utils import LabelSmoother

    objective, given = task(), batch()
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=PAD,
        decoder_start_token_id=START, eos_token_id=END,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config)
    pretrained.put(objective.model, theirs.state_dict(), tuple(t5.matches(objective.model.config)))
    labels = given["target:other"][:, 1:].masked_fill(given["target:other"][:, 1:] == PAD, -100)
    inputs = {"input_ids": given["text:text"], "attention_mask": (given["text:text"] != PAD).long()}
    found = theirs(**inputs, decoder_input_ids=given["target:other"][:, :-1])
    wanted = LabelSmoother(epsilon=0.1)({"logits": found.logits}, labels)
    loss = objective.losses(given).total
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    loss.backward(), wanted.backward()
    torch.testing.assert_close(objective.model.vectors.weight.grad, theirs.shared.weight.grad, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    objective, given = task(width=4, head_size=2, hidden=4).double(), batch()
    names, values = zip(*objective.named_parameters(), strict=True)
    objective.forward = objective.losses

    def loss(*parameters):
        return torch.func.functional_call(objective, dict(zip(names, parameters, strict=True)), (given,)).total

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


def test_accumulated_micro_batches_give_the_gradient_of_one_batch():
    whole, parts, given = task(), task(), batch()
    whole.losses(given).total.backward()
    weights = 0.0
    for piece in (slice(0, 2), slice(2, 3)):
        loss = parts.losses({key: value[piece] for key, value in given.items()})
        (loss.total * loss.weight).backward()
        weights += float(loss.weight)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad / weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [t5, transformer])
def test_what_is_predicted_is_written_token_by_token(family):
    objective, given = task(family).eval(), batch()
    with torch.no_grad():
        found = objective.predict(given)["other"]
        memory = objective.model.encode(given)
        for row in range(3):
            written = [START]
            while len(written) < 8 and written[-1] != END:
                hidden = objective.model.decode(torch.tensor([written] * 3), memory)[row, -1]
                written.append(int(objective.model.logits(hidden).argmax()))
            assert found[row, : len(written)].tolist() == written
            assert (found[row, len(written) :] == PAD).all()


@pytest.mark.parametrize("family", [t5, transformer])
def test_the_weights_told_of_attention_are_those_it_gathers_by(family):
    objective, given = task(family).eval(), batch()
    parts = [m for m in objective.model.modules() if getattr(m, "project_memory", None) is not None]
    seen = []
    for part in parts:
        part.register_forward_pre_hook(lambda part, values: seen.append((part.weights(*values), values[2])))
        part.register_forward_hook(lambda part, values, found: seen.append(found))
    with torch.no_grad():
        objective.losses(given)
        (weights, value), found = seen
        again = part.project_out((weights @ value).transpose(1, 2).flatten(2))
    real = (given["target:other"] != PAD)[:, : again.shape[1]]
    found = found if found.dim() == 3 else torch.zeros_like(again).masked_scatter(real[..., None], found)  # packed
    torch.testing.assert_close(again[real], found[real], rtol=1e-4, atol=1e-6)
    assert (weights[1, :, :, 4:] == 0).all()  # the second text has four tokens


def test_data_and_models_that_do_not_fit_are_refused_by_what_is_missing():
    assert translate.accepts(SPEC) is None
    label = Field(name="label", kind="category", classes=("a", "b"), counts=(1, 1))
    assert "needs two text columns" in translate.accepts(DataSpec(inputs=(READ,), targets=(label,)))
    assert "found 1: 'text'" in translate.accepts(DataSpec(inputs=(READ,)))
    model = gpt.build(gpt.Config(width=8, num_heads=2), DataSpec(inputs=(READ,)))
    assert "such as transformer or t5" in translate.needs(model)
    with pytest.raises(ConfigError, match=r"objective\.beams"):
        translate.build(translate.Config(beams=0), SPEC, model)


NUMBERS = ["one", "two", "three", "four", "five", "six", "seven"]
OTHERS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"]


def pairs(count: int, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    sequences = [draw.integers(0, 7, draw.integers(3, 5)) for _ in range(count)]
    english = [" ".join(NUMBERS[i] for i in each) for each in sequences]
    german = [" ".join(OTHERS[i] for i in each) for each in sequences]
    return pl.DataFrame({"english": english, "german": german}).unique(maintain_order=True)


def test_text_targets_share_their_tokens_with_what_is_read(tmp_path):
    frame = pairs(120).with_columns(german=pl.when(pl.int_range(pl.len()) != 4).then(pl.col("german")))
    columns = infer(frame, ["german"])
    assert {c.name: c.kind for c in columns} == {"english": "text", "german": "text"}
    preprocess, prepared = Preprocess.fit(frame, columns, ["german"])
    read, written = preprocess.texts[0], preprocess.written[0]
    assert read.tokenizer == written.tokenizer
    assert preprocess.spec.targets[0].vocabulary == preprocess.spec.inputs[0].vocabulary
    assert len(prepared.rows) == len(frame) - 1 and prepared.set_aside[0].reason == "target 'german' is missing"
    tokens = prepared.store.columns["target:german"]
    assert (tokens[:, 0] == START).all() and (tokens == END).any(1).all()
    assert written.decode(tokens.numpy()) == frame["german"].gather(prepared.rows).to_list()
    preprocess.save(tmp_path)
    again = Preprocess.load(tmp_path)
    assert again == preprocess
    other = again.transform(frame, with_targets=True)
    assert all(torch.equal(other.store.columns[key], prepared.store.columns[key]) for key in prepared.store.columns)
    assert set(again.transform(frame.select("english")).store.columns) == {"text:english"}


def test_a_trained_translator_translates(tmp_path, capsys):
    frame = pairs(500)
    options = {
        "model": {"width": 32, "depth": 1, "num_heads": 2, "dropout": 0.0, "token_dropout": 0.0},
        "engine": {"batch_size": 32, "learning_rate": 5e-3, "threads": 1, "precision": "fp32", "average": 0.0},
        "prepare": {"vocabulary": 400},
    }
    trained = fathom.fit(
        frame, "german", objective="translate", model="transformer", epochs=30, config=options, out=tmp_path / "out"
    )
    loaded = fathom.load(tmp_path / "out")
    known = dict(zip(NUMBERS, OTHERS, strict=True))
    texts = ["one two three", "seven six five four", "two two four"]
    right = [" ".join(known[word] for word in text.split()) for text in texts]
    found = loaded.translate(texts)
    assert found == trained.translate(texts) and loaded.translate(texts[0]) == found[0]
    words = [(a, b) for x, y in zip(found, right, strict=True) for a, b in zip(x.split(), y.split(), strict=False)]
    assert np.mean([a == b for a, b in words]) > 0.7
    looked = loaded.looked_at(texts[0], right[0])
    assert [word for word, _, _ in looked] == right[0].split()
    assert {source for _, source, _ in looked} <= set(texts[0].split())
    assert all(0 < weight <= 1 for *_, weight in looked)
    predicted = loaded.predict(pl.DataFrame({"english": texts}))
    assert predicted["prediction"].to_list() == found
    assert set(loaded.metrics["measures"]) >= {"loss", "perplexity"}

    from fathom.cli import app

    sys.stdout.flush()
    capsys.readouterr()
    app(["translate", str(tmp_path / "out"), *texts, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert [row["translation"] for row in told] == found
    with pytest.raises(DataError, match="tokens, the most that the model reads"):
        loaded.translate("one " * 80)


def test_bleu_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    found, truth = ["the cat sat on the mat", "a dog ran"], ["the cat sat on a mat", "a dog has run"]
    told = bleu(found, truth)
    assert told["bleu"]["value"] == sacrebleu.corpus_bleu(found, [truth]).score
    assert told["chrf"]["value"] == sacrebleu.corpus_chrf(found, [truth]).score
    assert json.loads(json.dumps(told)) == told
    assert told["bleu"]["low"] <= told["bleu"]["value"] <= told["bleu"]["high"]
