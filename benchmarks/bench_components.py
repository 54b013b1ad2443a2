"""Near-duplicate clusters of synthetic signatures: the edges and components phases alone, with their peak memory.

    python benchmarks/bench_components.py --documents 10000000 --memory 1GB
    python benchmarks/bench_components.py --graphs --documents 1000000 --memory 16MB

Each document has 14 random 64-bit band keys; 40 % of them share some keys with an earlier document. The phases run in
one process under the given limit; with --rounds the components are found by rounds over files, as on many workers.
With --graphs chains and stars of that many nodes are joined by rounds instead, and compared with scipy's components.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline import exchange
from pipeline.dedup import minhash
from pipeline.recipe import parse_bytes
from pipeline.step import Work


class Alone:
    """A stage of one process: phases one task after the other."""

    def __init__(self, folder: str, memory_bytes: int, step: minhash.Minhash):
        self.folder, self.memory_bytes, self.step = folder, memory_bytes, step
        self.partitions: list[dict[str, Any]] = [{"index": 0}]
        self.workers = 1
        self.phases: list[str] = []

    def fix(self, _: str, value: Any) -> Any:
        return value

    def map(self, phase: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.phases.append(phase)
        started = time.process_time()
        method = getattr(self.step, phase.partition("@")[0])
        out = [
            method(task, Work(f"{self.folder}/{phase}", str(i), self.memory_bytes, 0, 1000))
            for i, task in enumerate(tasks)
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print(
            f"{phase:14} {len(tasks):4} tasks {time.process_time() - started:7.1f} CPU s, peak {peak:,} MB", flush=True
        )
        return out


def graphs(nodes: int, memory: int) -> None:
    """A chain in order, one in random order and a star: by rounds over files, and by scipy."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    chance = np.random.default_rng(0)
    order = np.arange(nodes, dtype=np.uint64)
    mixed = chance.permutation(order)
    edges = {
        "chain": (order[1:], order[:-1]),
        "mixed chain": (mixed[1:], mixed[:-1]),
        "star": (mixed[1:], np.full(nodes - 1, mixed[0])),
    }
    for name, (left, right) in edges.items():
        folder = tempfile.mkdtemp(prefix="bench_components_")
        stage = Alone(folder, memory, minhash.Minhash())
        started = time.process_time()
        with exchange.Spread(f"{folder}/edges.arrow", minhash.connect.EDGES, 1, memory_bytes=memory) as spread:
            table = pa.table([pa.array(left), pa.array(right)], schema=minhash.connect.EDGES)
            spread.add(table, np.zeros(len(left), np.int64))
        labels = minhash.connect.components(stage, [spread.index])  # type: ignore[arg-type]
        seconds = time.process_time() - started
        rounds = sum(phase.startswith("large_star") for phase in stage.phases)
        table = exchange.collect(labels, 0, minhash.connect.LABELS).sort_by("address")
        ends = left.astype(np.int64), right.astype(np.int64)
        _, label = connected_components(
            coo_array((np.ones(len(left), bool), ends), shape=(nodes, nodes)), directed=False
        )
        least = np.full(label.max() + 1, nodes)
        np.minimum.at(least, label, np.arange(nodes))
        same = np.array_equal(table.column("address").to_numpy(), order)
        same &= np.array_equal(table.column("root").to_numpy().astype(np.int64), least[label])
        print(f"{name}: {nodes:,} nodes, {rounds} rounds, {seconds:.1f} CPU s, as scipy's: {same}", flush=True)
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--rounds", action="store_true", help="find the components by rounds, whatever fits")
    parser.add_argument("--graphs", action="store_true", help="chains and stars beside scipy")
    args = parser.parse_args()
    memory = parse_bytes(args.memory)
    if args.graphs:
        graphs(args.documents, memory)
        return
    folder = tempfile.mkdtemp(prefix="bench_components_")
    step = minhash.Minhash()
    stage = Alone(folder, memory, step)
    buckets = exchange.buckets_for(args.documents * 14 * 16, memory, at_least=2)
    chance = np.random.default_rng(0)
    bands = []
    for part, first in enumerate(range(0, args.documents, 500_000)):
        count = min(500_000, args.documents - first)
        keys = chance.integers(1, 1 << 63, (count, 14), dtype=np.uint64) * np.uint64(2)
        copies = chance.permutation(count)[: int(count * 0.4)]
        for band in range(14):
            some = copies[chance.random(len(copies)) < 0.3]
            keys[some, band] = keys[some // 2, band]
        address = np.repeat(np.arange(first, first + count, dtype=np.uint64), 14)
        with exchange.Spread(
            f"{folder}/bands-{part}.arrow", minhash.BANDS, buckets, sort_by=["key"], memory_bytes=memory
        ) as spread:
            rows = pa.table([pa.array(keys.ravel()), pa.array(address)], schema=minhash.BANDS)
            spread.add(rows, exchange.bucket_of(keys.ravel(), buckets))
        bands.append(spread.index)
    del keys, address, rows
    tasks = [{"bucket": b, "bands": exchange.only(bands, b), "earlier": []} for b in exchange.filled(bands)]
    edges = [result["edges"] for result in stage.map("edges", tasks)]
    if args.rounds:
        stage.memory_bytes = 80 * sum(index["rows"] for index in edges) // 4
    labels = minhash.connect.components(stage, edges)  # type: ignore[arg-type]
    clustered = sum(index["rows"] for index in labels)
    joined = sum(index["rows"] for index in edges)
    print(f"{joined:,} edges, {clustered:,} of {args.documents:,} documents clustered")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
