"""From config.json to an objective: by names that the catalog knows, within the memory that the weights justify.

described     what config.json says of a model or an objective
rebuild       -> the objective, with fresh weights
Allowance     stops a construction that would allocate more than it may
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fathom.artifact.manifest import unreadable
from fathom.core import catalog, compose
from fathom.core.config import as_dict, build
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.objective import Objective
from fathom.core.types import DataSpec

MEMORY = (8, 256 << 20)  # times the file's size, plus bytes: initialisation needs room beside the weights
CALLS = (5_000, 1_000_000)  # of functions: times the file's tensors, plus as many
LARGEST = 1 << 26  # whole number in a configuration: a list of so many is still small
BUILDING = ("torch.nn.", "fathom.")
TOO_LARGE = "its configuration asks for a far larger model than its weights are of"


class Allowance(TorchFunctionMode):
    """While active, counts calls and sums what those of torch allocate, and raises where the allowance is used up.

    A configuration of twenty bytes can ask for a layer of any size. Each call that could be large is first tried on the
    meta device, where tensors have shapes but no memory, so the refusal costs nothing. (Building the whole model
    there would not do: its buffers would lose their values.)
    """

    def __init__(self, nbytes: int, calls: int) -> None:
        super().__init__()
        self.nbytes, self.calls = nbytes, calls
        self.counts = sys.getprofile() is None  # a profiler that is at work keeps its place

    def __enter__(self) -> Allowance:
        self._counting(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._counting(False)

    def _counting(self, on: bool) -> None:
        if self.counts:
            sys.setprofile(self._count if on else None)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        """A billion layers without a weight allocate nothing of torch's: what they take is calls of functions.

        It is raised from a layer's or a model's own code only: what is raised while an object is being disposed of, at
        any time, Python swallows, and it stops counting.
        """
        self.calls -= event == "call"
        if self.calls < 0 and str(frame.f_globals.get("__name__")).startswith(BUILDING):
            raise ArtifactError(TOO_LARGE)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _at_most(args, kwargs) > self.nbytes:
            self._counting(False)  # the trial's own calls, which may import modules, are not the model's
            foreseen = _foreseen(func, args, kwargs)
            self._counting(True)
            if foreseen > self.nbytes:
                raise ArtifactError(TOO_LARGE)
        result = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        self.nbytes -= sum(_nbytes(t) for t in _tensors(result) if t.untyped_storage().data_ptr() not in given)
        if self.nbytes < 0:
            raise ArtifactError(TOO_LARGE)
        return result


def described(entry: Any, instance: nn.Module | None) -> dict[str, Any]:
    """Return what config.json says of a model or an objective.

    Args:
        entry: its catalog entry, or a mapping with `name` and `config`, as this function returns it; None for an object
            of the user's own.
        instance: the object, whose class is noted where it is the user's own.
    """
    if entry is None or (isinstance(entry, Mapping) and entry["name"] is None):
        kind = type(instance)
        return {"name": None, "custom": True, "class": f"{kind.__module__}.{kind.__qualname__}"}
    name, config = (entry["name"], entry["config"]) if isinstance(entry, Mapping) else (entry.name, entry.config)
    config = as_dict(config)
    _check_sizes(config, name)
    return {"name": name, "config": config}


def rebuild(
    document: dict[str, Any],
    spec: DataSpec,
    folder: Path,
    nbytes: int,
    tensors: int,
    model: nn.Module | Callable[[DataSpec], nn.Module] | None = None,
    objective: Objective | None = None,
) -> Objective:
    """Return the objective that config.json describes, with fresh weights, on the CPU.

    Args:
        document: config.json.
        nbytes, tensors: the size of the weights' file and how many it holds; they bound what is built.
        model, objective: the user's own objects, where the artifact was made with such; of a model also the function
            that makes it.

    Raises:
        ArtifactError: an unknown name or option, an own object that is not given, or a model out of all proportion.
    """
    path = folder / "config.json"
    if _own(document, "objective", objective, path):
        assert objective is not None
        return objective
    own_model = _own(document, "model", model, path)
    if own_model and not isinstance(model, nn.Module):
        assert model is not None
        model = _built(model, spec)
    with torch.random.fork_rng(devices=[]):  # fresh weights draw from the generator; the caller's stays as it is
        try:
            if not own_model:
                module, config = _model(document)
                getattr(module, "ready", lambda config: None)(config)  # what it imports is not what the model costs
            with Allowance(MEMORY[0] * nbytes + MEMORY[1], CALLS[0] * tensors + CALLS[1]):
                if not own_model:
                    model = module.build(config, spec)
                assert isinstance(model, nn.Module)
                built = compose.build(_objective(document), spec, model)
        except Exception as error:  # what a hostile configuration makes of a model's constructor can be any
            raise unreadable(path, error) from None
    assert isinstance(built, Objective)
    return built


def preprocessing(folder: Path) -> Any:
    """Return the preprocessing in the folder's `preprocess/`.

    Raises:
        ArtifactError: its files make no sense.
    """
    path = folder / "preprocess"
    reader = import_module("fathom.data._preprocess").Preprocess  # by its fixed name: rooms below do not know this one
    try:
        return reader.load(path)
    except Exception as error:
        raise unreadable(path, error) from None


def _model(document: dict[str, Any]) -> tuple[Any, Any]:
    part = document["model"]
    found = catalog.find("models", part["name"])
    _check_sizes(part["config"], "model")
    return found.module, build(type(found.config), part["config"], "model")


def _objective(document: dict[str, Any]) -> catalog.Entry:
    part = document["objective"]
    found = compose.find(part["name"])
    _check_sizes(part["config"], "objective")
    return replace(found, config=build(type(found.config), part["config"], "objective"))


def _check_sizes(config: Any, key: str) -> None:
    for value in tree_leaves(config):
        if type(value) is int and abs(value) > LARGEST:
            raise ConfigError(f"the {key}'s configuration holds {value}; whole numbers go up to {LARGEST:,}.")


def _built(make: Callable[[DataSpec], nn.Module], spec: DataSpec) -> nn.Module:
    """Return what the user's own function makes of the data's description."""
    with torch.random.fork_rng(devices=[]):
        model = make(spec)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model= was given a function that returns a {type(model).__name__}; expected an nn.Module.")
    return model


def _own(document: dict[str, Any], key: str, given: Any, path: Path) -> bool:
    """Whether that part was the user's own object; it then has to be given, and otherwise must not be."""
    part = document.get(key)
    custom = isinstance(part, dict) and part.get("name") is None and part.get("custom") is True
    if not custom:
        if not (isinstance(part, dict) and isinstance(part.get("name"), str) and isinstance(part.get("config"), dict)):
            raise ArtifactError(f"'{path}' must give {key} a name and a config.")
        if given is not None:
            raise ArtifactError(f"'{path}' rebuilds its own {key}, '{part['name']}'; load it without {key}=.")
    elif given is None:
        assert isinstance(part, dict)
        raise ArtifactError(
            f"The {key} of '{path.parent}' is not one of Fathom's ({str(part.get('class'))[:100]}): "
            f"build it, and give it as load(folder, {key}=…)"
            + (", or on the command line as --model path.py:build." if key == "model" else ".")
        )
    elif not isinstance(given, Objective if key == "objective" else nn.Module) and not (
        key == "model" and callable(given)
    ):
        raise ConfigError(f"{key}= was given a {type(given).__name__}; expected an nn.Module, built and ready.")
    return custom


def _at_most(args: Any, kwargs: Any) -> int:
    """Bytes that a call's result stays below: of every tensor broadcast against every other, as often as numbers say.

    It spares most calls the trial, which for some operations loads a compiler's worth of modules.
    """
    most = 16  # the largest element
    for leaf in tree_leaves((args, kwargs)):
        size = leaf.numel() if isinstance(leaf, Tensor) else abs(leaf) if type(leaf) in (int, float) else 1
        most *= max(1, size) if math.isfinite(size) else 1
    return int(most)


def _foreseen(func: Any, args: Any, kwargs: Any) -> int:
    """Bytes of what a call would return, found out on the meta device; 0 where that cannot be told."""

    def shape(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    options = {key: value for key, value in kwargs.items() if key not in ("device", "generator", "pin_memory")}
    try:
        if any(True for _ in _tensors((args, options))):
            result = func(*tree_map_only(Tensor, shape, args), **tree_map_only(Tensor, shape, options))
        else:
            result = func(*args, **options, device="meta")
    except Exception:  # many functions take no device, and some look at values, which shapes do not have
        return 0
    return sum(map(_nbytes, _tensors(result)))


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
