"""How fast this machine multiplies matrices, and how many operations a sample of each workload takes."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from workloads import EDGES, NODES, WIDTH, Workload, loss_of, made, tensors

SIDE = 1536


def matmul_peak(dtype: torch.dtype, seconds: float = 1.5) -> float:
    """Return billions of operations a second of the best of many products of square matrices."""
    a, b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best / 1e9


def flops(work: Workload) -> float:
    """Return the operations of matrix products and convolutions, forward and backward, of one sample."""
    if work.name == "lstm":  # its kernel is one operation to the counter: four gates of both layers, three passes
        return 3 * 2 * 100 * 4 * 128 * ((8 + 128) + (128 + 128))
    network, (x, y) = made(work), tensors(work)
    x, y = x[: work.batch], y[: work.batch]
    with FlopCounterMode(display=False) as counter:
        loss_of(network, x, y).backward()
    sums = 3 * 2 * 2 * (NODES + EDGES) * WIDTH if work.name == "gcn" else 0  # over neighbours, in two layers
    return (counter.get_total_flops() + sums) / work.batch
