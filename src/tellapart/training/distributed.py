"""Several processes: which one this is, and the little that they exchange.

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process and every
function here does nothing. Knows nothing of data, models or the loop.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tellapart.devices import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The rank of this process among ``world`` of them, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once all processes have reached this call."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Return every process's ``value``, in order of rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Return the first process's ``value`` in every process."""
        if self.world == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        received: T = values[0]
        return received

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process."""
        if self.world == 1:
            return flag
        tensor = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(tensor)
        return bool(tensor.item())

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give ``tensors`` the first process's values in every process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def add_up(self, tensor: torch.Tensor) -> None:
        """Turn ``tensor``, on the device, into the sum over every process's; on CUDA the call does not wait for it."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def total(self, values: Sequence[Sequence[float]]) -> list[list[float]]:
        """Return the sums over every process's ``values``, in double precision."""
        if self.world == 1:
            return [list(row) for row in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        summed: list[list[float]] = tensor.tolist()
        return summed


@contextlib.contextmanager
def processes(device_name: str) -> Iterator[Processes]:
    """Join the other processes for the duration of the block (gloo on the CPU, NCCL on CUDA)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1 or dist.is_initialized():
        ours = dist.is_initialized()
        yield Processes(dist.get_rank() if ours else 0, dist.get_world_size() if ours else 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Reading and decoding a large source is done by the first process while the others wait.
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    try:
        yield Processes(dist.get_rank(), world, device)
        dist.barrier()  # a process that leaves while another still communicates with it aborts the other
    finally:
        dist.destroy_process_group()
