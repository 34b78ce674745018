"""Published weights in a network of the same kind that was made for other data: copied, resized, or left fresh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def take_over(network: nn.Module, published: Mapping[str, Tensor], missing: Set[str]) -> tuple[list[str], list[str]]:
    """Copy the published weights; return the names of those that stay fresh, and sentences on what was changed.

    Args:
        network: one of the library's encoders.
        published: its weights by name, as the library read them.
        missing: names among them that were not published.
    """
    ours, tokens = network.state_dict(), _token_table(network)
    fresh, notes = [name for name in ours if name in missing or name not in published], []
    for name, tensor in ours.items():
        if name in fresh or not tensor.is_floating_point():
            continue
        found, how = _resized(name, published[name].float(), tensor.shape, name == tokens)
        if found is None:
            fresh.append(name)
        else:
            tensor.copy_(found)
        notes += [how] if how else []
    return fresh, notes


def _token_table(network: nn.Module) -> str:
    """Return the name of the table of tokens' vectors, "" where there is none."""
    try:
        table = network.get_input_embeddings().weight  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return ""
    return next((name for name, p in network.named_parameters() if p is table and p.dim() == 2), "")


def _resized(name: str, tensor: Tensor, shape: torch.Size, tokens: bool) -> tuple[Tensor | None, str]:
    """Return a published tensor in the shape that is wanted, None where it cannot be, and what was done to it."""
    if tensor.shape == shape:
        return tensor, ""
    if tokens:
        return None, (
            f"The data has a vocabulary of its own ({shape[0]:,} tokens, published {tensor.shape[0]:,}): "
            "its tokens' vectors are learned from the start."
        )
    if tensor.dim() == 4 and len(shape) == 4 and tensor.shape[0] == shape[0] and tensor.shape[2:] == shape[2:]:
        mean = tensor.mean(1, keepdim=True) * (tensor.shape[1] / shape[1])
        return mean.expand(shape), f"'{name}': the weights of {tensor.shape[1]} channels are averaged for {shape[1]}."
    if "position" in name and tensor.dim() == len(shape) and tensor.shape[-1] == shape[-1] and tensor.dim() in (2, 3):
        table = _interpolated(tensor.reshape(-1, tensor.shape[-1]), shape[-2])
        if table is not None:
            return table.reshape(shape), f"'{name}': {tensor.shape[-2]} positions are interpolated to {shape[-2]}."
    was, now = "×".join(map(str, tensor.shape)), "×".join(map(str, shape))
    return None, f"'{name}' is {was} as published, and {now} here."


def _interpolated(table: Tensor, count: int) -> Tensor | None:
    """Return positions of a square of patches [N, D], with up to two tokens before them, for another square."""
    for extra in (0, 1, 2):
        old, new = math.isqrt(max(0, len(table) - extra)), math.isqrt(max(0, count - extra))
        if old * old == len(table) - extra and new * new == count - extra and old and new:
            grid = table[extra:].T.reshape(1, -1, old, old)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            return torch.cat([table[:extra], grid.flatten(2)[0].T])
    return None
