"""Low-rank adapters: a linear layer keeps its weights and learns a small matrix product beside them.

    y = x·Wᵀ + b  +  scale/rank · x·Aᵀ·Bᵀ        A [rank, in] begins at random, B [out, rank] at zero

An adapter of rank 8 has some hundredth of the layer's weights, so that many of them can be kept for one network. Added
into W it costs nothing any more.

Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.errors import ArtifactError, ConfigError

ABOUT = "fathom_adapter"  # the key of the file's description


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter: [..., in] -> [..., out]. Its own weights do not learn."""

    adapter_in: nn.Parameter
    adapter_out: nn.Parameter
    factor: float

    def forward(self, x: Tensor) -> Tensor:
        beside = F.linear(F.linear(x, self.adapter_in), self.adapter_out)  # [..., out]
        return F.linear(x, self.weight, self.bias) + self.factor * beside


def adapt(model: nn.Module, rank: int, scale: float = 0.0) -> int:
    """Give every linear layer of the model an adapter, and let nothing but adapters learn; return how many there are.

    Args:
        rank: of each product; at most the smaller side of a layer.
        scale: what the product is multiplied by, divided by the rank; 0: twice the rank.

    Raises:
        ConfigError: the model has no linear layer.
    """
    model.requires_grad_(False)
    found = [module for module in model.modules() if type(module) is nn.Linear and min(module.weight.shape) > 1]
    if not found:
        raise ConfigError("Adapters stand beside linear layers, and this model has none; drop transfer.lora.")
    for module in found:
        own = min(rank, *module.weight.shape)
        down = torch.empty(own, module.in_features, dtype=module.weight.dtype)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        module.__class__ = AdaptedLinear
        module.adapter_in = nn.Parameter(down)
        module.adapter_out = nn.Parameter(torch.zeros(module.out_features, own, dtype=module.weight.dtype))
        module.factor = (scale or 2.0 * rank) / rank  # type: ignore[assignment]
    return len(found)


def adapter(model: nn.Module) -> dict[str, Tensor]:
    """Return the matrices of all adapters, by the names of their layers."""
    return {
        f"{name}.{part}": getattr(module, part).detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
        for part in ("adapter_in", "adapter_out")
    }


def merge(model: nn.Module) -> None:
    """Add every adapter into the weights that it stands beside: the layers are plain ones again."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AdaptedLinear):
                module.weight += module.factor * (module.adapter_out @ module.adapter_in)
                del module.adapter_in, module.adapter_out, module.factor
                module.__class__ = nn.Linear  # type: ignore[assignment]


def packed(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """Return adapters alone as a safetensors file.

    Args:
        tensors: as `adapter` returned them.
        about: `rank` and `scale`, and what they were learned beside; readable from the file's header.
    """
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return to_bytes(plain, metadata={ABOUT: json.dumps(about, sort_keys=True)})


def load(model: nn.Module, path: Path) -> int:
    """Add the adapters of a file into the model's weights; return how many there are.

    Raises:
        ArtifactError: the file is damaged, or of another network.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        factor = float(about["scale"]) / int(about["rank"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ArtifactError(f"'{path}' cannot be read as an adapter: {error}.") from None
    names = sorted({name.rpartition(".")[0] for name in tensors})
    with torch.no_grad():
        for name in names:
            down, up = tensors.get(f"{name}.adapter_in"), tensors.get(f"{name}.adapter_out")
            layer = linear.get(name)
            if down is None or up is None or layer is None or not _fits(down, up, layer.weight):
                raise ArtifactError(f"'{path}' is the adapter of another network: layer '{name}' does not fit.")
            layer.weight += factor * (up @ down)
    return len(names)


def _fits(down: Tensor, up: Tensor, weight: Tensor) -> bool:
    return down.dim() == up.dim() == 2 and up.shape[1] == len(down) and (len(up), down.shape[1]) == weight.shape
