"""From config.json to an objective: by names that the catalog knows, within the memory that the weights justify.

described     what config.json says of a model or an objective
rebuild       -> the objective, with fresh weights
Allowance     stops a construction that would allocate more than it may
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fathom.artifact.manifest import unreadable
from fathom.core import catalog
from fathom.core.config import as_dict, build
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.objective import Objective
from fathom.core.types import DataSpec

MEMORY = (8, 256 << 20)  # times the file's size, plus bytes: initialisation needs room beside the weights
STEPS = (1_000, 20_000)  # times the file's tensors, plus steps


class Allowance(TorchDispatchMode):
    """While active, sums what tensor operations allocate, and raises before one that would go beyond the allowance.

    A configuration of twenty bytes can ask for a layer of any size. Each operation is first tried on the meta device,
    where tensors have shapes but no memory, so the refusal costs nothing. (Building the whole model there would not
    do: its buffers would lose their values.)
    """

    def __init__(self, nbytes: int, steps: int) -> None:
        super().__init__()
        self.nbytes, self.steps = nbytes, steps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.steps -= 1
        if not (func.is_view or func._schema.is_mutable):
            self.nbytes -= _size(func, args, kwargs)
        if self.nbytes < 0 or self.steps < 0:
            raise ArtifactError("its configuration asks for a far larger model than its weights are of")
        return func(*args, **kwargs)


def described(entry: Any, instance: nn.Module | None) -> dict[str, Any]:
    """Return what config.json says of a model or an objective.

    Args:
        entry: its catalog entry, or a mapping with `name` and `config`; None for an object of the user's own.
        instance: the object, whose class is noted where it is the user's own.
    """
    if entry is None:
        kind = type(instance)
        return {"name": None, "custom": True, "class": f"{kind.__module__}.{kind.__qualname__}"}
    name, config = (entry["name"], entry["config"]) if isinstance(entry, Mapping) else (entry.name, entry.config)
    return {"name": name, "config": as_dict(config)}


def rebuild(
    document: dict[str, Any],
    spec: DataSpec,
    folder: Path,
    nbytes: int,
    tensors: int,
    model: nn.Module | None = None,
    objective: Objective | None = None,
) -> Objective:
    """Return the objective that config.json describes, with fresh weights, on the CPU.

    Args:
        document: config.json.
        nbytes, tensors: the size of the weights' file and how many it holds; they bound what is built.
        model, objective: the user's own objects, where the artifact was made with such.

    Raises:
        ArtifactError: an unknown name or option, an own object that is not given, or a model out of all proportion.
    """
    path = folder / "config.json"
    if _own(document, "objective", objective, path):
        assert objective is not None
        return objective
    own_model = _own(document, "model", model, path)
    with torch.random.fork_rng(devices=[]):  # fresh weights draw from the generator; the caller's stays as it is
        try:
            with Allowance(MEMORY[0] * nbytes + MEMORY[1], STEPS[0] * tensors + STEPS[1]):
                if not own_model:
                    module, config = _entry(document, "model")
                    model = module.build(config, spec)
                module, config = _entry(document, "objective")
                built = module.build(config, spec, model)
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


def _entry(document: dict[str, Any], key: str) -> tuple[Any, Any]:
    part = document[key]
    found = catalog.find(f"{key}s", part["name"])
    return found.module, build(type(found.config), part["config"], key)


def _own(document: dict[str, Any], key: str, given: nn.Module | None, path: Path) -> bool:
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
            f"build it, and give it as load(folder, {key}=…)."
        )
    elif not isinstance(given, Objective if key == "objective" else nn.Module):
        raise ConfigError(f"{key}= was given a {type(given).__name__}; expected an nn.Module, built and ready.")
    return custom


def _size(func: Any, args: Any, kwargs: Any) -> int:
    """Bytes of what an operation would return, found out on the meta device; 0 where that cannot be told."""
    shapes = tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), args
    )
    options = dict(kwargs)
    if any(a.name == "device" for a in func._schema.arguments):
        options["device"] = torch.device("meta")
    options.pop("pin_memory", None)
    try:
        results = func(*shapes, **options)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return 0
    found = results if isinstance(results, (tuple, list)) else (results,)
    return sum(t.numel() * t.element_size() for t in found if isinstance(t, Tensor))
