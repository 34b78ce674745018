"""Learning on from a trained network: what of it stays, what moves, and how fast.

TransferConfig   what a user may set of it
layers           of a network, from the input on
settle           freezes, frees one after another, and sets each layer's share of the learning rate
hasten           lets new heads learn faster
adapt, merge     low-rank adapters beside the linear layers, and into them again
packed, load     adapters alone, in a small file
"""

from fathom.transfer._adapter import adapt, adapter, load, merge, packed
from fathom.transfer._config import TransferConfig
from fathom.transfer._layers import hasten, layers, settle

__all__ = ["TransferConfig", "adapt", "adapter", "hasten", "layers", "load", "merge", "packed", "settle"]
