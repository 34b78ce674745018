"""Made-up batches that fit a spec: what every entry of the catalog is tried on."""

from __future__ import annotations

import torch

from fathom.core.types import Batch, DataSpec, Field


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
    for field in spec.of("graph"):
        batch |= _graphs(field, rows, draw)
    for field in spec.targets:
        if field.kind == "text":
            batch[field.target_key] = torch.randint(5, field.vocabulary, (rows, *field.shape), generator=draw)
        elif field.kind == "category":
            batch[field.target_key] = torch.randint(len(field.classes), (rows,), generator=draw)
        else:
            mean, std = (field.stats.mean[0], field.stats.std[0]) if field.stats else (0.0, 1.0)
            batch[field.target_key] = torch.randn(rows, generator=draw) * std + mean
    return batch


def _graphs(field: Field, rows: int, draw: torch.Generator) -> Batch:
    """Return graphs of one to N nodes, with edges among the real ones."""
    nodes, edges, width = field.shape
    sizes = torch.randint(1, nodes + 1, (rows,), generator=draw)
    real = torch.arange(nodes) < sizes[:, None]  # [B, N]
    ends = (torch.rand(rows, edges, 2, generator=draw) * sizes[:, None, None]).long()
    ends[torch.arange(edges) >= torch.randint(edges + 1, (rows, 1), generator=draw)] = -1
    features = torch.randn(rows, nodes, width, generator=draw) * real[..., None]
    return {field.key: features, f"{field.key}:edges": ends, f"{field.key}:size": sizes}
