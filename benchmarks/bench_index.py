"""Five snapshots one after the other against a growing index: CPU seconds of each.

python benchmarks/bench_index.py --folder FOLDER --step lines    # a folder that bench_dedup.py --folder made

Steps: minhash, exact, url (the documents get URLs, a tenth of them twice), lines (`keep: limit`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    from benchmarks.parquet_source import ParquetSource
    from pipeline.dedup.exact import Exact
    from pipeline.dedup.lines import Lines
    from pipeline.dedup.minhash import Minhash
    from pipeline.dedup.url import Url
    from pipeline.progress import Console
    from pipeline.recipe import Recipe
    from pipeline.run import run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--snapshots", type=int, default=5)
    steps: dict[str, tuple[Any, dict[str, Any]]] = {
        "minhash": (Minhash, {}),
        "exact": (Exact, {}),
        "url": (Url, {}),
        "lines": (Lines, {"keep": "limit"}),
    }
    parser.add_argument("--step", choices=list(steps), default="minhash")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench_index_"))
    table = pq.read_table(Path(args.folder) / "in")
    rows = len(table) // args.snapshots
    urls = pa.array([f"http://example.org/{i % (len(table) * 9 // 10)}" for i in range(len(table))])
    table = table.set_column(table.schema.get_field_index("url"), table.schema.field("url"), urls)
    kind, settings = steps[args.step]
    warm = kind(index=str(work / "warm"), snapshot="warm", **settings)
    (work / "warmup").mkdir()
    pq.write_table(table.slice(0, 2000), work / "warmup" / "0.parquet")
    made = Recipe(steps=(ParquetSource(path=str(work / "warmup")), warm), workers=0)
    run(made, str(work / "warmout"), console=Console(quiet=True))
    first = 0.0
    for number in range(args.snapshots):
        (work / f"in{number}").mkdir()
        pq.write_table(table.slice(number * rows, rows), work / f"in{number}" / "0.parquet", row_group_size=20_000)
        step = kind(index=str(work / "index"), snapshot=f"s{number}", **settings)
        made = Recipe(steps=(ParquetSource(path=str(work / f"in{number}")), step), workers=0)
        started = time.process_time()
        report = run(made, str(work / f"out{number}"), console=Console(quiet=True))
        seconds = time.process_time() - started
        first = first or seconds
        removed = sum(report.stages[1]["removed"].values())
        ratio = f"{seconds:.2f} CPU s, {seconds / first:.2f} of the first"
        print(f"snapshot {number}: {rows:,} documents, {removed:,} removed, {ratio}", flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
