"""What a run holds at its peak on a CPU, tensor by tensor: what a device would say of the same run."""

import json
import os
import socket
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from trainers import ranks, session
from trainers.log import Beat


class Live(TorchDispatchMode):
    """Sums the storages of all tensors that operations give, for as long as each lives."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        self._alive.add(key)
        self.now += size
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self._alive.discard(key)
        self.now -= size


class Watched(Beat):
    """Begins to count the peak anew at the first forward pass of the second step: what was built before is over."""

    live = None

    def at(self, stage, step):
        if stage == "data" and step == 1:
            self.live.peak = self.live.now
        super().at(stage, step)


class Worker:
    """The only rank of runs, one after the other: an actor, for DeepSpeed wants a process of its own."""

    def run(self, recipe, out):
        """(bytes that the run expected, bytes that it held at its peak)."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        os.makedirs(out)
        group = ranks.join(0, 1, 0, "127.0.0.1", port, "cpu", 60)
        self.beat, self.log = Watched(), None
        with Live() as live:
            self.beat.live = live
            session.run(recipe, out, group, self)
        lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
        (expected,) = [line["memory_expected_gib"] for line in lines if "memory_expected_gib" in line]
        return expected * 2**30, live.peak
