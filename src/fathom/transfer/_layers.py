"""A network's layers in their order, from the input on, and how fast each of them learns.

Sources: gradual unfreezing and lower rates for lower layers are of Howard and Ruder, Universal Language Model
Fine-tuning for Text Classification, 2018; one decay a layer of Clark, Luong, Le and Manning, ELECTRA, 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MethodType

from torch import nn

from fathom.core.errors import ConfigError
from fathom.transfer._config import TransferConfig

LISTS = (nn.ModuleList, nn.Sequential)
HEADS, HEADS_ON_ADAPTERS = 30.0, 5.0  # times the rate of what else learns: heads know nothing yet


@dataclass(frozen=True)
class Layer:
    """Modules that a batch passes through together, and their parameters."""

    modules: list[nn.Module]
    parameters: list[nn.Parameter]


def layers(model: nn.Module) -> list[Layer]:
    """Return the layers that have parameters, from the input on.

    A layer is a child of the model, or of a list or sequence among its children: models define them in the order in
    which a batch passes through. A child that holds such lists within it, as other libraries' encoders do, is taken
    apart in the same way. Parameters of the model's own (positions) belong to the first layer, and modules without
    parameters (dropout) to the one before them.
    """
    seen: set[int] = set()
    found: list[Layer] = []
    waiting: list[nn.Parameter] = []  # of modules that are taken apart
    for module, whole in _parts(model):
        fresh = _new(list(module.parameters(recurse=whole)), seen)
        if not whole:
            waiting += fresh
        elif fresh:
            found.append(Layer([module], waiting + fresh))
            waiting = []
        elif found:
            found[-1].modules.append(module)
    return [*found, Layer([], waiting)] if waiting else found


def settle(model: nn.Module, config: TransferConfig) -> list[str]:
    """Set which of the model's parameters learn, from when on, and how fast; return what to tell the user.

    Layers that stay as they are do so in every respect: nothing is dropped in them, and their running statistics do
    not move. The engine reads a parameter's `requires_grad`, `learning_rate_scale` (a factor) and `learning_rate_from`
    (the share of the run from which it moves).

    Raises:
        ConfigError: layers are to be told apart in a network that has but one.
    """
    if config.lora:  # whatever is no adapter stays as it is
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                hold(module)
        return []
    found = layers(model)
    if len(found) < 2 and (0 < config.freeze < 1 or config.unfreeze):
        raise ConfigError(
            f"The network has {len(found)} layer{'' if len(found) == 1 else 's'} with weights: there is none to freeze "
            "or free apart from others; drop transfer.freeze and transfer.unfreeze, or freeze it whole by --freeze."
        )
    frozen = round(config.freeze * len(found))
    for place, layer in enumerate(found):
        above = len(found) - 1 - place
        for module in layer.modules if place < frozen else ():
            hold(module)
        for parameter in layer.parameters:
            if place < frozen:
                parameter.requires_grad_(False)
            parameter.learning_rate_scale = config.layer_decay ** (above + 1)  # type: ignore[attr-defined]
            if config.unfreeze:
                share = config.unfreeze * (above + 1) / (len(found) - frozen or 1)
                parameter.learning_rate_from = share  # type: ignore[attr-defined]
    if config.freeze == 1:
        hold(model)
    told = []
    if frozen:
        told.append(f"{frozen} of {len(found)} layers stay as they were loaded.")
    if config.unfreeze:
        told.append(f"{len(found) - frozen} layers are freed one after another over {config.unfreeze:.0%} of the run.")
    return told


def hasten(heads: Iterable[nn.Module], config: TransferConfig) -> None:
    """Let heads learn faster than the network that they stand on: they begin with nothing."""
    usual = 1.0 if config.freeze == 1 else HEADS_ON_ADAPTERS if config.lora else HEADS
    factor = config.heads or usual
    for head in heads:
        for parameter in head.parameters():
            parameter.learning_rate_scale = factor  # type: ignore[attr-defined]


def hold(module: nn.Module) -> None:
    """Keep a module as it is when evaluated, also while all around it is trained."""
    module.train = MethodType(_stay, module)  # type: ignore[method-assign]
    module.eval()


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the modules of which layers are made, and whether whole or, taken apart, with parameters of their own."""
    yield model, False
    for child in model.children():
        if isinstance(child, LISTS):
            yield from ((part, True) for part in child)
        elif any(isinstance(inner, LISTS) and _stacked(inner) for inner in child.modules()):
            yield from _parts(child)
        else:
            yield child, True


def _stacked(parts: nn.Module) -> bool:
    """Return whether a list is one of layers: several modules of one class, such as a Transformer's blocks."""
    found = list(parts.children())
    return len(found) > 1 and len({type(part) for part in found}) == 1


def _new(parameters: list[nn.Parameter], seen: set[int]) -> list[nn.Parameter]:
    """Return those not seen before: a tied weight belongs to the first layer that has it."""
    fresh = [parameter for parameter in parameters if id(parameter) not in seen]
    seen.update(map(id, fresh))
    return fresh
