"""`fathom.published(…)`, `fathom.load(…).generate` and `fathom generate` write the same texts, and refuse clearly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fathom
from fathom.api.generate import Unset, settings
from fathom.core.errors import ConfigError, FathomError
from fathom.models import llama, t5

WORDS = ["<pad>", "</s>", "<unk>", *["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "dog", "in", "sun"]]
MODELS = ["llama", "t5"]


def folder_of(kind: str, folder: Path) -> Path:
    """Write a small network as transformers publishes it, with a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    shared = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}
    if kind == "llama":
        network = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **shared, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=40,
            )
        )  # fmt: skip
    else:
        network = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **shared, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp(request.param))


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from fathom.cli import main; main()", "generate", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
    )


def test_published_weights_write_as_transformers_does(folder):
    transformers = pytest.importorskip("transformers")
    author, prompt = fathom.published(str(folder)), "the cat sat on"
    kind = transformers.AutoModelForCausalLM if "llama" in folder.name else transformers.AutoModelForSeq2SeqLM
    theirs = kind.from_pretrained(folder).eval()
    tokens = torch.tensor([author.encode(prompt)])
    found = theirs.generate(tokens, max_new_tokens=8, do_sample=False)[0].tolist()
    found = found[tokens.shape[1] if "llama" in folder.name else 1 :]
    found = found[: found.index(1)] if 1 in found else found
    before = author.encode(prompt) if "llama" in folder.name else []
    wanted = author.script.decode(before + found).removeprefix(author.script.decode(before))
    assert author.generate(prompt, tokens=8) == wanted and wanted
    assert author.generate([prompt, "a dog"], tokens=8)[0] == wanted
    assert "".join(author.stream(prompt, tokens=8)) == wanted


def test_the_command_says_the_same_as_python(folder):
    author, prompts = fathom.published(str(folder)), ["the cat sat", "a dog in", "sun"]
    wanted = author.generate(prompts, tokens=6)
    one = run(str(folder), "--prompt", prompts[0], "--tokens", "6")
    assert (one.returncode, one.stdout) == (0, wanted[0] + "\n"), one.stderr
    several = run(str(folder), "--file", "-", "--tokens", "6", "--json", stdin="\n".join(prompts))
    rows = json.loads(several.stdout)
    assert [row["text"] for row in rows] == wanted and [row["prompt"] for row in rows] == prompts
    assert {row["reason"] for row in rows} <= {"end", "length"}
    drawn = run(str(folder), "--prompt", "-", "--tokens", "6", "--top-k", "5", "--seed", "4", stdin=prompts[1])
    assert drawn.stdout == author.generate(prompts[1], tokens=6, top_k=5, seed=4) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no prompt"),
        (["--prompt", "a", "--tokens", "0"], "'tokens' was given 0; expected 1 or more"),
        (["--prompt", "a", "--beams", "3", "--temperature", "1"], "give one of the two"),
        (["--prompt", "a", "--file", "nowhere.txt"], "'nowhere.txt' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(folder, arguments, message):
    if "t5" in folder.name:
        pytest.skip("once is enough")
    found = run(str(folder), *arguments)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and message in found.stderr and found.stderr.count("\n") == 1


def test_sources_that_write_nothing_are_refused(tmp_path):
    found = run(str(tmp_path / "nowhere"), "--prompt", "a")
    assert found.returncode == 2 and "There are no published weights at" in found.stderr
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(FathomError):
        fathom.published(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = folder_of("llama", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        fathom.published(str(folder))


def test_a_trained_language_model_writes(tmp_path):
    words = ["sun", "mat", "tree", "house", "river", "stone", "bird", "cloud", "road", "field", "lamp", "door"]
    rows = [
        {"text": f"the {a} sat on the {words[i % 12]} and looked at the {words[i // 12]} number {i}", "label": a}
        for i, a in enumerate(["cat", "dog"] * 60)
    ]
    trained = fathom.fit(rows, "label", model="llama", epochs=1, out=tmp_path / "out")
    found = fathom.load(tmp_path / "out").generate("the cat", tokens=5)
    assert isinstance(found, str)
    assert found == trained.generate("the cat", tokens=5) == trained.generate(["the cat", "the dog sat"], tokens=5)[0]
    assert run(str(tmp_path / "out"), "--prompt", "the cat", "--tokens", "5").stdout == found + "\n"
    other = fathom.fit(rows, "label", model="bag", epochs=1)
    with pytest.raises(ConfigError, match="does not write texts"):
        other.generate("the cat")


def test_what_may_be_drawn_from_is_drawn_from():
    assert settings(top_p=0.9).temperature == 1.0 and settings(tokens=3).temperature == 0.0
    assert settings(stop="x").stop == ("x",)
    with pytest.raises(ConfigError, match="There is no option 'max_tokens' of generating"):
        settings(max_tokens=3)


@pytest.mark.parametrize("family", [llama, t5])
def test_weights_that_a_file_will_fill_are_not_drawn_first(family):
    with Unset():
        state = torch.get_rng_state()
        network = family.build(family.Config(), family.example())
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in network.parameters()) > 0
