"""Texts from a trained language model or translator: what Fathom trained, or what others published.

Author        a model that writes, and how its texts are spelt
published     weights that others published -> Author
of_artifact   what Fathom trained -> Author
author        either, by where it stands
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import polars as pl
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fathom import artifact as artifacts
from fathom import pretrained
from fathom.artifact import manifest
from fathom.core import catalog
from fathom.core.errors import ArtifactError, ConfigError, DataError
from fathom.core.roles import LanguageModel, Translator
from fathom.core.types import DataSpec, Field
from fathom.generate import Script, Settings, Text, stream, write
from fathom.pretrained import Published

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fathom.data.text import TextEncoder

AT_ONCE = 16  # prompts that are written to side by side
LENGTH = 512  # tokens of a text, where the published settings do not say
RANDOM = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "_no_grad_trunc_normal_"}


@dataclass(frozen=True)
class Author:
    """A model that writes texts. `fathom.published` and a loaded model's `author` return one.

    Attributes:
        module: the network, a language model or a translator, in evaluation mode.
        script: how its texts are spelt, and what ends them.
        encode: a prompt -> its tokens.
        notes: what the user should know of how it was loaded.
    """

    module: nn.Module
    script: Script
    encode: Callable[[str], list[int]]
    notes: tuple[str, ...] = ()

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Return what the model writes to a prompt, or a list of that for several; prompts are not repeated.

        Args:
            options: tokens, temperature, top_k, top_p, beams, length_penalty, stop and seed, see
                `fathom.generate.Settings`. Where top_k or top_p is given without a temperature, it is 1.

        Raises:
            ConfigError: an option is out of range. DataError: a prompt is too long for the model.
        """
        if isinstance(prompts, str):
            return self.texts([prompts], settings(**options))[0].text
        return [text.text for text in self.texts(prompts, settings(**options))]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yield what the model writes to a prompt in pieces, as it writes them; options as in `generate`."""
        chosen = settings(**options)
        for piece in stream(self.module, [self.encode(prompt)], self.script, chosen):
            if piece.text:
                yield piece.text

    def texts(self, prompts: Sequence[str], chosen: Settings) -> list[Text]:
        """Return the texts with their tokens and what ended each."""
        tokens = [self.encode(prompt) for prompt in prompts]
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))  # alike lengths together: less padding
        found: dict[int, Text] = {}
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            found |= dict(zip(rows, write(self.module, [tokens[r] for r in rows], self.script, chosen), strict=True))
        return [found[row] for row in range(len(tokens))]


def settings(**options: Any) -> Settings:
    """Return the settings of these options; what may be drawn from is drawn from.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "temperature" not in given and ({"top_k", "top_p"} & set(given)):
        given["temperature"] = 1.0
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    given["stop"] = tuple(given.get("stop", ()))
    try:
        return Settings(**given)
    except TypeError as error:
        unknown = sorted(set(given) - set(Settings.__dataclass_fields__))
        raise ConfigError(f"There is no option '{unknown[0]}' of generating." if unknown else f"{error}.") from None


def author(source: str) -> Author:
    """Return the model in a folder of Fathom's, or the published weights that `source` names.

    Raises:
        ConfigError: there is no such thing, or it does not write texts. ArtifactError: its files cannot be read.
    """
    folder = Path(source).expanduser()
    return of_artifact(artifacts.load(folder)) if (folder / manifest.NAME).exists() else published(source)


def published(source: str) -> Author:
    """Return a published model that writes texts.

    Args:
        source: a folder with config.json and safetensors, a .gguf file, or hf:NAME@REVISION on the Hub.

    Raises:
        ConfigError: there is no such thing, it is of a kind that no model here reads, or it does not write texts.
        ArtifactError: its files cannot be read.
    """
    found = pretrained.find(source)
    entry = pretrained.family(found)
    if not found.tokenizer:
        raise ConfigError(f"'{source}' holds no tokenizer.json, without which prompts cannot be read.")
    tokenizer = _tokenizer(found)
    spec = _spec(found, entry, tokenizer)
    with Unset():
        module = entry.module.build(entry.config, spec)
    loaded = pretrained.put(module, found.tensors, entry.module.matches(entry.config))
    if loaded.fresh:
        raise ArtifactError(
            f"'{source}' lacks {len(loaded.fresh)} of the model's tensors, such as '{loaded.fresh[0]}'."
        )
    _require(module, source)
    read = spec.inputs[0]
    ends = found.settings.get("eos_token_id")
    ends = {end for end in (ends if isinstance(ends, list) else [ends, read.special[3]]) if isinstance(end, int)}
    start = spec.targets[0].special[2] if spec.targets else -1
    script = Script(lambda tokens: tokenizer.decode(tokens), read, frozenset(ends - {-1}), start)
    return Author(module.eval(), script, lambda prompt: tokenizer.encode(prompt).ids, tuple(loaded.told()))


def of_artifact(found: artifacts.Artifact, cut: bool = False) -> Author:
    """Return a trained model that writes texts.

    Args:
        cut: prompts that are too long for it lose their end, rather than being refused.

    Raises:
        ConfigError: it does not.
    """
    module, spec = found.module.model, found.spec
    _require(module, str(found.folder or "this model"))
    read = spec.inputs[0]
    written = next((target for target in spec.targets if target.kind == "text"), read)
    reader, writer = (_encoder(found, field) for field in (read, written))
    special = set(written.special)

    def decode(tokens: list[int]) -> str:
        return writer.trained.decode([token for token in tokens if token not in special])

    ends = frozenset({written.special[3]} - {-1})
    script = Script(decode, read, ends, written.special[2])
    whole = isinstance(module, Translator)
    return Author(module, script, lambda prompt: _row(reader, read, prompt, whole, cut))


NO_PROMPT = 'There is no prompt: give one as --prompt "Once upon a time", or a --file with one a line.'


def prompts(
    given: Sequence[str], file: Path | None, stdin: TextIO, *, blank: bool = False, missing: str = NO_PROMPT
) -> list[str]:
    """Return the prompts of a command line; "-" among them stands for all of stdin, as a file for stdin's lines.

    Args:
        blank: whether lines of a file with nothing on them are prompts, too.
        missing: what is said where there are none.

    Raises:
        ConfigError: there are none. DataError: the file cannot be read.
    """
    try:
        found = [stdin.read().rstrip("\n") if prompt == "-" else prompt for prompt in given]
        if file is not None:
            text = stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
            found += [line for line in text.splitlines() if blank or line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file or 'stdin'}' cannot be read: {error}.") from None
    if not found:
        raise ConfigError(missing)
    return found


def described(given: Sequence[str], texts: Sequence[Text]) -> list[dict[str, Any]]:
    """Return prompts and what was written to them as plain values."""
    return [
        {"prompt": prompt, "text": text.text, "tokens": len(text.tokens), "reason": text.reason}
        for prompt, text in zip(given, texts, strict=True)
    ]


class Unset(TorchFunctionMode):
    """While active, tensors are not filled by chance: they are about to be filled from a file."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in RANDOM:  # torch.nn.init hands its tensor on by name
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor):
                return filled
        return function(*args, **kwargs)


def _require(module: nn.Module, source: str) -> None:
    if not isinstance(module, (LanguageModel, Translator)):
        raise ConfigError(
            f"The model of '{source}' does not write texts; expected a language model, such as gpt or llama, or an "
            "encoder and decoder, such as t5."
        )


def _tokenizer(found: Published) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(found.tokenizer)
    except Exception as error:  # the library raises nothing narrower
        raise ArtifactError(f"The tokenizer of '{found.origin}' cannot be read: {error}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _spec(found: Published, entry: catalog.Entry, tokenizer: Tokenizer) -> DataSpec:
    """Return the data that the published network was made for."""
    given: Mapping[str, Any] = found.settings
    count = int(given.get("vocab_size") or tokenizer.get_vocab_size())

    def token(role: str, name: str) -> int:
        known = given.get(f"{role}_token_id")
        if not isinstance(known, int):
            known = tokenizer.token_to_id(found.special.get(f"{name}_token", ""))
        return known if isinstance(known, int) and 0 <= known < count else -1

    pad, unknown, end, mask = token("pad", "pad"), token("unk", "unk"), token("eos", "eos"), token("mask", "mask")
    length = int(getattr(entry.config, "context", 0) or given.get("n_positions") or LENGTH)
    special = (pad, unknown, token("bos", "bos"), end, mask)
    read = Field(name="text", kind="text", shape=(length,), vocabulary=count, special=special)
    if not (given.get("is_encoder_decoder") or "decoder_start_token_id" in given):
        return DataSpec(inputs=(read,))
    start = given.get("decoder_start_token_id")
    special = (pad, unknown, start if isinstance(start, int) else pad, end, mask)
    return DataSpec(
        inputs=(read,),
        targets=(Field(name="answer", kind="text", shape=(length,), vocabulary=count, special=special),),
    )


def _encoder(found: artifacts.Artifact, field: Field) -> TextEncoder:
    for encoder in (*found.preprocess.texts, *found.preprocess.written):
        if encoder.column in (field.source, field.name):
            return encoder
    raise ConfigError(f"The model in '{found.folder}' does not keep how texts of column '{field.name}' are spelt.")


def _row(encoder: TextEncoder, field: Field, prompt: str, whole: bool, cut: bool) -> list[int]:
    """Return a prompt as the model was shown its texts; unless it is read as a whole, without the end.

    Raises:
        DataError: it is longer than any text that the model was shown.
    """
    row = np.zeros((1, field.shape[0]), dtype=np.int32)
    if encoder.encode(pl.Series([prompt], dtype=pl.String), row) and not cut:
        raise DataError(f"A prompt has more than {field.shape[0] - 2} tokens, the most that the model reads.")
    pad, end = field.pad, field.special[3]
    tokens = [int(token) for token in row[0]]
    while tokens and tokens[-1] == pad:
        tokens.pop()
    if tokens and tokens[-1] == end and not whole:
        tokens.pop()
    return tokens
