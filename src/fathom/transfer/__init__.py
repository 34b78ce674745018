"""Learning on from a trained network: what of it stays, what moves, and how fast.

TransferConfig   what a user may set of it
settle           freezes, frees one after another, and sets each layer's share of the learning rate
adapt, merge     low-rank adapters beside the linear layers, and into them again
packed, load     adapters alone, in a small file
"""

from fathom.transfer._adapter import adapt, adapter, load, merge, packed
from fathom.transfer._config import TransferConfig
from fathom.transfer._layers import layers, settle

__all__ = ["TransferConfig", "adapt", "adapter", "layers", "load", "merge", "packed", "settle"]
