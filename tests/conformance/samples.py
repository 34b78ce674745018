"""Made-up batches that fit a spec: what every entry of the catalog is tried on."""

from __future__ import annotations

import torch

from fathom.core.types import Batch, DataSpec


def batch_of(spec: DataSpec, rows: int, seed: int = 0) -> Batch:
    """Return `rows` random samples that look as `spec` says; the same seed gives the same."""
    draw = torch.Generator().manual_seed(seed)
    batch: Batch = {}
    if spec.numbers:
        batch["number"] = torch.randn(rows, len(spec.numbers), generator=draw)  # [B, F]
    if spec.categories:
        sizes = [len(field.classes) for field in spec.categories]
        columns = [torch.randint(size, (rows,), generator=draw) for size in sizes]
        batch["category"] = torch.stack(columns, 1)  # [B, C]
    for field in spec.images:
        batch[field.key] = torch.randint(256, (rows, *field.shape), generator=draw, dtype=torch.uint8)  # [B, C, H, W]
    for field in spec.texts:
        tokens = torch.randint(5, field.vocabulary, (rows, *field.shape), generator=draw, dtype=torch.int32)
        lengths = torch.randint(1, field.shape[0] + 1, (rows, 1), generator=draw)
        batch[field.key] = tokens * (torch.arange(field.shape[0]) < lengths)  # [B, T], padded with zeros
    for field in spec.targets:
        if field.kind == "category":
            batch[field.target_key] = torch.randint(len(field.classes), (rows,), generator=draw)
        else:
            mean, std = (field.stats.mean[0], field.stats.std[0]) if field.stats else (0.0, 1.0)
            batch[field.target_key] = torch.randn(rows, generator=draw) * std + mean
    return batch
