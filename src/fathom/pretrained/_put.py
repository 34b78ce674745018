"""From published tensors to a model's parameters: every tensor is accounted for, and what is changed is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.errors import ConfigError
from fathom.core.published import Match, translate

SHOWN = 5  # names that one sentence lists


@dataclass(frozen=True)
class Loaded:
    """What became of each tensor.

    Attributes:
        taken: of ours, those that were filled.
        fresh: of ours, those that keep their first values, for nothing was published of them.
        left: of theirs, those that have no place here.
        changed: sentences on those that had to be made to fit.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    changed: tuple[str, ...]

    def told(self) -> list[str]:
        """Return what the user should know, one sentence each."""
        notes = [f"{len(self.taken)} tensors of the published weights are taken over.", *self.changed]
        if self.fresh:
            notes.append(f"Not published, and so learned from the start: {_listed(self.fresh)}.")
        if self.left:
            notes.append(f"Published, but without a place here: {_listed(self.left)}.")
        return notes


def put(model: nn.Module, tensors: Mapping[str, Tensor], table: Iterable[Match]) -> Loaded:
    """Fill the model with published tensors.

    Where the data asks for other sizes than the published ones, tables of positions are interpolated, patches resized,
    the weights of input channels averaged, and a longer vocabulary's new tokens begin at the mean of the known.

    Raises:
        ConfigError: no tensor fits, or one is of a shape that cannot be made to fit.
    """
    found = translate(tensors, table)
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    kept = set(model.state_dict())
    changed, taken = [], []
    with torch.no_grad():
        for name, tensor in found.tensors.items():
            if name not in state:
                continue
            ours = state[name]
            if ours.shape != tensor.shape:
                tensor, how = fitted(name, tensor.float(), ours.shape)
                changed.append(how)
            ours.copy_(tensor)
            taken.append(name)
    if not taken:
        raise ConfigError(
            f"None of the {len(tensors)} published tensors fits this model; the first: {_listed(tensors)}."
        )
    same = {id(state[name]) for name in taken}
    fresh = tuple(name for name in state if name in kept and id(state[name]) not in same and _learned(name))
    unused = tuple(name for name in found.tensors if name not in state)  # known to the table, not to this model
    return Loaded(tuple(taken), fresh, found.left + unused, tuple(changed))


def fitted(name: str, tensor: Tensor, shape: torch.Size) -> tuple[Tensor, str]:
    """Return a published tensor in the shape that is wanted, and a sentence that says what was done.

    Raises:
        ConfigError: it cannot be made to fit.
    """
    was, now = "×".join(map(str, tensor.shape)), "×".join(map(str, shape))
    if tensor.dim() == 4 and len(shape) == 4 and tensor.shape[0] == shape[0]:
        said = []
        if tensor.shape[2:] != shape[2:] and "patch" in name:
            tensor = patches(tensor, shape[2], shape[3])
            said.append(f"patches of {'×'.join(was.split('×')[2:])} pixels are resized to {shape[2]}×{shape[3]}")
        if tensor.shape[1] != shape[1] and tensor.shape[2:] == shape[2:]:
            said.append(f"the weights of {tensor.shape[1]} input channels are averaged for {shape[1]}")
            tensor = (tensor.mean(1, keepdim=True) * tensor.shape[1] / shape[1]).expand(shape)
        if tensor.shape == shape:
            return tensor, f"'{name}': {', and '.join(said)}."
    if tensor.dim() == 2 and len(shape) == 2 and tensor.shape[1] == shape[1]:
        if "positions" in name:
            return positions(tensor, shape[0]), f"'{name}': {tensor.shape[0]} positions are interpolated to {shape[0]}."
        if "vectors" in name or "embed" in name:
            rows = min(tensor.shape[0], shape[0])
            whole = tensor.mean(0, keepdim=True).repeat(shape[0], 1)
            whole[:rows] = tensor[:rows]
            return whole, f"'{name}': of {tensor.shape[0]} published tokens {rows} are taken; {shape[0]} are needed."
    raise ConfigError(
        f"The published '{name}' is {was}; this model's is {now}: keep the published sizes, or drop --from."
    )


def positions(table: Tensor, count: int) -> Tensor:
    """Return a table of positions [N, D] interpolated to [count, D].

    That of a square of patches, with up to two tokens before them, is interpolated in two dimensions, others in one.

    Source: Dosovitskiy et al., An Image Is Worth 16x16 Words, 2021, section 3.2.
    """
    for extra in (0, 1, 2):
        old, new = math.isqrt(len(table) - extra), math.isqrt(count - extra)
        if old * old == len(table) - extra and new * new == count - extra:
            grid = table[extra:].T.reshape(1, -1, old, old)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            return torch.cat([table[:extra], grid.flatten(2)[0].T])
    return F.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T


def patches(kernel: Tensor, height: int, width: int) -> Tensor:
    """Return the weights of patches [O, C, h, w] for patches of another size, [O, C, height, width].

    They give to an enlarged patch what the published ones give to the patch itself, and for smaller patches come as
    near to that as can be: if enlarging is the matrix B, the new weights are the pseudo-inverse of Bᵀ times the old.

    Source: Beyer et al., FlexiViT: One Model for All Patch Sizes, 2023, section 3.4.
    """
    old = kernel.shape[2] * kernel.shape[3]
    every = torch.eye(old, dtype=torch.float64).view(old, 1, *kernel.shape[2:])  # one pixel after another
    resized = F.interpolate(every, size=(height, width), mode="bilinear", align_corners=False)
    enlarge = resized.flatten(1).T  # B, [height·width, h·w]
    found = kernel.double().flatten(2) @ torch.linalg.pinv(enlarge)  # wᵀB⁺ = ((Bᵀ)⁺w)ᵀ
    return found.unflatten(2, (height, width)).to(kernel.dtype)


def _learned(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
