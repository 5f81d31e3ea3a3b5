"""The processes that train together: one a device, started by torchrun, or just this one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

_PATIENCE = timedelta(hours=1)
"""How long processes wait for one that reads a large model from slow storage."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Who trains: this process's number and how many there are, of all and of those on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Do what needs much of a machine's memory in one of its processes after the other.

        One that fails lets the others have their turns, so that each can say what is wrong.
        """
        turns = max(int(told) for told in self.gather(str(self.local_count)))
        for _ in range(self.local_rank):
            self.wait()
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
        for _ in range(turns - self.local_rank):
            self.wait()
        if failure is not None:
            raise failure

    def gather(self, words: str) -> list[str]:
        """What every process says, known to all."""
        if self.count == 1:
            return [words]
        said = [""] * self.count
        distributed.all_gather_object(said, words)
        return said

    def agree(self, *values: float) -> Sequence[float]:
        """The first process's values, known to all: clocks differ."""
        if self.count == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        told = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.broadcast(told, src=0)
        return tuple(told.tolist())


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join torchrun's processes where there are any, and say which device is this one's.

    Args:
        device: "cuda" or "cpu".
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    index, beside = (int(os.environ.get(f"LOCAL_{name}", "0")) for name in ("RANK", "WORLD_SIZE"))
    place = torch.device(device, index) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(), place
        return
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    processes = Processes(rank, count, index, beside or count)
    try:
        yield processes, place
        processes.wait()
    finally:
        # gloo's threads free past tensors under Python's lock and abort a process that ends meanwhile. Once
        # nothing holds the group, not even a model, its end waits for them.
        gc.collect()
        distributed.destroy_process_group()
