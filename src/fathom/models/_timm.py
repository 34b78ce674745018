"""Image encoders of the timm library as models: `--model timm:NAME`, as timm lists them.

    image [B, C, H, W]  ->  normalise, scale to the side of the published one  ->  their network  ->  features [B, D]

What rebuilds the network is the architecture's name, the arguments it was made with and the version of the library:
timm's networks are made by its own code, none of which is kept here or fetched. Weights are read from safetensors only.
Four steps, of which loading an artifact takes the second alone: `complete` looks the architecture up, `build` makes the
network with fresh weights for the images at hand, `fill` puts the published weights into it, and `recipe` tells how to
fine-tune it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.errors import ConfigError, did_you_mean
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.image import Normalize

REFERENCE = "Wightman, PyTorch Image Models, 2019"
NEEDS = "pip install timm"
ARGUMENTS = ("img_size",)  # what may be passed on to the architecture, besides what the data decides


@dataclass(frozen=True)
class Config:
    source: str = option("", "architecture, as timm lists it, or ARCHITECTURE@FILE.safetensors for weights from a file")
    settings: str = option("", "architecture, its arguments and timm's version, as JSON; none: those of the source")
    width: int = option(0, "length of the feature vector; 0: found out")
    weights: bool = option(True, "begin with the published weights rather than with fresh ones")
    image_size: int = option(0, "side that images are scaled to; 0: the published one")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why such a model cannot take such data, or None."""
    return spec.unless_one("image")


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings to fine-tune with, or from fresh weights larger steps."""
    rate = 1e-4 if config.weights else 1e-3
    engine = {"optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.05, "warmup": 0.1, "epochs": 10}
    return {"engine": {**engine, "batch_size": 32}, "augment": {"shift": 0.08, "flip": "auto"}}


def complete(config: Config, spec: DataSpec) -> Config:
    """Return the configuration with what the library tells of the architecture.

    Raises:
        ConfigError: the library is missing, or has no such architecture.
    """
    if not config.settings:
        config = replace(config, settings=json.dumps(_looked_up(config), sort_keys=True))
    if config.width:
        return config
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build(replace(config, width=1), spec).eval()
        found = network({network.key: torch.zeros(1, *spec.inputs[0].shape, dtype=torch.uint8)}).pooled
    return replace(config, width=found.shape[1])


def ready(config: Config) -> None:
    """Import what `build` will need: that is not part of what an artifact's model may cost.

    Raises:
        ConfigError: the library is missing.
    """
    _library()


def build(config: Config, spec: DataSpec) -> Encoder:
    """Return the network with fresh weights.

    Raises:
        ConfigError: the data is of another kind, or the library cannot make such a network.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'timm:{config.source}' cannot be used: {why}.")
    if config.image_size < 0 or config.width < 0:
        raise ConfigError("Options 'model.image_size' and 'model.width' must be 0 or more.")
    field = spec.inputs[0]
    return Encoder(_created(config, field.shape[0]), config, field)


def fill(network: Encoder, config: Config) -> list[str]:
    """Put the published weights into a network that was built, and return what the user should know of it.

    Raises:
        ConfigError: the weights cannot be had as safetensors.
    """
    if not config.weights:
        return [f"timm:{config.source} begins with fresh weights, as model.weights=false asks."]
    file = _weights(config)
    try:
        theirs = _created(config, network.channels, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"The weights of 'timm:{config.source}' do not fit: {_line(error)}") from None
    network.network.load_state_dict(theirs.state_dict())
    notes = [f"timm:{config.source}: {sum(p.numel() for p in network.parameters()):,} weights, published ones."]
    if network.channels != 3:
        notes.append(f"The weights of 3 input channels are those of {network.channels} now, as timm adapts them.")
    return notes


class Encoder(nn.Module):
    """One of the library's networks without its head; `width` is D."""

    def __init__(self, network: nn.Module, config: Config, field: Field) -> None:
        super().__init__()
        self.network, self.width = network, config.width
        self.key, self.channels = field.key, field.shape[0]
        self.normalize = Normalize(field)
        side = config.image_size or int(_settings(config)["image_size"])
        self.size = (side, side)

    def forward(self, batch: Batch) -> Features:
        x = self.normalize(batch[self.key])  # [B, C, H, W]
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return Features(pooled=self.network(x))  # [B, D]


def _library() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # also where the torchvision that it needs is of another torch
        raise ConfigError(
            f"A model named timm:… is one of the timm library, which cannot be imported ({_line(error)[:-1]}): {NEEDS}."
        ) from None
    return timm


def _looked_up(config: Config) -> dict[str, Any]:
    """Return what rebuilds the network."""
    library = _library()
    name = config.source.partition("@")[0]
    if not library.is_model(name):
        raise ConfigError(f"timm has no architecture '{name}'.{did_you_mean(name, library.list_models())}")
    published = library.get_pretrained_cfg(name)
    side = int(published.input_size[-1]) if published is not None else 224
    arguments = (
        {"img_size": config.image_size} if config.image_size and published and published.fixed_input_size else {}
    )
    return {"architecture": name, "arguments": arguments, "image_size": side, "timm": library.__version__}


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings as they were kept, checked: an artifact may be anyone's."""
    wrong = ConfigError("Option 'model.settings' is not the JSON that describes a network of timm.")
    try:
        found = json.loads(config.settings)
        name, arguments, side = found["architecture"], found["arguments"], found["image_size"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise wrong from None
    if not (isinstance(name, str) and isinstance(arguments, dict) and isinstance(side, int) and 0 < side <= 4096):
        raise wrong
    if set(arguments) - set(ARGUMENTS) or not all(isinstance(v, int) and 0 < v <= 4096 for v in arguments.values()):
        raise wrong
    if ":" in name or "/" in name:  # "hf-hub:…" and "local-dir:…" would have a configuration of another's fetched
        raise ConfigError(
            f"'timm:{name}' is no architecture of timm's own; give its name as timm.list_models() has it."
        )
    return found


def _created(config: Config, channels: int, **options: Any) -> nn.Module:
    """Return the library's network without a head."""
    settings, library = _settings(config), _library()
    try:
        return library.create_model(
            settings["architecture"], in_chans=channels, num_classes=0, **settings["arguments"], **options
        )
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"timm cannot make '{settings['architecture']}' so: {_line(error)}") from None


def _weights(config: Config) -> Path:
    """Return the file that holds the published weights, fetched from the Hub where it was not before."""
    name, _, given = config.source.partition("@")
    if given:
        if not given.endswith(".safetensors") or not Path(given).is_file():
            raise ConfigError(f"'{given}' is no safetensors file; expected ARCHITECTURE@FILE.safetensors.")
        return Path(given)
    published = _library().get_pretrained_cfg(name)
    place = published.hf_hub_id if published is not None else None
    if not place:
        raise ConfigError(
            f"timm tells no place on the Hub for the weights of '{name}'; set model.weights=false for fresh ones."
        )
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(place, "model.safetensors"))
    except Exception as error:  # offline, no such file, no such library: each in a way of its own
        raise ConfigError(
            f"The weights of 'timm:{name}' cannot be had as safetensors: {_line(error)} "
            "Set model.weights=false for fresh ones."
        ) from None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".") + "."
