"""Text that a model writes: from prompts as tokens to tokens, and from tokens to pieces of text.

    Settings    how many tokens, chosen how, until what
    write       a model and prompts -> texts, and why each ended
    stream      the same, piece by piece as it comes
    filtered    which tokens may be drawn, and how probable each is

A model is anything that keeps the promises of a `LanguageModel` or a `Translator` (core/roles.py).
"""

from fathom.generate.choose import filtered
from fathom.generate.settings import Settings
from fathom.generate.write import Piece, Script, Text, stream, write

__all__ = ["Piece", "Script", "Settings", "Text", "filtered", "stream", "write"]
