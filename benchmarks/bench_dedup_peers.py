"""The peers of bench_dedup.py, each in a Python that has it: python bench_dedup_peers.py NAME FOLDER DOCUMENTS."""

from __future__ import annotations

import glob
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = re.compile(r"\w+")


def shingles(text: str) -> list[str]:
    words = WORDS.findall(text.lower())
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def rensa(folder: str, documents: int, chunk: int = 200_000) -> int:
    """Signatures and LSH flags in Rust, one process; shingles in Python, as its README does it.

    Beyond 200,000 documents in chunks against one growing index, because their shingles together need 20 bytes a byte.
    """
    import numpy as np
    import rensa

    table = pq.read_table(folder + "/in").slice(0, documents)
    lsh = rensa.RMinHashLSH(threshold=0.8, num_perm=112, num_bands=14)
    flags = np.zeros(documents, bool)
    for start in range(0, documents, chunk):
        sets = [shingles(text) for text in table.column("text").slice(start, chunk).to_pylist()]
        matrix = rensa.RMinHash.digest_matrix_from_token_sets(sets, 112, 1)
        if documents <= chunk:
            flags[:] = np.asarray(lsh.query_duplicate_flags_matrix_one_shot(matrix), bool)
        else:
            flags[start : start + chunk] = lsh.insert_matrix_and_query_duplicate_flags(matrix, start)
    pq.write_table(table.filter(pa.array(~flags)), folder + "/rensa.parquet", compression="zstd")
    return int(flags.sum())


def datasketch(folder: str, documents: int) -> int:
    """MinHashLSH 14 x 8, one process: a document goes when an earlier one shares a band."""
    import datasketch

    table = pq.read_table(folder + "/in").slice(0, documents)
    sets: Iterator[list[bytes]] = ([s.encode() for s in shingles(t)] for t in table.column("text").to_pylist())
    lsh = datasketch.MinHashLSH(num_perm=112, params=(14, 8))
    keep = []
    for i, sketch in enumerate(datasketch.MinHash.generator(sets, num_perm=112)):
        keep.append(not lsh.query(sketch))
        if keep[-1]:
            lsh.insert(i, sketch)
    pq.write_table(table.filter(pa.array(keep)), folder + "/datasketch.parquet", compression="zstd")
    return keep.count(False)


def datatrove(folder: str, documents: int) -> int:
    """Its four stages on two local workers, with its defaults but for 5-grams and 14 x 8."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    global started
    here = folder + "/datatrove"
    shutil.rmtree(here, ignore_errors=True)
    os.makedirs(here + "/in")
    table = pq.read_table(folder + "/in", columns=["text"]).slice(0, documents)
    table = table.append_column("id", pa.array([str(i) for i in range(documents)]))
    for k in range(2):
        pq.write_table(table.slice(k * documents // 2, documents // 2), f"{here}/in/{k}.parquet")
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    read = ParquetReader(here + "/in")
    stages = [
        (2, [read, dedup.MinhashDedupSignature(output_folder=here + "/sig", config=config)]),
        (14, [dedup.MinhashDedupBuckets(input_folder=here + "/sig", output_folder=here + "/buckets", config=config)]),
        (1, [dedup.MinhashDedupCluster(input_folder=here + "/buckets", output_folder=here + "/ids", config=config)]),
        (2, [read, dedup.MinhashDedupFilter(input_folder=here + "/ids"), ParquetWriter(here + "/out")]),
    ]
    started = time.perf_counter()
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=f"{here}/log{number}").run()
    return documents - sum(pq.read_metadata(p).num_rows for p in glob.glob(here + "/out/**/*.parquet", recursive=True))


PEERS: dict[str, Callable[[str, int], int]] = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove}
started = 0.0

if __name__ == "__main__":
    name, folder, documents = sys.argv[1], sys.argv[2], int(sys.argv[3])
    started = time.perf_counter()
    removed = PEERS[name](folder, documents)
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1000
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 1), "removed": removed, "peak_mb": peak}
    print("RESULT", json.dumps(result))
