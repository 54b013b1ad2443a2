"""Repeated lines: this project's `dedup.lines` beside a Python dictionary of hashes, lines per second.

    python benchmarks/bench_lines.py --lines 5000000

The corpus has 40 lines a document of about 85 bytes, 30 % of them from a few thousand repeated ones. Two measures: the
whole step through the engine (read Parquet, count through the exchange, take the lines out, write Parquet), and
counting and taking out in memory, kernels and dictionary on one core each, in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))


def make(folder: Path, lines: int, files: int = 8) -> None:
    """Write documents of 40 lines."""
    from pipeline.schema import DOCUMENT

    chance = random.Random(3)
    letters = "etaoin shrdlu cmfwyp vbgkqj xz "
    block = "".join(chance.choices(letters, k=1 << 20))

    def line() -> str:
        start = chance.randrange(len(block) - 120)
        return block[start : start + chance.randrange(50, 120)]

    repeated = [line() for _ in range(5000)]
    (folder / "in").mkdir(parents=True)
    documents = lines // 40
    for number in range(files):
        rows = range(number * documents // files, (number + 1) * documents // files)
        texts = [
            "\n".join(
                chance.choice(repeated) if chance.random() < 0.3 else f"{line()} {chance.getrandbits(40):x}"
                for _ in range(40)
            )
            for _ in rows
        ]
        values = {"doc_id": [i.to_bytes(16, "big") for i in rows], "source": ["bench"] * len(rows), "text": texts}
        columns = [pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DOCUMENT]
        pq.write_table(pa.table(columns, schema=DOCUMENT), folder / "in" / f"{number:02d}.parquet", compression="zstd")


def ours(folder: Path, workers: int, memory: str) -> dict[str, object]:
    """Through the engine; the figures of the stage in run.json."""
    from benchmarks.parquet_source import ParquetSource
    from pipeline.dedup.lines import Lines
    from pipeline.progress import Console
    from pipeline.recipe import Recipe
    from pipeline.run import make_executor, run

    shutil.rmtree(folder / "run", ignore_errors=True)
    steps = (ParquetSource(path=str(folder / "in")), Lines(normalise="raw"))
    recipe = Recipe(steps=steps, workers=workers, memory_per_worker=memory)
    executor = make_executor(recipe, Console())
    stage = run(recipe, str(folder / "run"), executor=executor).stages[1]
    executor.close()
    decided = {k: v for k, v in stage["decided"].items() if k not in ("frequent", "first_rows")}
    return {"seconds": stage["seconds"], "peak_mb": round(stage["peak_memory_bytes"] / 1e6), **decided}


def dictionary(texts: list[str]) -> tuple[int, float, int]:
    """(lines, CPU seconds, lines left) of counting hashes in a dictionary and joining what is left, in memory."""
    started = time.process_time()
    count: dict[int, int] = {}
    total = left = 0
    for text in texts:
        for line in text.split("\n"):
            key = hash(line)
            count[key] = count.get(key, 0) + 1
            total += 1
    for text in texts:
        kept = [line for line in text.split("\n") if count[hash(line)] <= 6]
        left += len(kept)
        "\n".join(kept)
    return total, time.process_time() - started, left


def kernels(array: pa.Array) -> tuple[float, int]:
    """(CPU seconds, lines left) of the same by this project's kernels in memory, on one core."""
    from pipeline.kernels.line_keys import line_keys, open_table, without_lines
    from pipeline.step import string_buffers

    offsets, data = string_buffers(array)
    salt = np.zeros(len(array), np.uint64)
    for _ in range(2):  # the first compiles
        started = time.process_time()
        keys, ends = line_keys(offsets, data, normalise="raw", salt=salt)
        ordered = np.sort(keys)
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        often = ordered[starts[np.diff(np.r_[starts, len(ordered)]) > 6]]
        size = 1 << max(1, 2 * len(often)).bit_length()
        table = open_table(often, often, np.zeros(len(often), np.uint32), size)
        _, _, removed, _ = without_lines(offsets, data, keys, ends, *table, salt, False)
        seconds = time.process_time() - started
    return seconds, len(keys) - int(removed.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="bench_lines_"))
    if not (folder / "in").exists():
        make(folder, args.lines)
    for number in range(args.rounds):
        mine = ours(folder, args.workers, args.memory)
        texts = pq.read_table(folder / "in", columns=["text"]).column("text").combine_chunks()
        texts = texts.chunk(0) if isinstance(texts, pa.ChunkedArray) else texts
        seconds, left = kernels(texts)
        lines, theirs, left_there = dictionary(texts.to_pylist())
        assert left == left_there
        whole = lines / float(str(mine["seconds"])) / 1e6
        print(f"round {number}: engine, Parquet to Parquet {whole:.2f} M lines/s (wall)", json.dumps(mine), flush=True)
        ours_rate, their_rate = lines / seconds / 1e6, lines / theirs / 1e6
        print(f"round {number}: in memory {ours_rate:.2f} M lines/s per core, dictionary {their_rate:.2f}", flush=True)
        print(f"round {number}: ratio {ours_rate / their_rate:.1f}", flush=True)
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
