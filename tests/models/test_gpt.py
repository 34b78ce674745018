"""GPT-2: the published sizes, transformers' GPT-2 weight for weight, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from fathom import pretrained
from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.types import DataSpec, Field
from fathom.models import gpt

SMALL = {
    "vocab_size": 90,
    "n_positions": 40,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def texts_of(vocabulary: int, length: int, pad: int = 0) -> DataSpec:
    return DataSpec(
        inputs=(Field(name="t", kind="text", shape=(length,), vocabulary=vocabulary, special=(pad, 1, 2, 3, 4)),)
    )


def with_larger_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that every part tells."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.2)
    return network


def pair(length: int = 20, **settings: object) -> tuple[torch.nn.Module, gpt.GPT, gpt.Config]:
    """Return transformers' network, and ours with its weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(SMALL | STILL | settings))
    theirs = with_larger_weights(transformers.GPT2LMHeadModel(config))
    mine = gpt.published(config.to_dict())
    ours = gpt.build(mine, texts_of(config.vocab_size, length))
    loaded = pretrained.put(ours, theirs.state_dict(), gpt.matches(mine))
    assert (loaded.fresh, loaded.left, loaded.changed) == ((), (), ())
    return theirs, ours, mine


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2", 124_439_808), ("gpt2_medium", 354_823_168), ("gpt2_large", 774_030_080), ("gpt2_xl", 1_557_611_200)],
)
def test_parameter_counts_are_the_published(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = gpt.build(catalog.find("models", name).config, gpt.paper())
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("settings", [{}, {"n_inner": 60, "n_head": 6}, {"n_layer": 1, "layer_norm_epsilon": 1e-3}])
def test_equals_transformers(settings: dict[str, object]) -> None:
    theirs, ours, _ = pair(**settings)
    tokens = torch.randint(5, 90, (4, 20))
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        found = ours.eval().logits(ours({"text:t": tokens}).tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_training_step_has_the_same_gradients_as_transformers() -> None:
    theirs, ours, config = pair()
    tokens = torch.randint(5, 90, (4, 20))
    theirs.train()(tokens, labels=tokens).loss.backward()
    logits = ours.train().logits(ours({"text:t": tokens}).tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = translate({name: p.grad for name, p in theirs.named_parameters()}, gpt.matches(config)).tensors
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_published_size_equals_transformers() -> None:
    theirs, ours, _ = pair(64, vocab_size=50_257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    for network in (theirs, ours):  # first weights as they are drawn, not the large ones
        for parameter in network.parameters():
            parameter.data.mul_(0.3)
    tokens = torch.randint(5, 50_257, (1, 64))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval().logits(ours({"text:t": tokens}).tokens), theirs.eval()(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_a_text_is_its_last_real_token() -> None:
    model = gpt.build(gpt.Config(dropout=0.0), texts_of(30, 8, pad=7))
    tokens = torch.tensor([[5, 6, 9, 7, 7, 7, 7, 7], [9, 8, 5, 6, 9, 8, 11, 12], [7] * 8])
    found = model({"text:t": tokens})
    assert found.mask.sum(1).tolist() == [3, 8, 0]
    torch.testing.assert_close(found.pooled, found.tokens[torch.arange(3), torch.tensor([2, 7, 0])])
    changed = tokens.clone()
    changed[0, 3:] = 20  # what is right of a token is not seen by it
    torch.testing.assert_close(model({"text:t": changed}).tokens[0, :3], found.tokens[0, :3])


def test_longer_texts_than_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"up to 12 tokens; the context is 8.*prepare\.text_length=8"):
        gpt.build(gpt.Config(context=8), texts_of(30, 12))
    model = gpt.build(gpt.Config(context=16), texts_of(30, 12))
    with pytest.raises(ConfigError, match=r"17 tokens were asked for.*16"):
        model.cache(1, 17)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_heads": 3}, r"model\.num_heads.*does not divide the width 128.*model\.width=129"),
        ({"depth": 0}, r"model\.depth' was given 0"),
        ({"dropout": 1.0}, r"model\.dropout"),
        ({"balance": -1.0}, r"model\.balance"),
        ({"experts": 4, "active": 5}, r"model\.active' was given 5; expected 1 to 4"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        gpt.build(replace(gpt.Config(), **options), texts_of(30, 8))


def test_other_data_is_refused() -> None:
    two = DataSpec(inputs=(*texts_of(30, 8).inputs, Field(name="size", kind="number")))
    with pytest.raises(ConfigError, match=r"one text column; the input columns are 't' \(text\), 'size' \(number\)"):
        gpt.build(gpt.Config(), two)


@pytest.mark.parametrize("settings", [{"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}])
def test_published_networks_that_are_otherwise_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="The published network"):
        gpt.published({"n_embd": 48, "n_layer": 1, "n_head": 2, "n_positions": 8} | settings)
