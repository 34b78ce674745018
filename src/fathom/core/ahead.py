"""Reading rows batch by batch, while those of the next batch are already being fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from fathom.core.types import Store


def announced(
    rows: Store, batches: Sequence[Tensor], share: Callable[[Tensor], Tensor] = lambda index: index
) -> Iterator[Tensor]:
    """Hand out batches of row numbers; what holds the rows is told of each one ahead, to fetch them meanwhile.

    Args:
        share: of a batch, the rows that are read here.
    """
    for index in batches[:1]:
        rows.soon(share(index))
    for place, index in enumerate(batches):
        for following in batches[place + 1 : place + 2]:
            rows.soon(share(following))
        yield index
