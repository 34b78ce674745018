"""A plain PyTorch loop as tutorials have it, and one tuned by hand with all that is known to help on this machine."""

from __future__ import annotations

import time

import torch
from clock import Clock
from torch.utils.data import DataLoader, TensorDataset
from workloads import Workload, loss_of, made, tensors


def run(work: Workload, clock: Clock) -> None:
    network = made(work)
    loader = DataLoader(TensorDataset(*tensors(work)), work.batch, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_of(network, x, y)
            loss.backward()
            optimizer.step()
            clock.learned(loss.item())
            if clock.tick(len(x)):
                return


def run_tuned(work: Workload, clock: Clock) -> None:
    """In memory, fused AdamW, channels last, bf16 where the processor computes in it, the better number of threads."""
    network, (x, y) = made(work), tensors(work)
    if work.images:
        network, x = network.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    able = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

    def step(index: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=able):
            loss = loss_of(network, x.index_select(0, index), y.index_select(0, index))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    torch.set_num_threads(_best_threads(step, work))
    while True:
        for index in torch.randperm(len(x)).split(work.batch):
            clock.learned(step(index).item())
            if clock.tick(len(index)):
                return


def _best_threads(step, work: Workload) -> int:  # type: ignore[no-untyped-def]
    most, times = torch.get_num_threads(), {}
    for threads in {1, most}:
        torch.set_num_threads(threads)
        step(torch.arange(work.batch))
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 1.0:
            step(torch.arange(work.batch))
            count += 1
        times[threads] = (time.perf_counter() - began) / count
    return min(times, key=lambda threads: times[threads])
