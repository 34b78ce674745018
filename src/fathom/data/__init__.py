"""From a source to typed columns of tensors.

    infer            what each column is, and why
    Preprocess       columns -> tensors, learned from the training rows
    TensorStore      the tensors, handed out a batch at a time
"""

from fathom.data._assemble import Prepared
from fathom.data._columns import Column, infer
from fathom.data._prepare import PrepareConfig
from fathom.data._preprocess import Preprocess
from fathom.data._store import TensorStore
from fathom.data._table import SetAside, Table

__all__ = ["Column", "PrepareConfig", "Prepared", "Preprocess", "SetAside", "Table", "TensorStore", "infer"]
