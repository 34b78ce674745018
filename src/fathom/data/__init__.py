"""From a source to typed columns of tensors.

read               a path, frame or sample -> a table, with what was set aside
infer              what each column is, and why
split, overlaps    which rows train, choose and test; rows on both sides
Preprocess         columns -> tensors, learned from the training rows
Vocabulary         the tokens by which a published network reads texts
TensorStore        the tensors, handed out a batch at a time
Picked             some of them, one or several times each
"""

from fathom.data._assemble import Prepared
from fathom.data._columns import Column, infer
from fathom.data._overlaps import overlaps
from fathom.data._prepare import PrepareConfig
from fathom.data._preprocess import Preprocess
from fathom.data._published import Vocabulary, vocabulary
from fathom.data._source import read
from fathom.data._split import Split, SplitConfig, split
from fathom.data._store import Picked, TensorStore
from fathom.data._table import SetAside, Table

__all__ = [
    "Column",
    "Picked",
    "PrepareConfig",
    "Prepared",
    "Preprocess",
    "SetAside",
    "Split",
    "SplitConfig",
    "Table",
    "TensorStore",
    "Vocabulary",
    "infer",
    "overlaps",
    "read",
    "split",
    "vocabulary",
]
