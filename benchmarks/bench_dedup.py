"""Near-duplicate removal end to end: this engine beside rensa, datasketch and datatrove, on the same documents.

    python benchmarks/bench_dedup.py --documents 200000 --peers /path/to/python-with-rensa-and-datatrove

The documents are passages of about 1.4 KB of the text files of this Python installation, 47 % of them copies in
which words were replaced or an end cut off, so that the exact Jaccard similarity of every planted pair is known. Every
contender reads the same Parquet files and writes the documents that stay as Parquet; starting Ray, its workers and
Python is not counted, reading and writing are. Peers that are too slow for all documents get the first part of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

WORDS = re.compile(r"\w+")


def passages(count: int) -> list[str]:
    """Distinct pieces of about 1,400 characters from the text files below this Python's library folders."""
    out: list[str] = []
    seen: set[int] = set()
    roots = dict.fromkeys([sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")])
    for size in (1400, 1100, 1700):  # again with other cuts when the text does not suffice
        for root in roots:
            for file in sorted(Path(root).rglob("*")):
                if file.suffix not in (".py", ".rst", ".md", ".txt", ".pyi", ".html", ".h") or not file.is_file():
                    continue
                text = file.read_text("utf-8", "replace")
                for start in range(0, len(text) - size, size):
                    piece = text[start : start + size]
                    if hash(piece) not in seen:
                        seen.add(hash(piece))
                        out.append(piece)
                        if len(out) == count:
                            return out
    raise SystemExit(f"only {len(out)} passages of text found, {count} needed")


def perturbed(chance: random.Random, text: str) -> str:
    """A copy with some words replaced, or with its end cut off."""
    words = text.split(" ")
    share = chance.choice([0.002, 0.005, 0.01, 0.02, 0.04])
    for place in range(len(words)):
        if chance.random() < share:
            words[place] = f"changed{chance.randrange(1000)}"
    if chance.random() < 0.3:
        words = words[: int(len(words) * chance.uniform(0.7, 0.99))]
    return " ".join(words)


def make(folder: Path, count: int, files: int = 8) -> None:
    """Write `count` documents as Parquet into folder/in, and the planted pairs as folder/pairs.npy."""
    from pipeline.schema import DOCUMENT

    chance = random.Random(1)
    copies = int(count * 0.47)
    texts = passages(count - copies)
    chance.shuffle(texts)
    originals = [chance.randrange(len(texts)) for _ in range(copies)]
    texts += [perturbed(chance, texts[i]) for i in originals]
    order = list(range(count))
    chance.shuffle(order)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    pairs = np.array([[place[o], place[count - copies + i]] for i, o in enumerate(originals)])
    np.save(folder / "pairs.npy", pairs)
    (folder / "in").mkdir()
    for number in range(files):
        rows = range(number * count // files, (number + 1) * count // files)
        values: dict[str, list[Any]] = {
            "doc_id": [i.to_bytes(16, "big") for i in rows],
            "source": ["bench"] * len(rows),
            "text": [texts[order[i]] for i in rows],
        }
        columns = [pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DOCUMENT]
        table = pa.table(columns, schema=DOCUMENT)
        pq.write_table(table, folder / "in" / f"{number:02d}.parquet", compression="zstd", row_group_size=20_000)


def shingles(text: str) -> set[str]:
    """Word 5-grams, as this project counts words."""
    words = WORDS.findall(text.lower())
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(x: str, y: str) -> float:
    a, b = shingles(x), shingles(y)
    return len(a & b) / max(1, len(a | b))


def ours(folder: Path, out: Path, workers: int, memory: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Through the engine: recipe, plan, Ray workers, exchange, ledger. Times are those of run.json's stages."""
    from benchmarks.parquet_source import ParquetSource
    from pipeline.dedup.minhash import Minhash
    from pipeline.progress import Console
    from pipeline.recipe import Recipe
    from pipeline.run import make_executor, run

    recipe = Recipe(
        steps=(ParquetSource(path=str(folder / "in")), Minhash(**settings)), workers=workers, memory_per_worker=memory
    )
    executor = make_executor(recipe, Console())
    warm = out / "warm"  # so that worker processes have started and loaded their kernels, as peers have their imports
    (warm / "in").mkdir(parents=True)
    few = pq.ParquetFile(next((folder / "in").glob("*.parquet"))).read_row_group(0).slice(0, 200)
    for number in range(2 * workers):
        pq.write_table(
            few.slice(number * 200 // (2 * workers), 200 // (2 * workers)), warm / "in" / f"{number}.parquet"
        )
    tiny = Recipe(steps=(ParquetSource(path=str(warm / "in")), Minhash(**settings)), workers=workers)
    run(tiny, str(warm / "out"), console=Console(quiet=True), executor=executor)
    shutil.rmtree(warm)
    report = run(recipe, str(out), executor=executor)
    shared = object_store_mb()
    executor.close()
    source, stage = report.stages
    phases, peaks = {}, {}
    for path in sorted(Path(out, "stages").glob("*/*/all.json"), key=lambda path: path.stat().st_mtime_ns):
        results = json.loads(path.read_text())["results"]
        peaks[f"{path.parts[-3][:2]} {path.parts[-2]}"] = round(
            max((r["peak_memory"] for r in results), default=0) / 1e6
        )
        if path.parts[-3] == stage["folder"]:
            phases[path.parent.name] = round(sum(r["seconds"] for r in results), 2)
    return {
        "seconds": stage["seconds"],
        "with_import": source["seconds"] + stage["seconds"],
        "removed": sum(stage["removed"].values()),
        "peak_mb": round(stage["peak_memory_bytes"] / 1e6),
        "peak_mb_until": peaks,
        "object_store_mb": shared,
        "task_seconds": phases,
        "ledger": [str(p) for p in sorted(Path(out, "ledger").rglob("*.parquet"))],
    }


def object_store_mb() -> int:
    """The memory of Ray's object store that was ever touched, in MB: what its process shares with others."""
    import psutil

    stores = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
    return round(sum(process.memory_info().shared for process in stores) / 1e6)


def quality(folder: Path, ledger: list[str]) -> dict[str, Any]:
    """Recall of the planted pairs by similarity, beside theory, and precision of the removals by exact Jaccard."""
    texts = pq.read_table(folder / "in", columns=["text"]).column("text")
    gone = {
        int.from_bytes(r["doc_id"], "big"): r for f in ledger for r in pq.read_table(f).to_pylist() if r["match_id"]
    }
    chance = random.Random(2)
    found: dict[str, list[int]] = {}
    theory: dict[str, float] = {}
    for low, high in ((0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        found[f"J {low}-{high}"] = [0, 0]
        theory[f"J {low}-{high}"] = 0.0
    for i, j in chance.sample(np.load(folder / "pairs.npy").tolist(), 20_000):
        similarity = jaccard(texts[i].as_py(), texts[j].as_py())
        for name in found:
            low, high = map(float, name[2:].split("-"))
            if low <= similarity < high:
                found[name][0] += i in gone or j in gone
                found[name][1] += 1
                theory[name] += 1 - (1 - similarity**8) ** 14
    sample = chance.sample(sorted(gone), min(5000, len(gone)))
    right = sum(
        jaccard(texts[i].as_py(), texts[int.from_bytes(gone[i]["match_id"], "big")].as_py()) >= 0.8 - 1e-9
        for i in sample
    )
    recall = {
        name: f"{hit / max(1, n):.3f} (theory {theory[name] / max(1, n):.3f}, {n} pairs)"
        for name, (hit, n) in found.items()
    }
    return {"recall": recall, "precision at J >= .8": right / max(1, len(sample))}


def peer(python: str, name: str, folder: Path, documents: int) -> dict[str, Any]:
    """One peer in a Python of its own: see bench_dedup_peers.py."""
    command = [python, str(Path(__file__).with_name("bench_dedup_peers.py")), name, str(folder), str(documents)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return {**json.loads(line[7:]), "documents": documents}
    return {"error": (done.stderr or done.stdout)[-2000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--memory", default="2GB", help="memory_per_worker of the recipe")
    parser.add_argument("--rounds", type=int, default=1, help="interleaved repetitions")
    parser.add_argument("--peers", default="", help="a python in which the peers are installed")
    parser.add_argument("--which", default="rensa,datasketch,datatrove")
    parser.add_argument("--folder", default="", help="keep the documents here, and use them again")
    parser.add_argument("--set", default="{}", help="settings of dedup.minhash as JSON")
    parser.add_argument("--quality", action="store_true", help="also measure recall and precision")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="bench_dedup_"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.npy").exists():
        make(folder, args.documents)
    limits = {"rensa": args.documents, "datasketch": 50_000, "datatrove": 10_000}
    for number in range(args.rounds):
        out = folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        mine = ours(folder, out, args.workers, args.memory, json.loads(args.set))
        rate = args.documents / mine["seconds"]
        ledger = mine.pop("ledger")
        print(f"round {number}: corpusmill {rate:,.0f} documents/s", json.dumps(mine), flush=True)
        if args.quality and number == 0:
            print("quality", json.dumps(quality(folder, ledger)), flush=True)
        for name in args.which.split(",") if args.peers else ():
            documents = min(limits[name], args.documents)
            result = peer(args.peers, name, folder, documents)
            if "error" in result:
                print(f"round {number}: {name} failed: {result['error']}", flush=True)
                continue
            other = documents / result["seconds"]
            print(
                f"round {number}: {name} {other:,.0f} documents/s, ratio {rate / other:.1f}",
                json.dumps(result),
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    print(f"driver peak {peak} MB")
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
