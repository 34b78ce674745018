"""Which model of ours reads which published weights: each family's file says so itself."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import cache

from fathom.core import catalog
from fathom.core.errors import ConfigError, FathomError, did_you_mean
from fathom.pretrained._source import Published


def family(published: Published) -> catalog.Entry:
    """Return the model for these weights, as the catalog has it, with the published configuration.

    Raises:
        ConfigError: no model of ours reads this kind, or not with these settings.
    """
    kind = str(published.settings.get("model_type", ""))
    known = readers()
    if kind not in known:
        name = published.origin.removeprefix("hf:")
        raise ConfigError(
            f"The weights of '{published.origin}' are of type '{kind}', which no model here reads."
            f"{did_you_mean(kind, known)} With transformers installed, --model hf:{name} takes them as they are."
        )
    entry = catalog.find("models", known[kind])
    try:
        return replace(entry, config=entry.module.published(published.settings))
    except FathomError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The settings of '{published.origin}' cannot be read: {type(error).__name__} {error}."
        ) from None


@cache
def readers() -> dict[str, str]:
    """Return, for each `model_type` of transformers that is read here, the file of the family."""
    found: dict[str, str] = {}
    for file in catalog.files("models"):
        tree = ast.parse((catalog.PACKAGE / "models" / f"{file}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PUBLISHED":
                found |= dict.fromkeys(ast.literal_eval(node.value), file)
    return found
