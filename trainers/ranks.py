"""The group of ranks that trains together: who I am, and sums over all of us."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_groups: dict[tuple[int, int], Any] = {}


@dataclass(frozen=True)
class Ranks:
    """One rank's view of the group. A group of one needs no process group for its sums."""

    rank: int
    world: int
    device: torch.device
    sequence: int = 1
    """How many ranks share the tokens of every row: neighbours, with one share of the rows (see trainers/sequence)."""

    @property
    def data_rank(self) -> int:
        """Whose rows these are, among `data_world`."""
        return self.rank // self.sequence

    @property
    def data_world(self) -> int:
        """How many ranks, or groups of ranks that share their rows, there are."""
        return self.world // self.sequence

    @property
    def place(self) -> int:
        """Which stretch of its rows this rank has."""
        return self.rank % self.sequence

    def sequence_group(self) -> Any:
        """The process group of the ranks that share this one's rows; None when it has them alone. A collective."""
        if self.sequence == 1:
            return None
        key = (self.world, self.sequence)
        if key not in _groups:
            first = range(0, self.world, self.sequence)
            made = [dist.new_group(list(range(one, one + self.sequence))) for one in first]
            _groups[key] = made[self.data_rank]
        return _groups[key]

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in float64; the same result on every rank. A collective."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()


def join(rank: int, world: int, local_rank: int, master: str, port: int, device: str, timeout: float) -> Ranks:
    """Enter the process group of this run: NCCL on CUDA, gloo on CPU. Every collective fails after `timeout` seconds.

    Must come before DeepSpeed is imported: it reads these variables. A process that is in the group already (its
    second run) stays in it.
    """
    if dist.is_initialized():
        return Ranks(rank, world, torch.device(device, local_rank) if device == "cuda" else torch.device("cpu"))
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local_rank), MASTER_ADDR=master, MASTER_PORT=str(port)
    )
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        where = torch.device("cuda", local_rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        if master == "127.0.0.1":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        where = torch.device("cpu")
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"tcp://{master}:{port}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
        device_id=where if device == "cuda" else None,
    )
    return Ranks(rank, world, where)
