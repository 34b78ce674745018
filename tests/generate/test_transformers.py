"""What is written equals what transformers' `generate` writes: greedy and with beams, prompts of unlike lengths."""

from __future__ import annotations

import pytest
import torch

from fathom import pretrained
from fathom.core.types import DataSpec, Field
from fathom.generate import Script, Settings, filtered, write
from fathom.models import llama, t5

transformers = pytest.importorskip("transformers")

END = 1
T5 = t5.Config(32, 2, 2, 4, 8, 48, dropout=0.0)
LLAMA = llama.Config(32, 2, 4, 2, hidden=48, context=200)
TEXT = Field(name="text", kind="text", shape=(40,), vocabulary=60, special=(0, 2, 0, END, -1))
PROMPTS = [[5, 9, 33, 12, 40, 7], [8], [50, 51, 52, 3]]


def spelt(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def sharp(model: torch.nn.Module, scale: float) -> None:
    """Random networks are nearly sure of one token, or of none: in between they write something to compare."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "shared" not in name:
                parameter.mul_(scale)


def translators(seed: int) -> tuple[t5.T5, torch.nn.Module]:
    torch.manual_seed(seed)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    sharp(theirs, 1.5)
    ours = t5.build(T5, DataSpec(inputs=(TEXT,), targets=(Field(**{**vars(TEXT), "name": "answer"}),))).eval()
    pretrained.put(ours, theirs.state_dict(), t5.matches(T5))
    return ours, theirs


def language_models(seed: int) -> tuple[llama.Llama, torch.nn.Module]:
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=200, tie_word_embeddings=True, rms_norm_eps=1e-5,
        )
    ).eval()  # fmt: skip
    sharp(theirs, 12.0)
    ours = llama.build(LLAMA, DataSpec(inputs=(TEXT,))).eval()
    pretrained.put(ours, theirs.state_dict(), llama.matches(LLAMA))
    return ours, theirs


def expected(theirs: torch.nn.Module, left: bool, **options: object) -> list[tuple[int, ...]]:
    """Return what transformers writes to the prompts, without prompt, start, end and padding."""
    longest = max(map(len, PROMPTS))
    pad = [[0] * (longest - len(p)) for p in PROMPTS]
    rows = [a + p if left else p + a for a, p in zip(pad, PROMPTS, strict=True)]
    mask = [
        [0] * len(a) + [1] * len(p) if left else [1] * len(p) + [0] * len(a) for a, p in zip(pad, PROMPTS, strict=True)
    ]
    found = theirs.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        pad_token_id=0,
        eos_token_id=END,
        **options,
    )
    return [_until_end(row[longest if left else 1 :]) for row in found.tolist()]


def _until_end(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(END)] if END in row else row)


def _trimmed(rows: list[tuple[int, ...]], theirs: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [mine + (0,) * (len(other) - len(mine)) for mine, other in zip(rows, theirs, strict=True)]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_translator_writes_the_same(beams, seed):
    ours, theirs = translators(seed)
    script = Script(spelt, TEXT, frozenset({END}), start=0)
    found = write(ours, PROMPTS, script, Settings(tokens=20, beams=beams))
    wanted = expected(theirs, left=False, max_new_tokens=20, num_beams=beams)
    assert _trimmed([text.tokens for text in found], wanted) == wanted
    assert len({text.tokens for text in found}) > 1


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_beams_weigh_lengths_the_same(penalty):
    for seed in range(4):
        ours, theirs = translators(seed)
        script = Script(spelt, TEXT, frozenset({END}), start=0)
        found = write(ours, PROMPTS, script, Settings(tokens=20, beams=4, length_penalty=penalty))
        wanted = expected(theirs, left=False, max_new_tokens=20, num_beams=4, length_penalty=penalty)
        assert _trimmed([text.tokens for text in found], wanted) == wanted


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_language_model_writes_the_same(beams, seed):
    ours, theirs = language_models(seed)
    found = write(ours, PROMPTS, Script(spelt, TEXT, frozenset({END})), Settings(tokens=30, beams=beams))
    wanted = expected(theirs, left=True, max_new_tokens=30, num_beams=beams)
    assert _trimmed([text.tokens for text in found], wanted) == wanted
    assert len({text.tokens for text in found}) > 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.5, 9, 0.3)]
)
def test_what_may_be_drawn_is_the_same(temperature, top_k, top_p):
    from transformers.generation import logits_process as theirs

    scores = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    wanted = theirs.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        wanted = theirs.TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = theirs.TopPLogitsWarper(top_p)(None, wanted)
    torch.testing.assert_close(filtered(scores, temperature, top_k, top_p).exp(), wanted.softmax(-1))
