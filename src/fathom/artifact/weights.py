"""The weights: every persistent tensor of an objective, in one safetensors file.

write     a module's state -> file; tensors that share memory are stored once
headers   what a file declares, without reading a tensor
read      file -> module, after names, shapes and types were compared one by one
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fathom.core.errors import ArtifactError

NAME = "model.safetensors"
HEADER_LIMIT = 16 << 20  # bytes; about 100,000 tensors
SHOWN = 5  # differences that one message names
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Header:
    """What a safetensors file declares of one tensor."""

    shape: tuple[int, ...]
    dtype: str


def write(module: nn.Module, path: Path) -> dict[str, str]:
    """Write the module's `state_dict`, and return `ties` of it.

    Tensors that are one and the same (tied embeddings) are stored under the first of their names only.

    Raises:
        ArtifactError: the state holds what is no plain tensor.
    """
    state = _state(module)
    tied = ties(state)
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        if name not in tied:
            tensors[name] = tensor.detach().cpu().contiguous()
            if (place := tensors[name].untyped_storage().data_ptr()) in stored:
                tensors[name] = tensors[name].clone()  # two parts of one memory become two tensors
            stored.add(place)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' cannot be written: {error}.") from None
    return tied


def headers(path: Path) -> dict[str, Header]:
    """Return what the file declares of each tensor; no tensor is read.

    Raises:
        ArtifactError: the file is not safetensors, or its header is too long.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        if len(start) == 8 and struct.unpack("<Q", start)[0] > HEADER_LIMIT:
            raise ArtifactError(f"'{path}' declares a header of more than {HEADER_LIMIT:,} bytes.")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Header(tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"'{path}' cannot be read as safetensors: {error}.") from None


def read(module: nn.Module, path: Path, tied: Mapping[str, str]) -> None:
    """Copy the file's tensors into the module.

    Args:
        tied: as `write` returned it.

    Raises:
        ArtifactError: naming the tensors that are missing, unexpected, or of another shape or type.
    """
    state = _state(module)
    found = headers(path)
    source = {name: name if name in found else tied.get(name, name) for name in state}
    _compare(state, source, found, path)
    with safe_open(path, framework="pt") as file:
        # The file's pages are mapped, not copied: one copy of the weights is in memory, the module's.
        module.load_state_dict({name: file.get_tensor(source[name]) for name in state}, strict=True)


def ties(state: dict[str, Tensor]) -> dict[str, str]:
    """Return, of each group of names for one and the same tensor, all but the first, with the first."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        if tensor.numel():
            groups[tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype].append(name)
    return {other: first for first, *others in groups.values() for other in others}


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = type(tensor).__name__ if not isinstance(tensor, Tensor) else str(tensor.layout)
            raise ArtifactError(f"'{name}' of the model's state is no plain tensor ({kind}); store it as a buffer.")
        if tensor.dtype not in TYPES.values():
            raise ArtifactError(f"'{name}' is of type {tensor.dtype}, which a model's file cannot hold.")
    return state


def _compare(state: dict[str, Tensor], source: dict[str, str], found: dict[str, Header], path: Path) -> None:
    problems = []
    for name, tensor in state.items():
        header = found.get(source[name])
        if header is None:
            problems.append(f"'{name}' is missing")
        elif header.shape != tuple(tensor.shape):
            problems.append(f"'{name}' is {list(header.shape)}, the model's is {list(tensor.shape)}")
        elif TYPES.get(header.dtype) != tensor.dtype:
            problems.append(f"'{name}' is {header.dtype}, the model's is {tensor.dtype}")
    problems += [f"'{name}' is not the model's" for name in sorted(set(found) - set(source.values()))]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ArtifactError(f"'{path}' does not fit its model: {'; '.join(problems[:SHOWN])}{more}.")
