"""A network's layers in their order, from the input on, and how fast each of them learns.

Sources: gradual unfreezing and lower rates for lower layers are of Howard and Ruder, Universal Language Model
Fine-tuning for Text Classification, 2018; one decay a layer of Clark, Luong, Le and Manning, ELECTRA, 2020.
"""

from __future__ import annotations

from torch import nn

from fathom.transfer._config import TransferConfig


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, from the input on.

    A layer is a child of the model, or of a list or sequence among its children: models define them in the order in
    which a batch passes through. Parameters of the model's own (positions) belong to the first.
    """
    seen: set[int] = set()
    found: list[list[nn.Parameter]] = [_new(list(model.parameters(recurse=False)), seen)]
    for child in model.children():
        parts = child.children() if isinstance(child, (nn.ModuleList, nn.Sequential)) else [child]
        found += [_new(list(part.parameters()), seen) for part in parts]
    filled = [layer for layer in found if layer]
    if len(filled) > 1 and found[0]:
        filled[0:2] = [filled[0] + filled[1]]
    return filled


def settle(model: nn.Module, config: TransferConfig) -> list[str]:
    """Set which of the model's parameters learn, from when on, and how fast; return what to tell the user.

    The engine reads a parameter's `requires_grad`, `learning_rate_scale` (a factor) and `learning_rate_from` (the share
    of the run from which it moves).
    """
    if config.lora:  # whatever is no adapter stays as it is
        return []
    found = layers(model)
    frozen = round(config.freeze * len(found))
    for place, layer in enumerate(found):
        above = len(found) - 1 - place
        for parameter in layer:
            if place < frozen:
                parameter.requires_grad_(False)
            parameter.learning_rate_scale = config.layer_decay ** (above + 1)  # type: ignore[attr-defined]
            if config.unfreeze:
                share = config.unfreeze * (above + 1) / (len(found) - frozen or 1)
                parameter.learning_rate_from = share  # type: ignore[attr-defined]
    told = []
    if frozen:
        told.append(f"{frozen} of {len(found)} layers stay as they were loaded.")
    if config.unfreeze:
        told.append(f"{len(found) - frozen} layers are freed one after another over {config.unfreeze:.0%} of the run.")
    return told


def _new(parameters: list[nn.Parameter], seen: set[int]) -> list[nn.Parameter]:
    """Return those not seen before: a tied weight belongs to the first layer that has it."""
    fresh = [parameter for parameter in parameters if id(parameter) not in seen]
    seen.update(map(id, fresh))
    return fresh
