"""One typed description, derived thrice: a dataclass gives the TOML, the `--set` flags and the docs table.

option          a dataclass field with its help text
build           a dict (from TOML, JSON or flags) -> the dataclass, strictly, with errors that name the key
at_least, below_one    refuse options out of range, in one way for all
as_dict         the way back
override        `["model.depth=12", …]` laid over a nested dict
read_toml, to_toml
describe        (name, type, default, help) of each field
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fathom.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and one line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Return `cls(**values)`, checked: unknown keys and wrong types are refused by name.

    Args:
        cls: a dataclass; nested dataclasses are built from nested mappings.
        values: what the user gave.
        where: the dotted prefix that error messages show, such as "model".

    Raises:
        ConfigError: naming the key, what was given and what is expected.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else key
        if key not in known:
            raise ConfigError(f"There is no option '{dotted}'.{did_you_mean(key, known)}")
        built[key] = _convert(value, known[key], dotted)
    try:
        return cls(**built)
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}.") from None


def at_least(config: Any, floors: Mapping[str, float], where: str = "model") -> None:
    """Refuse options below their floors; of one that holds several numbers, the smallest counts.

    Raises:
        ConfigError: naming the first such option, what was given and the least that it may be.
    """
    for name, floor in floors.items():
        given = getattr(config, name)
        smallest = min(given, default=floor) if isinstance(given, tuple) else given
        if smallest < floor:
            raise ConfigError(f"Option '{where}.{name}' was given {smallest}; expected {floor} or more.")


def below_one(config: Any, *names: str, where: str = "model") -> None:
    """Refuse options, such as shares of units dropped, that are not at least 0 and below 1.

    Raises:
        ConfigError: naming the first such option and what was given.
    """
    for name in names:
        given = getattr(config, name)
        if not 0 <= given < 1:
            raise ConfigError(f"Option '{where}.{name}' was given {given}; expected at least 0 and below 1.")


def as_dict(value: Any) -> Any:
    """Return a dataclass as plain dicts, lists and scalars, as JSON and TOML hold them."""
    return msgspec.to_builtins(value)


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return `values` with each "dotted.key=value" of `settings` laid over it.

    A value is read as TOML where it can be (12, 0.5, true, [1, 2]) and as plain text otherwise.

    Raises:
        ConfigError: a setting without a key or an equals sign.
    """
    result = _copy(values)
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"'{setting}' is not of the form key=value, such as model.depth=12.")
        *path, last = key.strip().split(".")
        place = result
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{key}' cannot be set: '{step}' is a value, not a group of options.")
        place[last] = _parse(text.strip())
    return result


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the file's contents.

    Raises:
        ConfigError: the file is missing or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read as TOML: {error}.") from None


def to_toml(values: Mapping[str, Any]) -> str:
    """Return `values` as TOML; entries that are None, which TOML cannot say, are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(values))


def describe(cls: type) -> list[tuple[str, str, Any, str]]:
    """Return (name, type, default, help) of each option of a config dataclass."""
    hints = typing.get_type_hints(cls)
    return [(f.name, _type_name(hints[f.name]), f.default, f.metadata.get("help", "")) for f in dataclasses.fields(cls)]


def _convert(value: Any, kind: Any, dotted: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(typing.cast(type, kind), value, dotted)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        hint = did_you_mean(str(value), map(str, choices)) if choices else ""
        expected = "one of " + ", ".join(map(str, choices)) if choices else _type_name(kind)
        raise ConfigError(f"Option '{dotted}' was given {value!r}; expected {expected}.{hint}") from None


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(_type_name(k) for k in typing.get_args(kind))
    if kind is type(None):
        return "nothing"
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_type_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "a table of names and values"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind))


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _without_none(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    if isinstance(values, (list, tuple)):
        return [_without_none(value) for value in values]
    return values
