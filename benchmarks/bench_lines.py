"""Repeated lines: this project's `dedup.lines` beside a Python dictionary of hashes, lines per second.

    python benchmarks/bench_lines.py --lines 5000000 --memory-only --rounds 3

The corpus has 40 lines a document of about 85 bytes, 30 % of them from a few thousand repeated ones. In memory, on one
core each, in CPU seconds: counting alone, and counting and taking out, of the same texts, compared as they are (without
the space around them) and in CCNet's form. Without --memory-only also the whole step through the engine (read
Parquet, count through the exchange, take the lines out, write Parquet) beside a Python process that does the same
with a dictionary, in wall seconds.
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
from collections.abc import Callable
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


def ccnet() -> Callable[[str], str]:
    """A line's normal form in Python: one method and one table."""
    table = dict.fromkeys(range(32)) | dict.fromkeys(range(127, 160)) | {48 + digit: "0" for digit in range(10)}
    for mark in "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►":
        table[ord(mark)] = None
    return lambda line: line.strip().lower().translate(table)


def dictionary(texts: list[str], normalise: str) -> tuple[int, float, float, int]:
    """(lines, CPU seconds of counting, of counting and taking out, lines left): hashes in a dictionary, in memory."""
    form = str.strip if normalise == "raw" else ccnet()
    started = time.process_time()
    count: dict[int, int] = {}
    total = left = 0
    for text in texts:
        for line in text.split("\n"):
            key = hash(form(line))
            count[key] = count.get(key, 0) + 1
            total += 1
    counting = time.process_time() - started
    for text in texts:
        kept = [line for line in text.split("\n") if count[hash(form(line))] <= 6]
        left += len(kept)
        "\n".join(kept)
    return total, counting, time.process_time() - started, left


def kernels(array: pa.Array, normalise: str, batch: int = 1000) -> tuple[float, float, int]:
    """(CPU seconds of counting, of counting and taking out, lines left) by the kernels in memory, on one core.

    From the same texts, batch by batch as the step does, with all it keeps of a line: key, count and first place.
    """
    from pipeline.kernels.counting import add_lines, count_keys
    from pipeline.kernels.line_keys import line_keys
    from pipeline.kernels.line_removal import lines_in_table, open_table, without_lines
    from pipeline.step import string_buffers

    offsets, data = string_buffers(array)
    salt = np.zeros(len(array), np.uint64)
    address = np.arange(len(array), dtype=np.uint64)

    def once(documents: int) -> tuple[float, float, int]:
        starts = range(0, documents, batch)
        started = time.process_time()
        rows, used = np.empty((len(data) // 40, 2), np.uint64), 0  # untouched memory costs nothing
        for start in starts:
            end = min(start + batch, documents)
            keys, _, ends = line_keys(offsets[start : end + 1], data, normalise=normalise, salt=salt[start:end])
            used += add_lines(keys, ends, start, 24, rows[used:])
        distinct, counts, _ = count_keys(rows[:used])
        counting = time.process_time() - started
        often = counts > 6
        size = 1 << max(1, 2 * int(often.sum())).bit_length()
        none = np.zeros(int(often.sum()), np.uint64)
        table = open_table(distinct[often], none, none.astype(np.uint32), size)
        left = 0
        for start in starts:
            end = min(start + batch, documents)
            part = offsets[start : end + 1]
            lines = line_keys(part, data, normalise=normalise, salt=salt[start:end])
            goes = lines_in_table(lines[0], lines[2], *table, address[start:end])
            _, _, removed, _ = without_lines(part, data, *lines, goes)
            left += len(lines[0]) - int(removed.sum())
        return counting, time.process_time() - started, left

    once(len(array))  # compiles, and touches the memory that a worker would have touched before
    return once(len(array))


def dictionary_from_disk(folder: Path) -> float:
    """Wall seconds of the same job as the engine's, one process: read Parquet, count, take out, write Parquet."""
    started = time.perf_counter()
    table = pq.read_table(folder / "in")
    count: dict[int, int] = {}
    texts = table.column("text").to_pylist()
    for text in texts:
        for line in text.split("\n"):
            key = hash(line.strip())
            count[key] = count.get(key, 0) + 1
    left = ["\n".join(line for line in text.split("\n") if count[hash(line.strip())] <= 6) for text in texts]
    column = table.schema.get_field_index("text")
    table = table.set_column(column, table.schema.field(column), pa.array(left, table.schema.field(column).type))
    pq.write_table(table, folder / "dictionary.parquet", compression="zstd")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", default="")
    parser.add_argument("--memory-only", action="store_true", help="not through the engine")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="bench_lines_"))
    if not (folder / "in").exists():
        make(folder, args.lines)
    for number in range(args.rounds):
        texts = pq.read_table(folder / "in", columns=["text"]).column("text").combine_chunks()
        texts = texts.chunk(0) if isinstance(texts, pa.ChunkedArray) else texts
        print(f"round {number}: M lines/s a core, in memory: ours, dictionary, ratio", flush=True)
        for normalise in ("raw", "ccnet"):
            counting, both, left = kernels(texts, normalise)
            as_python = texts.to_pylist()
            if normalise == "raw":
                dictionary(as_python, normalise)
            lines, their_counting, their_both, left_there = dictionary(as_python, normalise)
            assert left == left_there
            for what, mine_s, theirs in (("counting", counting, their_counting), ("and taking out", both, their_both)):
                rates = f"{lines / mine_s / 1e6:.2f} {lines / theirs / 1e6:.2f} {theirs / mine_s:.1f}"
                print(f"  {normalise:5} {what:15} {rates}", flush=True)
        if args.memory_only:
            continue
        mine = ours(folder, args.workers, args.memory)
        wall = float(str(mine["seconds"]))
        theirs = dictionary_from_disk(folder)
        print(f"  Parquet to Parquet, wall, engine with {args.workers} workers beside one process with a dictionary:")
        print(f"  {'end to end':15} {lines / wall / 1e6:.2f} {lines / theirs / 1e6:.2f} {theirs / wall:.1f}")
        print(" ", json.dumps(mine), flush=True)
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
