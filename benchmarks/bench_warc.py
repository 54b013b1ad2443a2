"""Reading WARC files beside fastwarc's own loop, in one interleaved run.

    python benchmarks/bench_warc.py FILE.warc.gz … [--rounds 5]

Five ways over the same files, CPU seconds of one core, the least of the rounds:

    fastwarc     for record in ArchiveIterator(file): record.reader.read()
    records      pipeline.crawl.archive.records: the same loop, with damage salvaged and sizes bounded
    to Arrow     fastwarc's loop, its records gathered into batches of 8 MiB: the least that rows in Arrow cost
    rows         crawl.warc: RECORD rows in Arrow, HTTP parsed, encodings undone, identities made
    plain        all of them again on an uncompressed copy, where inflating does not hide the rest

Files of your own, or those that benchmarks/debian_docs.py makes.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def by_fastwarc(paths: list[str]) -> int:
    from fastwarc.warc import ArchiveIterator

    size = 0
    for path in paths:
        with open(path, "rb") as file:
            for record in ArchiveIterator(file):
                size += len(record.reader.read())
    return size


def by_fastwarc_to_arrow(paths: list[str]) -> int:
    import pyarrow as pa
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    total = 0
    for path in paths:
        with open(path, "rb") as file:
            urls, dates, types, payloads, size = [], [], [], [], 0
            for record in ArchiveIterator(file, record_types=WarcRecordType.response):
                payloads.append(record.reader.read())
                urls.append(record.headers.get("WARC-Target-URI"))
                dates.append(record.record_date)
                types.append(record.http_headers.get("Content-Type") if record.http_headers else None)
                size += len(payloads[-1])
                if size > 8 << 20:
                    total += _batch(pa, urls, dates, types, payloads)
                    urls, dates, types, payloads, size = [], [], [], [], 0
            total += _batch(pa, urls, dates, types, payloads)
    return total


def _batch(pa: Any, urls: list[Any], dates: list[Any], types: list[Any], payloads: list[bytes]) -> int:
    columns = [pa.array(urls, pa.string()), pa.array(dates, pa.timestamp("s", tz="UTC"))]
    columns += [pa.array(types, pa.string()), pa.array(payloads, pa.large_binary())]
    return int(pa.RecordBatch.from_arrays(columns, ["url", "date", "content_type", "payload"]).nbytes)


def by_records(paths: list[str]) -> int:
    from cluster import storage
    from pipeline.crawl.archive import records

    size = 0
    for path in paths:
        with storage.open_read(path) as file:
            for record in records(file, max_bytes=(16 << 20) + 1, skip=()):
                size += len(record.block)
    return size


def by_rows(paths: list[str]) -> int:
    from pipeline.crawl.warc import Warc

    size = 0
    source = Warc(path=tuple(paths))
    for task in source.tasks(None):  # type: ignore[arg-type]
        for batch, _ in source.read(task):
            size += batch.nbytes
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = []
        for number, name in enumerate(options.files):
            plain.append(f"{folder}/{number:05d}.warc")
            data = Path(name).read_bytes()
            Path(plain[-1]).write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        size = sum(Path(name).stat().st_size for name in plain) / 1e6
        ways: list[tuple[str, Callable[[list[str]], int], list[str]]] = [
            ("fastwarc", by_fastwarc, options.files),
            ("records", by_records, options.files),
            ("to Arrow", by_fastwarc_to_arrow, options.files),
            ("rows", by_rows, options.files),
            ("fastwarc, plain", by_fastwarc, plain),
            ("records, plain", by_records, plain),
            ("to Arrow, plain", by_fastwarc_to_arrow, plain),
            ("rows, plain", by_rows, plain),
        ]
        least: dict[str, float] = {}
        for turn in range(options.rounds + 1):
            for name, way, paths in ways:
                start = time.process_time()
                way(paths)
                if turn:  # the first warms up imports and the page cache
                    least[name] = min(least.get(name, 1e9), time.process_time() - start)
        print(
            f"{len(options.files)} files, {size:.0f} MB uncompressed, {options.rounds} rounds, CPU seconds of one core"
        )
        for name, seconds in least.items():
            base = least["fastwarc, plain" if "plain" in name else "fastwarc"]
            print(f"{name:18} {seconds:7.3f} s {size / seconds:7.0f} MB/s   {seconds / base:.2f} × fastwarc")


if __name__ == "__main__":
    main()
