"""GGUF, the file that llama.cpp and its kin read: settings, tokenizer and quantised weights, all in one.

    read      a file -> settings and tensors by transformers' names, a `tokenizer.json`, and special tokens
    header    the file's settings and the list of its tensors, every size checked against the file's before it is used
    Weights   the tensors, each brought back to single precision when it is asked for

A file begins with b"GGUF", its version, and the numbers of tensors and of settings; then come the settings (name, type,
value), the tensors (name, dimensions from the fastest to the slowest, type, place), and behind a gap their bytes.
Only the `llama` architecture is known (Llama, SmolLM, Mistral). llama.cpp turns neighbouring numbers of a head by
their position where transformers turns those half a head apart, so that rows of the query and key matrices are stored
in another order; it is undone here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.core.errors import ArtifactError, ConfigError
from fathom.pretrained._gguf_tokenizer import special_tokens, tokenizer

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SIZES = {form: struct.calcsize(f"<{form}") for form in SCALARS.values()}
STRING, ARRAY = 8, 9
MOST_AT_ONCE = 1 << 16  # numbers, so that what stands between stays in the processor's cache
MOST_SETTINGS, MOST_TENSORS, MOST_STRINGS, MOST_DIMENSIONS = 10_000, 100_000, 2_000_000, 4
WHOLE = {  # of the whole network, llama.cpp's names and transformers'
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes stand: its shape, slowest dimension first; its type's number; from where to where."""

    shape: tuple[int, ...]
    kind: int
    start: int
    end: int


def read(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor], str, dict[str, str]]:
    """Return (settings, tensors, tokenizer, special) as `Published` holds them.

    Raises:
        ConfigError: the `gguf` package is missing, or the file is of a kind that is not read here.
        ArtifactError: it is damaged, or not what it says.
    """
    given, places = header(path)
    kind = given.get("general.architecture")
    if kind != "llama":
        raise ConfigError(f"'{path}' holds a network of architecture '{kind}'; of GGUF files only llama is read here.")
    settings = _settings(path, given, places)
    names = _names(settings)
    _check_shapes(path, settings, names, places)
    tensors = Weights(path, {theirs: places[name] for name, theirs in names.items() if name in places}, settings)
    return settings, tensors, tokenizer(path, given), special_tokens(path, given)


class Weights(Mapping[str, Tensor]):
    """The tensors of a GGUF file, in single precision; each is read and dequantised when it is asked for."""

    def __init__(self, path: Path, places: dict[str, Place], settings: Mapping[str, Any]) -> None:
        self._path, self._places = path, places
        self._heads = {"q_proj": settings["num_attention_heads"], "k_proj": settings["num_key_value_heads"]}

    def __getitem__(self, name: str) -> Tensor:
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        place = self._places[name]
        kind = _quantisation(self._path, place.kind)
        raw = np.memmap(self._path, mode="r")[place.start : place.end]
        values = np.empty(math.prod(place.shape), dtype=np.float32)
        block, size = GGML_QUANT_SIZES[kind]
        piece = max(1, MOST_AT_ONCE // block)  # blocks that are undone together
        try:
            for i in range(0, len(raw) // size, piece):
                values[i * block : (i + piece) * block] = dequantize(raw[i * size : (i + piece) * size], kind)
        except NotImplementedError:
            why = f"which the gguf package does not undo: take another quantisation of '{self._path.name}'."
            raise ConfigError(f"'{self._path}' holds '{name}' as {kind.name}, {why}") from None
        tensor = torch.from_numpy(values.reshape(place.shape))
        heads = next((heads for part, heads in self._heads.items() if f".{part}." in name), None)
        return tensor if heads is None else _halves_apart(tensor, heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def header(path: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    """Return the file's settings, and where its tensors stand.

    Raises:
        ConfigError: the `gguf` package is missing. ArtifactError: the file is damaged.
    """
    try:
        file = np.memmap(path, mode="r")
    except (OSError, ValueError) as error:  # a ValueError: it is empty
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from None
    cursor = _Cursor(path, file)
    if cursor.take(4) != MAGIC:
        raise ArtifactError(f"'{path}' is no GGUF file: it does not begin with 'GGUF'.")
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ArtifactError(f"'{path}' is a GGUF file of version {version}; versions 2 and 3 are read here.")
    tensors = cursor.count(MOST_TENSORS, "tensors")
    settings = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(cursor.count(MOST_SETTINGS, "settings"))}
    found = [_tensor(cursor) for _ in range(tensors)]
    step = settings.get("general.alignment", 32)
    if not isinstance(step, int) or not 0 < step <= 1 << 16:
        raise cursor.damaged(f"its alignment is {step!r}")
    first = -(-cursor.place // step) * step
    places = {}
    for name, shape, kind, offset in found:
        size = _bytes(path, name, shape, kind)
        start, end = first + offset, first + offset + size
        if end > len(file):
            raise cursor.damaged(f"tensor '{name}' would end at byte {end:,} of {len(file):,}")
        if name in places:
            raise cursor.damaged(f"tensor '{name}' stands in it twice")
        places[name] = Place(shape, kind, start, end)
    return settings, places


class _Cursor:
    """Reads one thing after another, and never beyond the end of the file."""

    def __init__(self, path: Path, file: np.ndarray[Any, Any]) -> None:
        self.path, self.file, self.place = path, file.data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.file) - self.place:
            raise self.damaged(f"it ends at byte {len(self.file):,} where {size:,} more are needed")
        self.place += size
        return self.file[self.place - size : self.place].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(SIZES[form]))[0]

    def count(self, most: int, what: str) -> int:
        given = int(self.number("Q"))
        if given > most:
            raise self.damaged(f"it speaks of {given:,} {what}")
        return given

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a text in it is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """Return a setting: a number, a text, or a list of either."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise self.damaged(f"it has a setting of the unknown type {kind}")
        inner = self.number("I")
        if inner == STRING:
            return [self.text() for _ in range(self.count(MOST_STRINGS, "texts in one setting"))]
        if inner not in SCALARS:
            raise self.damaged(f"it has a list of the unknown type {inner}")
        form, length = SCALARS[inner], int(self.number("Q"))
        return np.frombuffer(self.take(length * SIZES[form]), dtype=np.dtype(f"<{form}")).tolist()

    def damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"'{self.path}' is damaged: {why}.")


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return a tensor's name, shape (slowest dimension first), type and place."""
    name, dimensions = cursor.text(), cursor.number("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.damaged(f"tensor '{name}' has {dimensions:,} dimensions")
    shape = tuple(int(cursor.number("Q")) for _ in range(dimensions))[::-1]
    if min(shape) < 1:
        raise cursor.damaged(f"tensor '{name}' has a dimension of 0")
    return name, shape, int(cursor.number("I")), int(cursor.number("Q"))


def _bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    """Return how many bytes a tensor takes."""
    quantisation = _quantisation(path, kind)
    from gguf.constants import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[quantisation]
    if shape[-1] % block:
        raise ArtifactError(f"'{path}' is damaged: rows of '{name}' have {shape[-1]} numbers, in blocks of {block}.")
    return math.prod(shape) // block * size


def _quantisation(path: Path, kind: int) -> Any:
    try:
        from gguf.constants import GGMLQuantizationType
    except ImportError:
        raise ConfigError(f"'{path}' is a GGUF file, for which the gguf package is needed: pip install gguf.") from None
    try:
        return GGMLQuantizationType(kind)
    except ValueError:
        raise ArtifactError(
            f"'{path}' holds a tensor of type {kind}, which the installed gguf package does not know: it is damaged or "
            "newer than the package (pip install --upgrade gguf)."
        ) from None


def _settings(path: Path, given: Mapping[str, Any], places: Mapping[str, Place]) -> dict[str, Any]:
    """Return what a `config.json` of transformers would hold."""

    def number(name: str, default: float | None = None, most: float = 1 << 24, kind: type = int) -> Any:
        value: Any = given.get(f"llama.{name}", default)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or not 0 < value <= most:
            raise ArtifactError(f"'{path}' is damaged: its 'llama.{name}' is {str(value)[:40]}.")
        return value

    if given.get("llama.expert_count"):
        raise ConfigError(
            f"'{path}' holds a mixture of experts, which is not read from GGUF here: take its safetensors."
        )
    if "token_embd.weight" not in places:
        raise ArtifactError(f"'{path}' is damaged: it holds no 'token_embd.weight'.")
    heads, width = number("attention.head_count"), number("embedding_length")
    size = number("attention.key_length", width // heads or None)
    if number("rope.dimension_count", size) != size:
        raise ConfigError(f"'{path}' turns a part of each head only, which Llama here does not.")
    found = {
        "model_type": "llama",
        "vocab_size": places["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count", most=len(places)),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", kind=float),
        "rope_theta": number("rope.freq_base", 10_000.0, 1e12, float),
        "tie_word_embeddings": "output.weight" not in places,
    }
    scaling = given.get("llama.rope.scaling.type", "llama3" if "rope_freqs.weight" in places else "none")
    if scaling != "none":
        found["rope_scaling"] = {"rope_type": str(scaling)}  # the family's file says whether it can
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = given.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int):
            found[f"{name}_token_id"] = token
    return found


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each tensor of such a file, transformers' name of it."""
    names = dict(WHOLE)
    for i in range(settings["num_hidden_layers"]):
        names |= {f"blk.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight" for ours, theirs in OF_BLOCK.items()}
    return names


def _check_shapes(
    path: Path, settings: Mapping[str, Any], names: Mapping[str, str], places: Mapping[str, Place]
) -> None:
    """Refuse a file whose tensors are not what its settings say, before a network of those sizes is made.

    Raises:
        ArtifactError: naming the tensor.
    """
    width, hidden, size = settings["hidden_size"], settings["intermediate_size"], settings["head_dim"]
    queries, keys = settings["num_attention_heads"] * size, settings["num_key_value_heads"] * size
    expected = {
        "token_embd": (settings["vocab_size"], width),
        "output": (settings["vocab_size"], width),
        "attn_q": (queries, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, queries),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }
    for name in names:
        if name not in places:
            if name == "output.weight":
                continue  # the token vectors read out, too
            raise ArtifactError(f"'{path}' is damaged: it holds no '{name}'.")
        shape = expected.get(name.split(".")[-2], (width,))
        if places[name].shape != shape:
            raise ArtifactError(f"'{path}' is damaged: '{name}' is {places[name].shape}; its settings say {shape}.")
    for name in places:
        if name not in names and name != "rope_freqs.weight":
            raise ConfigError(f"'{path}' holds '{name}', which no Llama here has.")


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of each head with the numbers that turn together half a head apart, rather than side by side."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
