"""Beginning from a trained network: which model it is, how it reads texts, and how its weights come into a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fathom import artifact as artifacts
from fathom import pretrained, transfer
from fathom.api.config import Settings, chosen
from fathom.artifact import manifest
from fathom.core import catalog
from fathom.core.config import as_dict, build
from fathom.core.errors import ConfigError
from fathom.core.published import Match
from fathom.core.types import DataSpec
from fathom.data import Vocabulary, vocabulary
from fathom.layers.heads import Head
from fathom.transfer import TransferConfig

ADAPTER = "adapter.safetensors"
LEAST_EPOCHS = 3
STEPS, MOST_EPOCHS = 250, 10  # of a network which knows something, however few the rows
STEPS_OF_IMAGES, MOST_EPOCHS_OF_IMAGES = 1_000, 20  # for its first layers are less sure of what new images show
FEW = 2_000  # rows below which a step takes fewer of them
RATE_TIMES_WIDTH = 0.04  # the rate of steps, times the width of the network: 1e-4 for MiniLM, 5e-5 for BERT
SMOOTHING = 0.1  # of labels: few rows are soon known by heart, and a network that is sure of them is too sure of others
LOWEST_RATE, HIGHEST_RATE, OTHER_RATE = 2e-5, 1e-3, 3e-4
HEADS_RATE, ADAPTERS_RATE = 5e-3, 1e-3  # where nothing else learns


@dataclass(frozen=True)
class Origin:
    """A trained network to learn on from.

    Attributes:
        config: what of the user's options concerns it.
        entry: the model as the catalog has it, with its configuration.
        tensors: its weights, by the names that `table` speaks of, or by ours where there is no table.
        vocabulary: the tokens that it reads texts by, where it reads any.
        revision: the commit on the Hub, "" elsewhere.
        reading: options of preparing by which it was shown texts and images.
    """

    config: TransferConfig
    entry: catalog.Entry
    tensors: Mapping[str, Tensor]
    table: tuple[Match, ...]
    vocabulary: Vocabulary | None = None
    revision: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The options that follow from it, weaker than the user's."""
        model = {"name": self.entry.name, **as_dict(self.entry.config)} if self.tensors else {}
        return {"prepare": dict(self.reading), "model": model}

    def recipe(self, config: Any, spec: DataSpec) -> dict[str, dict[str, Any]]:
        """Return settings to learn on with, for a network of that configuration and such training rows.

        A number of steps rather than of passes, for few rows need more of these (Mosbach, Andriushchenko, Klakow, On
        the Stability of Fine-tuning BERT, 2021; Zhang, Wu, Katiyar, Weinberger, Artzi, Revisiting Few-sample BERT
        Fine-tuning, 2021), and fewer than theirs, for heads are moved faster here. A wide network is moved by smaller
        steps (Yang, Hu, et al., Tensor Programs V, 2022). The rate falls to zero along a line.
        """
        batch = 16 if spec.rows < FEW else 32
        steps, most = (STEPS_OF_IMAGES, MOST_EPOCHS_OF_IMAGES) if spec.images else (STEPS, MOST_EPOCHS)
        epochs = round(steps / max(1, -(-spec.rows // batch)))
        return {
            "engine": {
                "optimizer": "adamw",
                "learning_rate": self._rate(config),
                "weight_decay": 0.01,
                "schedule": "linear",
                "warmup": 0.1,
                "batch_size": batch,
                "epochs": min(most, max(LEAST_EPOCHS, epochs)),
            },
            "objective": {"label_smoothing": SMOOTHING},
        }

    def _rate(self, config: Any) -> float:
        if self.config.freeze == 1:
            return HEADS_RATE
        if self.config.lora:
            return ADAPTERS_RATE
        width = getattr(config, "width", 0) or max(getattr(config, "widths", ()), default=0)
        rate = RATE_TIMES_WIDTH / width if width else OTHER_RATE
        return float(f"{min(HIGHEST_RATE, max(LOWEST_RATE, rate)):.1g}")

    def into(self, network: nn.Module) -> list[str]:
        """Fill the network, decide what of it learns, and return what to tell the user.

        Raises:
            ConfigError: the weights do not fit. ArtifactError: the adapter does not.
        """
        told = pretrained.put(network, self.tensors, self.table).told() if self.tensors else []
        if not self.tensors and self.vocabulary is None and getattr(network, "kind", "") == "text":
            told.append(
                "No tokenizer came with it: texts are read by tokens learned from them, of which it knows nothing."
            )
        if self.revision:
            told.append(f"They are of revision {self.revision}: hf:…@{self.revision} pins them.")
        if self.config.adapter:
            count = transfer.load(network, Path(self.config.adapter))
            told.append(f"{count} adapters of '{self.config.adapter}' are added into them.")
        told += transfer.settle(network, self.config)
        if self.config.lora:
            count = transfer.adapt(network, self.config.lora, self.config.lora_scale)
            told.append(f"{count} linear layers have an adapter of rank {self.config.lora}; all else stays as it is.")
        return told

    def hasten(self, task: nn.Module, network: nn.Module) -> None:
        """Let the heads that the objective has beside the network learn faster than it."""
        own = {id(module) for module in network.modules()}
        transfer.hasten(
            (part for part in task.modules() if isinstance(part, Head) and id(part) not in own), self.config
        )

    def settled(self, network: nn.Module) -> bytes:
        """Add what adapters learned into the weights, and return a file of the adapters alone, b"" without any."""
        if not self.config.lora:
            return b""
        rank, scale = self.config.lora, self.config.lora_scale or 2.0 * self.config.lora
        about = {"rank": rank, "scale": scale, "source": self.config.source, "revision": self.revision}
        alone = transfer.packed(transfer.adapter(network), about)
        transfer.merge(network)
        return alone


def origin(settings: Settings) -> Origin | None:
    """Return the network that the options of group `transfer` name, or None where they name none.

    A model of another library begins with its published weights, and so is learned on from as well.

    Raises:
        ConfigError: there is none, or the options ask for another model than it is. ArtifactError: it is damaged.
    """
    config = build(TransferConfig, settings.of("transfer"), "transfer")
    name = str(settings.of("model").get("name", ""))
    if not config.source and name.partition(":")[0] in catalog.LIBRARIES and settings.of("model").get("weights", True):
        return _dropped_in(config, settings)
    if not config.source:
        if config.asked:
            raise ConfigError("The options of 'transfer' (--freeze too) need a trained network: name one by --from.")
        return None
    folder = Path(config.source).expanduser()
    found = _artifact(config, folder) if (folder / manifest.NAME).exists() else _published(config)
    if name and name != found.entry.name and catalog.names("models").get(name) != found.entry.name:
        raise ConfigError(
            f"The weights of '{config.source}' are those of model '{found.entry.name}', and '{name}' was asked for: "
            "drop --model, or --from."
        )
    return found


def _dropped_in(config: TransferConfig, settings: Settings) -> Origin:
    """Return a model of another library, which fills itself, with the tokens that it reads texts by."""
    entry, own = chosen("models", settings.of("model"))
    entry = replace(entry, config=own)
    found = getattr(entry.module, "tokenizer", lambda config: None)(own)
    return Origin(config, entry, {}, (), vocabulary(*found) if found else None)


def _published(config: TransferConfig) -> Origin:
    found = pretrained.find(config.source)
    entry = pretrained.family(found)
    words = vocabulary(found.tokenizer, found.special) if found.tokenizer else None
    table = tuple(entry.module.matches(entry.config))
    return Origin(config, entry, found.tensors, table, words, found.revision)


def _artifact(config: TransferConfig, folder: Path) -> Origin:
    found = artifacts.load(folder)
    described = found.config["model"]
    if not described.get("name"):
        raise ConfigError(f"The model in '{folder}' is not one of Fathom's, so that only its own code can build it.")
    known = catalog.find("models", described["name"])
    entry = catalog.Entry("models", known.name, known.module, build(type(known.config), described["config"], "model"))
    state = dict(found.module.network.state_dict())
    table = tuple(Match(name, (name,)) for name in state)
    texts, images = found.preprocess.texts, found.preprocess.images
    reading: dict[str, Any] = {}
    if images and images[0].height == images[0].width:
        reading["image_size"] = images[0].height
    if texts:
        reading |= {"text_case": texts[0].case, "text_length": texts[0].length}
    return Origin(config, entry, state, table, texts[0].vocabulary if texts else None, reading=reading)
