"""Weights that others published: found, read without running any code, and put into a model of ours.

find        a folder, a GGUF file, or a name on the Hub -> Published
family      which of our models reads them, and its configuration
put         Published -> a model, and what was said of every tensor
"""

from fathom.pretrained._families import family
from fathom.pretrained._put import Loaded, put
from fathom.pretrained._source import Published, find

__all__ = ["Loaded", "Published", "family", "find", "put"]
