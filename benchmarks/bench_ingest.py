"""WARC → documents in Parquet, per core, beside datatrove's WarcReader + Trafilatura + ParquetWriter.

    python benchmarks/bench_ingest.py FILE.warc.gz … [--peer PYTHON] [--pages 300]

Both take the first `--pages` responses of each file, in a process of one core each; CPU seconds of the whole process
less those of one that reads a single page. PYTHON is an interpreter with `datatrove[io,processing]` and trafilatura;
without it only our own row is printed. Ours is `crawl.warc` + `extract.main_content`, written as zstd Parquet.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

OURS = """
import sys, pyarrow.parquet as pq
sys.path.insert(0, sys.argv[1])
from pipeline.crawl.warc import Warc
from pipeline.extract.main_content import MainContent
from pipeline.schema import DOCUMENT
from pipeline.step import Documents
import numpy as np
step = MainContent(); step.warm({})
pages = 0
with pq.ParquetWriter(sys.argv[2] + "/documents.parquet", DOCUMENT, compression="zstd") as out:
    for path in sys.argv[3:]:
        source = Warc(path=path)
        for task in source.tasks(None):
            for batch, verdict in source.read(task):
                keep = np.ones(len(batch), bool) if verdict is None else np.equal(verdict.reason, None)
                batch = batch.filter(keep)
                rows, after = step.transform(Documents(batch))
                rows = rows if after is None else rows.filter(np.equal(after.reason, None))
                pages += rows.num_rows
                out.write_batch(rows)
print("documents", pages)
"""

PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers import ParquetWriter
writer = ParquetWriter(sys.argv[2] + "/out", compression="zstd")
LocalPipelineExecutor(
    [WarcReader(sys.argv[2] + "/in", glob_pattern="*.warc.gz"), Trafilatura(timeout=30), writer],
    tasks=1, workers=1, logging_dir=sys.argv[2] + "/logs",
).run()
import glob, pyarrow.parquet as pq
print("documents", sum(pq.ParquetFile(f).metadata.num_rows for f in glob.glob(sys.argv[2] + "/out/*.parquet")))
"""


def first_pages(source: str, target: Path, pages: int) -> int:
    """The first responses of an archive, a gzip member each; how many there were."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    count = 0
    with open(source, "rb") as file, open(target, "wb") as out:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=False):
            whole = io.BytesIO()
            record.write(whole)
            out.write(gzip.compress(whole.getvalue(), 6))
            count += 1
            if count == pages:
                break
    return count


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """CPU seconds of a process with its children, and what it printed last."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--peer", help="an interpreter with datatrove and trafilatura")
    parser.add_argument("--pages", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, dict[str, float]] = {}
        folders = {"all": Path(temporary) / "all", "nothing": Path(temporary) / "nothing"}
        pages = 0
        for name, folder in folders.items():
            (folder / "in").mkdir(parents=True)
            for number, file in enumerate(options.files[: None if name == "all" else 1]):
                count = first_pages(file, folder / f"in/{number:05d}.warc.gz", options.pages if name == "all" else 1)
                pages += count if name == "all" else 0
        for name, folder in folders.items():
            archives = sorted(str(path) for path in (folder / "in").iterdir())
            for system, python, script in (("corpusmill", sys.executable, OURS), ("datatrove", options.peer, PEER)):
                if python:
                    end = archives if system == "corpusmill" else []
                    seconds, said = cpu_seconds([python, "-c", script, str(ROOT), str(folder), *end])
                    print(json.dumps({"system": system, "input": name, "cpu_s": round(seconds, 2), "said": said}))
                    found.setdefault(system, {})[name] = seconds
        rates = {system: (pages - 1) / (times["all"] - times["nothing"]) for system, times in found.items()}
        for system, rate in rates.items():
            print(
                f"{system:12} {rate:8.0f} pages per CPU second, start-up of {found[system]['nothing']:.1f} s left out"
            )
        if "datatrove" in rates:
            print(f"ratio {rates['corpusmill'] / rates['datatrove']:.1f}")


if __name__ == "__main__":
    main()
