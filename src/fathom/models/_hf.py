"""Encoders of the transformers library as models: `--model hf:NAME`, a repository on the Hub or a folder.

    text [B, T]         ->  their text encoder   ->  tokens [B, T, D]  ->  mean of the real ones, or the first  [B, D]
    image [B, C, H, W]  ->  their image encoder  ->  tokens or maps    ->  class token, or mean over places     [B, D]

Their configuration, whole, becomes an option of ours as JSON text (`settings`), so that an artifact is rebuilt from it
without the network, by classes of the installed library alone: code that comes with a repository is never run, and
weights are read from safetensors only. Five steps, of which loading an artifact takes the third alone:

    tokenizer  the tokens that its texts are read by
    complete   look the configuration up, and find out how wide the features are
    build      the network, with fresh weights, for the data at hand: its vocabulary, channels and size of images
    fill       put the published weights into it, and say what could not be taken over
    recipe     settings to fine-tune with
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.types import Batch, DataSpec, Features, Field
from fathom.layers.image import Normalize
from fathom.models._hf_weights import take_over

REFERENCE = "Wolf et al., Transformers: State-of-the-Art Natural Language Processing, 2020"
NEEDS = "pip install transformers"
# What of a configuration would have other code run, is of a head that is not here, or tells where the file once lay.
DROPPED = {"auto_map", "quantization_config", "attn_implementation", "dtype", "torch_dtype", "architectures"}
DROPPED |= {"id2label", "label2id", "num_labels", "transformers_version", "name_or_path", "problem_type"}
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
LARGEST = 1 << 26  # whole number in a configuration
COUNTED_FROM_PAD = ("roberta", "camembert", "longformer", "xmod", "data2vec-text", "mpnet")  # their first position


@dataclass(frozen=True)
class Config:
    source: str = option("", "repository on the Hub, as NAME or NAME@REVISION, or a folder")
    settings: str = option("", "the library's configuration as JSON; none: that of the source")
    width: int = option(0, "length of the feature vector; 0: found out")
    weights: bool = option(True, "begin with the published weights rather than with fresh ones")
    image_size: int = option(
        0, "side that images are scaled to; 0: the published one, or their own where there is none"
    )
    pooling: Literal["auto", "mean", "first"] = option(
        "auto", "a feature vector: the mean of the tokens', or the first one's; auto: of a text the mean"
    )


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why such a model cannot take such data, or None."""
    if len(spec.inputs) != 1 or spec.inputs[0].kind not in ("text", "image"):
        return f"it takes one column of texts or images; the input columns are {spec.given}"
    return None


def recipe(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Return settings to fine-tune with: small steps, as Devlin et al., BERT, 2018, took them."""
    rate = 5e-5 if config.weights else 5e-4
    engine = {"optimizer": "adamw", "learning_rate": rate, "batch_size": 32, "warmup": 0.1, "epochs": 5}
    return {"engine": engine, "augment": {"shift": 0.08, "flip": "auto"}}


def tokenizer(config: Config) -> tuple[str, dict[str, str]] | None:
    """Return the contents of the source's `tokenizer.json` and its special tokens by their roles, or None.

    Older sources have lists of words or pieces instead, which the library turns into one.
    """
    name, revision = _place(config)
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZERS):
        return None
    try:
        found = _library().AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        text = found.backend_tokenizer.to_str()
    except Exception:  # of a model of images there is none; what cannot be converted is told when it is filled
        return None
    return text, {role: token for role, token in found.special_tokens_map.items() if isinstance(token, str)}


def complete(config: Config, spec: DataSpec) -> Config:
    """Return the configuration with what the source and a first run tell.

    Raises:
        ConfigError: the library or the source is missing, or the model is no encoder of such data.
    """
    if not config.settings:
        settings, commit = _published(config)
        pinned = f"{_place(config)[0]}@{commit}" if commit else config.source
        config = replace(config, source=pinned, settings=json.dumps(settings, sort_keys=True))
    if config.width:
        return config
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build(replace(config, width=1), spec).eval()
        try:
            found = network(_one_row(spec.inputs[0])).pooled
        except Exception as error:  # what is no encoder fails in ways of its own
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise ConfigError(f"'hf:{config.source}' cannot be used as an encoder here ({reason}).") from None
    return replace(config, width=found.shape[1])


def ready(config: Config) -> None:
    """Import what `build` will need: that is not part of what an artifact's model may cost.

    Raises:
        ConfigError: the library is missing, or has no such model.
    """
    _classes(_settings(config))


def build(config: Config, spec: DataSpec) -> Encoder:
    """Return the network with fresh weights.

    Raises:
        ConfigError: the data is of another kind, or the settings are not those of an encoder for it.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Model 'hf:{config.source}' cannot be used: {why}.")
    if config.image_size < 0 or config.width < 0:
        raise ConfigError("Options 'model.image_size' and 'model.width' must be 0 or more.")
    settings = _fitted(_settings(config), config, spec.inputs[0])
    config_class, model_class = _classes(settings)
    theirs = config_class(**{key: value for key, value in settings.items() if key != "model_type"})
    without = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}
    network = model_class(theirs, **without).float()
    if getattr(theirs, "is_encoder_decoder", False):
        network = network.get_encoder()
    wanted = "input_ids" if spec.inputs[0].kind == "text" else "pixel_values"
    if network.main_input_name != wanted:
        takes = {"input_ids": "texts", "pixel_values": "images"}.get(network.main_input_name, network.main_input_name)
        raise ConfigError(
            f"'hf:{config.source}' takes {takes}; column '{spec.inputs[0].name}' is {spec.inputs[0].kind}."
        )
    return Encoder(network, config, spec.inputs[0])


def fill(network: Encoder, config: Config) -> list[str]:
    """Put the published weights into a network that was built, and return what the user should know of it.

    Raises:
        ConfigError: the weights cannot be had as safetensors.
    """
    if not config.weights:
        return [f"hf:{config.source} begins with fresh weights, as model.weights=false asks."]
    theirs, missing = _pretrained(config, network.network)
    fresh, notes = take_over(network.network, theirs.state_dict(), missing)
    if fresh:
        shown = ", ".join(fresh[:5]) + (f" and {len(fresh) - 5} more" if len(fresh) > 5 else "")
        notes.append(f"Learned from the start: {shown}.")
    return [f"hf:{config.source}: {sum(p.numel() for p in network.parameters()):,} weights, published ones.", *notes]


class Encoder(nn.Module):
    """One of the library's encoders; `width` is D."""

    def __init__(self, network: nn.Module, config: Config, field: Field) -> None:
        super().__init__()
        self.network, self.width = network, config.width
        self.key, self.kind = field.key, field.kind
        theirs = network.config
        self.pad, self.their_pad = field.pad, int(getattr(theirs, "pad_token_id", field.pad) or 0)
        side = getattr(theirs, "image_size", None) if field.kind == "image" else None
        self.size = None if side is None else (side, side) if isinstance(side, int) else tuple(side)
        if config.image_size:
            self.size = (config.image_size, config.image_size)
        self.normalize = Normalize(field) if field.kind == "image" else nn.Identity()
        classes = any(
            name.rpartition(".")[2] in ("cls_token", "class_embedding") for name, _ in network.named_parameters()
        )
        self.first = config.pooling == "first" or (config.pooling == "auto" and field.kind == "image" and classes)

    def forward(self, batch: Batch) -> Features:
        return self._read(batch[self.key]) if self.kind == "text" else self._see(batch[self.key])

    def _read(self, tokens: Tensor) -> Features:
        """Return the features of texts [B, T]."""
        tokens = tokens.long()
        real = tokens != self.pad  # [B, T]
        visible = real | ~real.any(1, keepdim=True)  # a row without tokens sees its padding: no softmax over nothing
        if self.pad != self.their_pad:  # the two change places: some models count positions from where padding ends
            ours, theirs = tokens == self.pad, tokens == self.their_pad
            tokens = tokens.masked_fill(ours, self.their_pad).masked_fill(theirs, self.pad)
        x = self.network(input_ids=tokens, attention_mask=visible.long()).last_hidden_state  # [B, T, D]
        if self.first:
            return Features(pooled=x[:, 0], tokens=x, mask=real)
        share = (visible / visible.sum(1, keepdim=True)).to(x.dtype)  # [B, T]
        return Features(pooled=torch.einsum("bt,btd->bd", share, x), tokens=x, mask=real)

    def _see(self, image: Tensor) -> Features:
        """Return the features of images [B, C, H, W]."""
        x = self.normalize(image)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        found = self.network(pixel_values=x)
        last = found.last_hidden_state
        pooled = getattr(found, "pooler_output", None)
        if last.dim() == 4:  # maps [B, D, h, w]
            return Features(pooled=last.mean((2, 3)) if pooled is None else pooled.flatten(1), maps=(last,))
        if pooled is None or self.first:
            pooled = last[:, 0] if self.first else last.mean(1)
        return Features(pooled=pooled, tokens=last)


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f"A model named hf:… is one of the transformers library, which is not installed: {NEEDS}."
        ) from None
    return transformers


def _published(config: Config) -> tuple[dict[str, Any], str]:
    """Return the source's configuration, cleaned, and the commit on the Hub that it is of."""
    name, revision = _place(config)
    try:
        found = _library().AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"'hf:{config.source}' has no configuration that can be used: {_line(error)}") from None
    settings = _cleaned(json.loads(found.to_json_string(use_diff=False)))
    return settings, str(getattr(found, "_commit_hash", None) or "")


def _pretrained(config: Config, ours: nn.Module) -> tuple[nn.Module, set[str]]:
    """Return the library's own network with the published weights, and the names of those that were not published."""
    name, revision = _place(config)
    options: dict[str, Any] = {"revision": revision, "use_safetensors": True, "trust_remote_code": False}
    if "add_pooling_layer" in inspect.signature(type(ours)).parameters:
        options["add_pooling_layer"] = False
    try:
        found, told = _library().AutoModel.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32, attn_implementation="eager", **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"The weights of 'hf:{config.source}' cannot be had as safetensors: {_line(error)} "
            "Take a version with them, or set model.weights=false for fresh ones."
        ) from None
    if getattr(found.config, "is_encoder_decoder", False):
        found = found.get_encoder()
    return found, set(told["missing_keys"])


def _place(config: Config) -> tuple[str, str]:
    name, _, revision = config.source.partition("@")
    return name, revision or "main"


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings as they were kept, checked: an artifact may be anyone's.

    Raises:
        ConfigError: they are not JSON, out of all measure, or ask for another model to be fetched.
    """
    try:
        settings = json.loads(config.settings)
        kept = _cleaned(settings)
    except (ValueError, AttributeError, RecursionError):
        raise ConfigError("Option 'model.settings' is not the JSON of a configuration of transformers.") from None
    for name, value in _leaves(kept):
        if type(value) is int and abs(value) > LARGEST:
            raise ConfigError(f"Option 'model.settings' holds {name}={value}; whole numbers go up to {LARGEST:,}.")
        if "backbone" in name and value:
            raise ConfigError(
                f"'hf:{config.source}' is built around another model ({name}={value}), which is not kept with it."
            )
    return kept


def _cleaned(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without what has no part in the network, at every depth."""
    return {
        key: _cleaned(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in DROPPED and not key.startswith("_")
    }


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _leaves(value, key)
    elif isinstance(settings, list):
        for value in settings:
            yield from _leaves(value, name)
    else:
        yield name, settings


def _classes(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return the library's classes of the configuration and of the network."""
    from_library = _library()
    kind = settings.get("model_type")
    known = from_library.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known or kind.startswith("timm"):
        raise ConfigError(f"transformers {from_library.__version__} has no encoder of type '{kind}'; a newer one may.")
    config_class = known[kind]
    try:
        model_class = from_library.models.auto.modeling_auto.MODEL_MAPPING[config_class]
    except KeyError:
        raise ConfigError(f"A '{kind}' of transformers has no encoder.") from None
    return config_class, model_class[0] if isinstance(model_class, (list, tuple)) else model_class


def _fitted(settings: dict[str, Any], config: Config, field: Field) -> dict[str, Any]:
    """Return the settings for the data at hand."""
    settings = {**settings, "use_cache": False}
    if field.kind == "image":
        if config.image_size and "image_size" in settings:
            settings["image_size"] = config.image_size
        return {**settings, "num_channels": field.shape[0]}
    pad = settings.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < field.vocabulary:
        settings["pad_token_id"] = field.pad
    places = settings.get("max_position_embeddings", settings.get("n_positions"))
    if isinstance(places, int) and places > 0:
        if any(name in str(settings.get("model_type")) for name in COUNTED_FROM_PAD):
            places -= settings["pad_token_id"] + 1
        if field.shape[0] > places:
            raise ConfigError(
                f"Texts of column '{field.name}' have up to {field.shape[0]} tokens; 'hf:{config.source}' reads "
                f"{places}: set prepare.text_length={places}."
            )
    return {**settings, "vocab_size": field.vocabulary}


def _one_row(field: Field) -> Batch:
    if field.kind == "image":
        return {field.key: torch.zeros(1, *field.shape, dtype=torch.uint8)}
    return {field.key: torch.full((1, *field.shape), min(field.pad + 1, field.vocabulary - 1))}


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".") + "."
