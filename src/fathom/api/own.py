"""A model of the user's own from a Python file: `--model path.py:build`.

The file is run as Python would run it: only where a person names it, never because a model's folder does.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import nn

from fathom.core.errors import ConfigError, FathomError, did_you_mean
from fathom.core.types import DataSpec


def is_own(name: str) -> bool:
    """Say whether this names a function in a Python file, rather than a model of the catalog."""
    return re.search(r"\.py(:|$)", name) is not None


def from_file(name: str) -> Callable[[DataSpec], nn.Module]:
    """Return the function, or class, that makes a model of a DataSpec.

    Args:
        name: "path.py:build"; files beside it can be imported from it.

    Raises:
        ConfigError: there is no such file or function, or it fails; the message tells the line.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier() or not is_own(place):
        raise ConfigError(
            f"'{name}' is not of the form path.py:build, a file and the function in it that makes a model."
        )
    path = Path(place).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no file '{place}'.")
    make = _attribute(_imported(path), attribute, place)

    def build(spec: DataSpec) -> nn.Module:
        try:
            return make(spec)
        except FathomError:
            raise
        except Exception as error:
            raise _failed(path, error, f"{attribute}(spec)") from error

    return build


def _imported(path: Path) -> Any:
    name = f"own_{path.stem}"
    place = spec_from_file_location(name, path)
    assert place is not None and place.loader is not None
    module = module_from_spec(place)
    sys.modules[name] = module  # dataclasses, for one, look themselves up there
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        place.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(path, error, "the file") from error
    return module


def _attribute(module: Any, name: str, place: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found) or isinstance(found, nn.Module):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"'{place}' has no function '{name}' from a DataSpec to an nn.Module.{did_you_mean(name, known)}"
        )
    return found


def _failed(path: Path, error: Exception, what: str) -> ConfigError:
    """Return the user's own mistake as one line, with the last line of the file that it came by."""
    here = path.resolve()
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == here
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    where = f"'{path}', line {lines[-1]}" if lines else f"'{path}'"
    return ConfigError(f"{where}: {what} fails with {type(error).__name__}: {error}.")
