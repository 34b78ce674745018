"""Beginning from a trained network: which model it is, how it reads texts, and how its weights come into a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fathom import artifact as artifacts
from fathom import pretrained, transfer
from fathom.api.config import Settings
from fathom.artifact import manifest
from fathom.core import catalog
from fathom.core.config import as_dict, build
from fathom.core.errors import ConfigError
from fathom.core.published import Match
from fathom.data import Vocabulary, vocabulary
from fathom.transfer import TransferConfig

ADAPTER = "adapter.safetensors"
# Weights that know something are moved in smaller steps, and fewer, than those that know nothing.
RECIPE = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "schedule": "linear", "warmup": 0.1}
FEW_MOVE = {"learning_rate": 1e-3}  # where only heads or adapters learn
EPOCHS = 4


@dataclass(frozen=True)
class Origin:
    """A trained network to learn on from.

    Attributes:
        config: what of the user's options concerns it.
        entry: the model as the catalog has it, with its configuration.
        tensors: its weights, by the names that `table` speaks of, or by ours where there is no table.
        vocabulary: the tokens that it reads texts by, where it reads any.
        revision: the commit on the Hub, "" elsewhere.
        reading: options of preparing by which it was shown texts.
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
        few = self.config.lora or self.config.freeze == 1
        engine = {**RECIPE, "epochs": EPOCHS, "batch_size": 32, **(FEW_MOVE if few else {})}
        model = {"name": self.entry.name, **as_dict(self.entry.config)}
        return {"prepare": dict(self.reading), "model": model, "engine": engine}

    def into(self, network: nn.Module) -> list[str]:
        """Fill the network, decide what of it learns, and return what to tell the user.

        Raises:
            ConfigError: the weights do not fit. ArtifactError: the adapter does not.
        """
        told = pretrained.put(network, self.tensors, self.table).told()
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

    Raises:
        ConfigError: there is none, or the options ask for another model than it is. ArtifactError: it is damaged.
    """
    config = build(TransferConfig, settings.of("transfer"), "transfer")
    if not config.source:
        return None
    folder = Path(config.source).expanduser()
    found = _artifact(config, folder) if (folder / manifest.NAME).exists() else _published(config)
    asked = settings.of("model").get("name", found.entry.name)
    if asked != found.entry.name and catalog.names("models").get(str(asked)) != found.entry.name:
        raise ConfigError(
            f"The weights of '{config.source}' are those of model '{found.entry.name}', and '{asked}' was asked for: "
            "drop --model, or --from."
        )
    return found


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
    state = dict(found.module.model.state_dict())
    table = tuple(Match(name, (name,)) for name in state)
    texts = found.preprocess.texts
    if not texts:
        return Origin(config, entry, state, table)
    reading = {"text_case": texts[0].case, "text_length": texts[0].length}
    return Origin(config, entry, state, table, texts[0].vocabulary, reading=reading)
