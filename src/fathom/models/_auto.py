"""Which model suits which data, where the user does not say."""

from __future__ import annotations

from fathom.core.types import DataSpec

# Rows from which a network that is trained from nothing and reads words in order may overtake n-grams: some hundreds of
# thousands are not enough, some millions are (Zhang, Zhao, LeCun, Character-level Convolutional Networks for Text
# Classification, 2015).
ENOUGH_TEXTS = 1_000_000


def choose(spec: DataSpec) -> tuple[str, str]:
    """Return the name of a model for such inputs, and why, as one sentence."""
    tables, images, texts = bool(spec.kinds & {"number", "category"}), len(spec.images), len(spec.texts)
    if tables + bool(images) + bool(texts) > 1:
        kinds = [name for name, there in (("table columns", tables), ("images", images), ("texts", texts)) if there]
        return "mixed", f"the inputs are of several kinds ({_listed(kinds)}), and it has an encoder for each"
    if images > 1:
        return "mixed", f"there are {images} image columns, and it has an encoder for each"
    if images:
        return "resnet", "the input is an image, and residual convolutional networks learn well from any number of them"
    if texts and spec.rows >= ENOUGH_TEXTS:
        return "transformer", f"the input is text, and {spec.rows:,} rows are enough to learn the order of words from"
    if texts:
        return "bag", f"the input is text, and with {spec.rows:,} rows words and phrases say more than their order"
    return "mlp", "the inputs are numbers and categories, for which it is made"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
