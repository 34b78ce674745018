"""One objective that asks of a model everything that it says it can do: what every entry of the catalog is tried with.

Nothing in it is random, and each sample's loss depends on that sample alone, so that predictions can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.objective import Objective
from fathom.core.roles import Adversarial, Autoencoder, Denoiser, LanguageModel, Translator
from fathom.core.types import PAD, Batch, DataSpec, Loss
from fathom.objectives import supervised


class Everything(Objective):
    """The sum of what a model's roles cost: each part's loss, and `predict` with what each part gives out."""

    def __init__(self, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        fits = supervised.accepts(spec) is None
        self.supervised = supervised.build(supervised.Config(), spec, model) if fits else None

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        parts = self.supervised.losses(batch).parts if self.supervised else {}
        total = {"supervised": self.supervised.losses(batch).total} if self.supervised else dict(parts)
        for name, (given, wanted) in self.roles(batch).items():
            total[name] = _cost(given, wanted)
        return Loss(torch.stack(list(total.values())).sum(), weight=float(len(next(iter(batch.values())))))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        found = self.supervised.predict(batch) if self.supervised else {}
        return found | {name: given for name, (given, _) in self.roles(batch).items()}

    def roles(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (what the model gives, what is wanted of it) of each role that it has."""
        model, found = self.model, {}
        if isinstance(model, LanguageModel):
            tokens = batch[self.spec.texts[0].key].long()
            hidden = model(batch).tokens
            found["next"] = (model.logits(hidden[:, :-1]), tokens[:, 1:])
        if isinstance(model, Translator):
            tokens = batch[self.spec.targets[0].target_key].long()
            found["written"] = (model.logits(model.decode(tokens[:, :-1], model.encode(batch))), tokens[:, 1:])
        if isinstance(model, Denoiser):
            image = self._image(batch)
            time = torch.full((len(image),), 500.0)
            label = self._label(batch) if model.classes else None
            found["denoised"] = (model.denoise(image / 2, time, label), image)
        if isinstance(model, Autoencoder):
            code = model.encode(batch)
            mean = code[:, : model.code] if model.variational else code
            wanted = model.wanted(batch)
            found |= {f"decoded {key}": (given, wanted[key]) for key, given in model.decode(mean).items()}
            if model.variational:
                spread = code[:, model.code :]
                found["spread"] = (spread, torch.zeros_like(spread))
        if isinstance(model, Adversarial):
            image = self._image(batch).clamp(-1, 1)
            label = self._label(batch) if model.classes else None
            noise = image.flatten(1).repeat(1, -(-model.noise // image[0].numel()))[:, : model.noise]
            found["made"] = (model.generate(noise, label), image)
            found["real"] = (model.criticise(image, label), torch.ones(len(image)))
            found["fake"] = (model.criticise(-image, label), torch.zeros(len(image)))
        return found

    def _image(self, batch: Batch) -> Tensor:
        return batch[self.spec.images[0].key].float() / 127.5 - 1

    def _label(self, batch: Batch) -> Tensor:
        return batch[self.spec.targets[0].target_key]


def _cost(given: Tensor, wanted: Tensor) -> Tensor:
    if wanted.dtype.is_floating_point:
        return F.mse_loss(given, wanted)
    return F.cross_entropy(given.flatten(0, -2), wanted.flatten().long(), ignore_index=PAD)
