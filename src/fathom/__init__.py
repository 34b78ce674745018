"""Fathom: from raw data to a deep learning model that you understand, trust and ship.

    import fathom
    model = fathom.fit("diamonds.csv", target="price")
    model.predict(rows)
    model.save("out/")

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fathom.api.fit import fit as fit
    from fathom.api.generate import published as published
    from fathom.api.listing import list_models as list_models
    from fathom.api.listing import list_objectives as list_objectives
    from fathom.api.listing import list_samples as list_samples
    from fathom.api.look import inspect as inspect
    from fathom.api.model import Model as Model
    from fathom.api.model import load as load
    from fathom.core.errors import FathomError as FathomError

__version__ = "0.1.0"

_HOMES = {
    "fit": "fathom.api.fit",
    "load": "fathom.api.model",
    "published": "fathom.api.generate",
    "Model": "fathom.api.model",
    "inspect": "fathom.api.look",
    "list_models": "fathom.api.listing",
    "list_objectives": "fathom.api.listing",
    "list_samples": "fathom.api.listing",
    "FathomError": "fathom.core.errors",
}
__all__ = [
    "FathomError",
    "Model",
    "fit",
    "inspect",
    "list_models",
    "list_objectives",
    "list_samples",
    "load",
    "published",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fathom' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
