"""Where tensors live, and how many threads work on them."""

from __future__ import annotations

import os

from fathom.core.errors import ConfigError


def leads() -> bool:
    """Say whether this process speaks and writes for all that torchrun started; the only one there is does."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def choose(name: str = "auto"):  # type: ignore[no-untyped-def]  # -> torch.device; torch is imported when called
    """Return the `torch.device` of that name; `auto` is the first of CUDA, Apple's GPU and the CPU that is there.

    Raises:
        ConfigError: not a device, or one that this machine or this build of PyTorch lacks.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"Device '{name}' cannot be used here; give auto, cpu{_others()}.") from None
    return device


def _others() -> str:
    import torch

    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return "".join(f", {name}" for name in [*found, *(["mps"] if torch.backends.mps.is_available() else [])])
