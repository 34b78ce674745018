"""The tokenizer of a GGUF file, as the `tokenizers` library keeps it.

    tokenizer        settings of the file -> the contents of a `tokenizer.json`
    special_tokens   settings of the file -> {"eos_token": "<|im_end|>", …}

Byte-pair encodings of bytes are read, the kind that the file calls "gpt2". How a text is cut before pairs are merged
is told by a name only; the cuts of the names below are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.core.errors import ArtifactError, ConfigError, did_you_mean

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # types of tokens
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
# Contractions, a letter-like run with one sign before it, up to three digits, signs, line ends, spaces.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CUTS = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
}


def tokenizer(path: Path, given: Mapping[str, Any]) -> str:
    """Return the contents of a `tokenizer.json`, or "" where the file holds no tokenizer.

    Args:
        given: the settings of the file.

    Raises:
        ConfigError: it is of a kind that is not read here. ArtifactError: it does not fit together.
    """
    kind = given.get("tokenizer.ggml.model")
    if kind is None:
        return ""
    if kind != "gpt2":
        raise ConfigError(
            f"'{path}' has a tokenizer of kind '{kind}'; of GGUF files only byte-pair encodings of bytes ('gpt2') are "
            "read here: take the safetensors, with their tokenizer.json."
        )
    tokens, kinds = _strings(path, given, "tokens"), given.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _strings(path, given, "merges")]
    if not isinstance(kinds, list):
        kinds = [NORMAL] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens) or any(len(pair) != 2 for pair in merges):
        raise ArtifactError(f"'{path}' is damaged: the tokens, their types and their merges do not fit together.")
    return _built(path, given, tokens, kinds, merges)


def _built(path: Path, given: Mapping[str, Any], tokens: list[str], kinds: list[int], merges: list[Any]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    cut = _cut(path, str(given.get("tokenizer.ggml.pre", "default")))
    vocabulary = {token: code for code, token in enumerate(tokens)}
    try:
        # Where a whole word of Llama 3 is a token, it is taken though its merges would not lead there.
        model = models.BPE(
            vocab=vocabulary, merges=merges, ignore_merges=given.get("tokenizer.ggml.pre") == "llama-bpe"
        )
    except Exception as error:  # the library's own, which has no class of its own
        raise ArtifactError(f"'{path}' is damaged: its tokens and merges are refused ({error}).") from None
    found = Tokenizer(model)
    found.pre_tokenizer = cut
    found.decoder = decoders.ByteLevel()
    start = special_tokens(path, given).get("bos_token")
    if given.get("tokenizer.ggml.add_bos_token") and start:
        pieces = [(start, vocabulary[start])]
        found.post_processor = processors.TemplateProcessing(f"{start} $A", f"{start} $A {start}:1 $B:1", pieces)
    named = [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == CONTROL]
    given_by_users = [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER]
    found.add_special_tokens(named)
    found.add_tokens(given_by_users)
    return str(found.to_str())


def special_tokens(path: Path, given: Mapping[str, Any]) -> dict[str, str]:
    """Return special tokens by their names ("pad_token").

    Raises:
        ArtifactError: one is not among the tokens.
    """
    found = {}
    for name, key in ROLES.items():
        code = given.get(f"tokenizer.ggml.{key}_token_id")
        if code is None:
            continue
        tokens = _strings(path, given, "tokens")
        if not isinstance(code, int) or not 0 <= code < len(tokens):
            raise ArtifactError(f"'{path}' is damaged: its {key} token is {code!r} of {len(tokens):,}.")
        found[f"{name}_token"] = tokens[code]
    return found


def _cut(path: Path, name: str) -> Any:
    """Return how a text is cut before its bytes' pairs are merged."""
    from tokenizers import Regex, pre_tokenizers

    if name not in CUTS:
        raise ConfigError(
            f"'{path}' cuts texts in the way called '{name}', which is not known here.{did_you_mean(name, CUTS)} Take "
            "the safetensors, with their tokenizer.json."
        )
    if CUTS[name] == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if CUTS[name] == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(CUTS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _strings(path: Path, given: Mapping[str, Any], name: str) -> list[str]:
    found = given.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise ArtifactError(f"'{path}' is damaged: it has no list of {name}.")
    return found
