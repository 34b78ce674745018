"""Where published weights come from: a folder, a GGUF file, or the Hub. Only plain files are read, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fathom.core.errors import ArtifactError, ConfigError

HUB = "hf:"
WANTED = ("*.json", "*.safetensors", "*.gguf", "*.txt")
COMMIT = r"[0-9a-f]{40}"
MOST_BYTES = 64 << 20  # of a configuration or tokenizer
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True)
class Published:
    """Weights as they were published.

    Attributes:
        origin: as the user named them.
        revision: the commit on the Hub that they are of, "" of a folder.
        settings: the contents of transformers' `config.json`, or what stands for it in a GGUF file.
        tensors: by their published names; each is read when it is asked for.
        tokenizer: the contents of `tokenizer.json`, "" where there is none.
        special: names of special tokens ("pad_token") and the tokens.
    """

    origin: str
    revision: str
    settings: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: str = ""
    special: dict[str, str] = field(default_factory=dict)


def find(given: str) -> Published:
    """Return the published weights that `given` names.

    Args:
        given: a folder with `config.json` and safetensors files, a GGUF file or a folder with one, or
            "hf:NAME@REVISION" on the Hub; without a revision the newest, whose commit is told so that it can be pinned.
            What was fetched before is taken from the Hub's cache; HF_HUB_OFFLINE=1 keeps it from asking.

    Raises:
        ConfigError: there is no such thing. ArtifactError: its files cannot be read, or hold nothing but pickles.
    """
    if given.startswith(HUB) and not Path(given.removeprefix(HUB)).exists():
        folder, revision = _fetched(given)
        return _read(folder, given, revision)
    path = Path(given.removeprefix(HUB)).expanduser()
    if not path.exists():
        raise ConfigError(
            f"There are no published weights at '{given}'; expected a folder with config.json and safetensors, a .gguf "
            "file, or hf:NAME for one on the Hub."
        )
    return _read(path, given, "")


def _fetched(given: str) -> tuple[Path, str]:
    """Return the folder with the files of a repository on the Hub, and the commit that they are of."""
    name, _, revision = given.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"'{given}' is on the Hub, for which huggingface_hub is needed: pip install huggingface_hub, or give a "
            "folder."
        ) from None
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except HFValidationError:
        raise ConfigError(
            f"'{given}' is no name on the Hub; expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"'{given}' cannot be fetched: {str(error).strip().splitlines()[0].rstrip('.')}.") from None
    return folder, folder.name if re.fullmatch(COMMIT, folder.name) else revision


def _read(path: Path, origin: str, revision: str) -> Published:
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path, origin, revision)
    if path.is_file():
        raise ConfigError(
            f"'{origin}' is a {path.suffix or 'plain'} file; expected a folder with safetensors, or .gguf."
        )
    files = _weights(path)
    if not files:
        quantised = sorted(path.glob("*.gguf"))
        if len(quantised) == 1:
            return _gguf(quantised[0], origin, revision)
        if quantised:
            raise ConfigError(f"'{origin}' holds {len(quantised)} GGUF files; name one, such as {quantised[0].name}.")
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ArtifactError(
                f"'{origin}' holds its weights as {pickles[0]} only, which could run code when it is read; take a "
                "version with safetensors, or convert it where you trust it."
            )
        raise ArtifactError(f"'{origin}' holds no .safetensors file.")
    tokenizer = path / "tokenizer.json"
    return Published(
        origin=origin,
        revision=revision,
        settings=_json(path / "config.json"),
        tensors=Tensors(files),
        tokenizer=_text(tokenizer) if tokenizer.exists() else "",
        special=_special(path),
    )


def _gguf(path: Path, origin: str, revision: str) -> Published:
    from fathom.pretrained._gguf import read

    settings, tensors, tokenizer, special = read(path)
    return Published(origin, revision, settings, tensors, tokenizer, special)


def _weights(folder: Path) -> list[Path]:
    """Return the files that hold the weights: one, or the parts that an index lists."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted({str(name) for name in dict(_json(index).get("weight_map", {})).values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ArtifactError(f"'{index}' lists '{name}'; expected names of safetensors files beside it.")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


class Tensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._places: dict[str, Path] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    self._places |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                raise ArtifactError(f"'{path}' cannot be read as safetensors: {error}.") from None

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def _special(folder: Path) -> dict[str, str]:
    """Return the special tokens that `tokenizer_config.json` and `special_tokens_map.json` name."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).exists():
            for name, value in _json(folder / file).items():
                content = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(content, str):
                    found[name] = content
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise ArtifactError(f"'{path}' is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"'{path}' holds no JSON object.")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ArtifactError(f"'{path}' has {path.stat().st_size:,} bytes; the most is {MOST_BYTES:,}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.") from None
