"""What a user may set of learning on from a trained network."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fathom.core.config import option
from fathom.core.errors import ConfigError


@dataclass(frozen=True)
class TransferConfig:
    source: str = option("", "a trained model's folder, one with published weights, a .gguf file, or hf:NAME@REVISION")
    freeze: float = option(0.0, "share of the layers, from the input on, that stay as they are; 1: only heads learn")
    unfreeze: float = option(0.0, "share of the run over which layers are freed, the last one first; 0: at once")
    layer_decay: float = option(1.0, "a layer's learning rate as a share of that of the layer after it")
    heads: float = option(0.0, "a new head's learning rate as a multiple of the network's; 0: 30, of adapters' 5")
    lora: int = option(0, "rank of adapters beside the linear layers, which then stay as they are; 0: none")
    lora_scale: float = option(0.0, "what adapters add counts scale/rank times; 0: a scale of twice the rank")
    adapter: str = option("", "an adapter.safetensors to put into the weights before anything else")

    def __post_init__(self) -> None:
        for name in ("freeze", "unfreeze"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"Option 'transfer.{name}' was given {getattr(self, name)}; expected a share from 0 to 1."
                )
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"Option 'transfer.layer_decay' was given {self.layer_decay}; expected a share above 0, at most 1."
            )
        for name in ("heads", "lora", "lora_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"Option 'transfer.{name}' was given {getattr(self, name)}; expected zero or more.")
        if self.lora and self.unfreeze:
            raise ConfigError("Option 'transfer.unfreeze' frees what 'transfer.lora' keeps as it is: drop one.")
        if self.lora and self.freeze:
            raise ConfigError("Option 'transfer.lora' keeps the network as it is: drop transfer.freeze (--freeze).")

    @property
    def asked(self) -> bool:
        """Whether any option is other than its default."""
        return any(getattr(self, option.name) != option.default for option in fields(self))
