"""Llama and its kin: published sizes, transformers' Llama, Mistral and Mixtral weight for weight, and refusals."""

from dataclasses import replace

import pytest
import torch

from fathom import pretrained
from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.published import translate
from fathom.core.types import DataSpec, Field
from fathom.models import llama
from fathom.objectives import supervised

SMALL = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
MIXTURE = {"num_local_experts": 6, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}
LONGER = {  # pairs turn 4.8 times in 30 tokens and less: quick, blended and slow ones
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 30,
}
KINDS = [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    (
        "Llama",
        {"head_dim": 12, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    ),
    ("Llama", {"head_dim": 16, "rope_parameters": LONGER}),
    ("Mistral", {"sliding_window": None}),
    ("Mixtral", MIXTURE),
    ("Mixtral", MIXTURE | {"num_experts_per_tok": 1, "num_local_experts": 3}),
]


def texts_of(vocabulary: int, length: int, pad: int = 0) -> DataSpec:
    return DataSpec(
        inputs=(Field(name="t", kind="text", shape=(length,), vocabulary=vocabulary, special=(pad, 1, 2, 3, 4)),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
    )


def pair(kind: str, settings: dict[str, object]) -> tuple[torch.nn.Module, llama.Llama, llama.Config]:
    """Return transformers' network with weights so large that every part tells, and ours with its weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | settings))
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    mine = llama.published(config.to_dict())
    ours = llama.build(mine, texts_of(90, 20))
    loaded = pretrained.put(ours, theirs.state_dict(), llama.matches(mine))
    assert (loaded.fresh, loaded.left, loaded.changed) == ((), (), ())
    return theirs, ours, mine


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("smollm2_1_7b", 1_711_376_384),
        ("llama2_7b", 6_738_415_616),
        ("mistral_7b", 7_241_732_096),
        ("mixtral_8x7b", 46_702_792_704),
    ],
)
def test_parameter_counts_are_the_published(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = llama.build(catalog.find("models", name).config, llama.paper(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_equals_transformers(kind: str, settings: dict[str, object]) -> None:
    theirs, ours, _ = pair(kind, settings)
    tokens = torch.randint(5, 90, (4, 20))
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        found = ours.eval().logits(ours({"text:t": tokens}).tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_training_step_has_the_same_gradients_as_transformers(kind: str, settings: dict[str, object]) -> None:
    theirs, ours, config = pair(kind, settings)
    tokens = torch.randint(5, 90, (4, 20))
    theirs.train()(tokens, labels=tokens).loss.backward()
    logits = ours.train().logits(ours({"text:t": tokens}).tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = translate({name: p.grad for name, p in theirs.named_parameters()}, llama.matches(config)).tensors
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_uneven_use_of_experts_costs_is_transformers() -> None:
    """Theirs takes all layers together; ours each by itself, and then the mean. Of one layer they are the same."""
    pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    theirs, ours, _ = pair("Mixtral", MIXTURE)
    tokens = torch.randint(5, 90, (4, 20))
    tokens[0, 11:], tokens[3, 1:] = 0, 0  # padding does not count
    scores = theirs(tokens, output_router_logits=True).router_logits
    each = [load_balancing_loss_func((layer,), 6, 2, (tokens != 0).long()) for layer in scores]
    expected = 0.02 * torch.stack(each).mean()
    found = ours.train()({"text:t": tokens}).penalty
    assert expected > 0.043  # evenly spread it would be 0.04
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert ours.eval()({"text:t": tokens}).penalty is None


def test_files_name_a_mixtures_experts_one_by_one() -> None:
    _, ours, config = pair("Mixtral", MIXTURE)
    old = {}
    for name, tensor in ours.state_dict().items():
        theirs = name.replace("decoder.blocks", "model.layers").replace(".network.", ".block_sparse_moe.")
        if name.endswith("expand"):
            for e, expert in enumerate(tensor):
                (
                    old[theirs.replace("expand", f"experts.{e}.w1.weight")],
                    old[theirs.replace("expand", f"experts.{e}.w3.weight")],
                ) = expert.chunk(2)
        elif name.endswith("contract"):
            old |= {theirs.replace("contract", f"experts.{e}.w2.weight"): expert for e, expert in enumerate(tensor)}
        elif "router" in name:
            old[theirs.replace("router", "gate")] = tensor
    fresh = llama.build(config, texts_of(90, 20))
    loaded = pretrained.put(fresh, old, llama.matches(config))
    assert loaded.left == () and len(loaded.taken) == 9
    for name in loaded.taken:
        assert torch.equal(fresh.state_dict()[name], ours.state_dict()[name])


def test_a_mixture_is_trained_to_spread_its_tokens() -> None:
    torch.manual_seed(0)
    spec = texts_of(30, 10)
    model = llama.build(llama.Config(width=32, experts=4, balance=1.0), spec)
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.network.router.weight[0] += 0.2
    task = supervised.build(supervised.Config(), spec, model)
    batch = {"text:t": torch.randint(5, 30, (16, 10)), "target:label": torch.randint(2, (16,))}
    optimizer = torch.optim.AdamW(task.parameters(), 1e-2)
    costs = []
    for _ in range(40):
        loss = task.losses(batch)
        torch.testing.assert_close(loss.total, loss.parts["label"] + loss.parts["penalty"])
        costs.append(loss.parts["penalty"].item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert costs[-1] < costs[0] and costs[-1] < 2.1  # even use of two of four costs 2


def test_a_mixture_compiles_as_one_graph_and_exports() -> None:
    torch.manual_seed(0)
    model = llama.build(llama.Config(width=32, experts=4), texts_of(30, 10))
    batch = {"text:t": torch.randint(0, 30, (5, 10))}
    expected = model(batch)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(batch)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.penalty, expected.penalty)

    class Pooled(torch.nn.Module):  # the features are a dataclass, which an exported graph cannot give out
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.model(batch).pooled

    exported = torch.export.export(Pooled(), (batch,)).module()(batch)
    torch.testing.assert_close(exported, expected.pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_heads": 6, "num_kv_heads": 3}, r"model\.num_heads.*does not divide the width 128.*model\.width=132"),
        ({"num_kv_heads": 3}, r"model\.num_kv_heads' was given 3, which 4 heads of queries cannot share"),
        ({"head_size": 7}, r"model\.head_size=8"),
        ({"rotary_stretch": (8.0, 4.0, 1.0, 8192.0)}, r"model\.rotary_stretch'.*second below the third"),
        ({"context": 5}, r"up to 8 tokens; the context is 5"),
        ({"dropout": -0.1}, r"model\.dropout"),
        ({"balance": -0.1}, r"model\.balance"),
        ({"hidden": -1}, r"model\.hidden"),
        ({"experts": 4, "active": 0}, r"model\.active' was given 0; expected 1 to 4"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        llama.build(replace(llama.Config(), **options), texts_of(30, 8))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'.*numbers included"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
    ],
)
def test_published_networks_that_are_otherwise_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        llama.published(SMALL | settings)


def test_only_slow_turns_are_stretched() -> None:
    plain = llama.rotary_speeds(16, 100.0)
    longer = llama.stretched(plain, 4.0, 1.0, 4.0, 30)
    turns = 30 * plain / (2 * torch.pi)
    assert (turns > 4).sum() >= 1 and (turns < 1).sum() >= 2
    assert torch.equal(longer[turns > 4], plain[turns > 4]) and torch.equal(longer[turns < 1], plain[turns < 1] / 4)
    between = longer[(turns > 1) & (turns < 4)] / plain[(turns > 1) & (turns < 4)]
    assert len(between) and bool((between < 1).all()) and bool((between > 1 / 4).all())


def test_the_context_is_what_a_sliding_window_sees() -> None:
    assert llama.published(SMALL | {"sliding_window": 16}).context == 16
    assert llama.published(SMALL | {"sliding_window": None}).context == 40
