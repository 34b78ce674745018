"""A model that does not fit into one process, spread over all of them: FSDP2, around any objective.

Weights, gradients and the optimiser's state lie in pieces, one on each process. Each repeated block (a member of a
ModuleList or Sequential whose members are of one kind) is put together when it is used and taken apart afterwards;
the rest is one piece that stays together during a step. Checkpoints and what leaves the run are whole again.

Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.errors import ConfigError
from fathom.core.objective import Objective

CALLED = ("losses", "metrics", "predict")  # what the engine calls of an objective
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
ABLE = ("adamw", "adam", "sgd", "lion")  # optimisers that work on a piece of a matrix as on the whole


class Sharding:
    """The spread state of one objective."""

    def __init__(self, objective: Objective, device: torch.device, size: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.objective = objective
        self._before = [(m, type(m), {h: dict(getattr(m, h)) for h in HOOKS}) for m in objective.modules()]
        self._tied = {id(p): name for name, p in objective.named_parameters()}
        self._slots = [
            (m, k, self._tied[id(p)]) for m in objective.modules() for k, p in m._parameters.items() if p is not None
        ]
        mesh = init_device_mesh(device.type, (size,))
        for block in _blocks(objective):
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        for name in CALLED:
            register_fsdp_forward_method(objective, name)

    def part(self, last: bool) -> None:
        """Say whether the next micro-batch is the last: only then are gradients summed over the processes."""
        self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]

    def rest(self) -> None:
        """Take apart what a step that was not finished left together."""
        for module in self.objective.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # type: ignore[operator]

    def gather(self) -> None:
        """Put the objective together again, in main memory, as it was before it was spread."""
        whole = {name: whole_of(p.detach()).cpu() for name, p in self.objective.named_parameters()}
        for name in CALLED:
            vars(self.objective).pop(name, None)
        for module, kind, hooks in self._before:
            module.__class__ = kind
            for name, found in hooks.items():
                getattr(module, name).clear()
                getattr(module, name).update(found)
        made: dict[str, nn.Parameter] = {}
        for module, key, name in self._slots:
            p = module._parameters[key]
            assert p is not None
            module._parameters[key] = made.setdefault(name, nn.Parameter(whole[name], p.requires_grad))


def refuse_what_cannot(objective: Objective, optimizer: str) -> None:
    """Name what cannot be spread, before any work starts.

    Raises:
        ConfigError: several phases, or an optimiser that needs whole matrices.
    """
    phases = objective.phases()
    everything = {id(p) for p in objective.parameters() if p.requires_grad}
    if len(phases) > 1 or {id(p) for p in phases[0].parameters if p.requires_grad} != everything:
        raise ConfigError(
            "Option 'shard' takes an objective that moves all of its weights by one loss; "
            f"'{type(objective).__name__}' moves some of them in turn. Leave shard out: each process holds the whole."
        )
    if optimizer not in ABLE:
        raise ConfigError(f"Option 'shard' takes {', '.join(ABLE)}; optimizer '{optimizer}' needs whole matrices.")


def whole_of(tensor: Tensor) -> Tensor:
    """Return a spread tensor put together (all processes take part), any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors put together, those that were spread in main memory."""
    return {name: whole_of(t.detach()).cpu() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


def _blocks(objective: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of lists of like modules, outermost lists first, each weight in one of them at most."""
    taken: set[int] = set()
    owners: dict[int, int] = {}
    for module in objective.modules():
        for p in module._parameters.values():
            if p is not None:
                owners[id(p)] = owners.get(id(p), 0) + 1
    for module in objective.modules():
        members: list[Any] = list(module.children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
        if len(members) < 2 or len({type(m) for m in members}) > 1:
            continue
        for member in members:
            inside = [id(p) for p in member.parameters()]
            if inside and not taken & set(inside) and all(owners[i] == 1 for i in inside):
                taken |= set(inside)
                yield member
