"""Deduplication through the engine: workers, kills and resuming change not one document."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from steps.slow_dedup import SlowExact, SlowLines, SlowMinhash, SlowSubstring, SlowUrl
from worker_processes import worker_processes

from pipeline.crawl.corpus import Corpus
from pipeline.dedup.exact import Exact
from pipeline.dedup.lines import Lines
from pipeline.dedup.minhash import Minhash
from pipeline.dedup.substring import Substring
from pipeline.dedup.url import Url
from pipeline.progress import Console
from pipeline.recipe import Recipe
from pipeline.run import run
from pipeline.shards import content_hash

FILES = 4


def rows_of_a_crawl() -> list[str]:
    """JSON lines with pages fetched twice, exact copies, near-copies, repeated lines and long repeated passages."""
    chance = random.Random(8)
    words = [f"word{i}" for i in range(3000)]
    passages = [" ".join(chance.choices(words, k=55)) for _ in range(3)]
    texts = []
    for _ in range(150):
        text = chance.choices(words, k=80)
        texts.append(text)
        for _ in range(chance.randrange(3)):
            copy = list(text)
            copy[chance.randrange(80)] = "changed"
            texts.append(chance.choice([text, copy]))
    chance.shuffle(texts)
    rows = []
    for i, text in enumerate(texts):
        passage = [passages[i % 3]] if i % 11 == 0 else []
        body = "\n".join([" ".join(text[:40]), "All rights reserved 2020", *passage, " ".join(text[40:])])
        page = i - 1 if i % 13 == 1 else i
        date = f"2024-01-{i % 28 + 1:02}"
        rows.append(json.dumps({"id": f"d{i}", "text": body, "url": f"http://example.org/{page}", "date": date}))
    return rows


def write(folder: Path, rows: list[str], files: int = FILES) -> Path:
    """The rows, dealt out to files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"{number}.jsonl").write_text("\n".join(rows[number::files]) + "\n")
    return folder


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that deduplication looks for, mixed over four files."""
    return write(tmp_path_factory.mktemp("crawl"), rows_of_a_crawl())


def recipe(crawl: Path, workers: int, *, slow: bool = False, keep: str = "first", **settings: object) -> Recipe:
    all_of_them = (SlowUrl, SlowExact, SlowMinhash) if slow else (Url, Exact, Minhash)
    lines, substring = (SlowLines, SlowSubstring) if slow else (Lines, Substring)
    split = {"split_bytes": settings.pop("split_bytes")} if "split_bytes" in settings else {}
    source = Corpus(path=str(crawl / "*.jsonl"), id_field="id", **split)
    steps = (source, *(step() for step in all_of_them), lines(keep=keep), substring(keep=keep))
    return Recipe(steps=steps, workers=workers, **{"memory_per_worker": "16KB", **settings})


def answer(out: Path) -> tuple[str, list[tuple[object, ...]]]:
    """What came out: the hash of all documents, and each removal with its reason, score and match."""
    ledger = [row for p in (out / "ledger").glob("*.parquet") for row in pq.read_table(p).to_pylist()]
    removed = sorted((r["doc_id"], r["reason"], r["score"], r["match_id"]) for r in ledger)
    return content_hash([str(p) for p in sorted((out / "documents").glob("*.parquet"))]), removed


@pytest.fixture(scope="module")
def undisturbed(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[object, ...]]]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(recipe(crawl, 0, memory_per_worker="1GB"), str(out), console=Console(quiet=True))
    found = answer(out)
    reasons = {reason for _, reason, _, _ in found[1]}
    assert reasons == {"url_duplicate", "exact_duplicate", "near_duplicate", "substring_empty"}
    texts = [t for p in (out / "documents").glob("*.parquet") for t in pq.read_table(p).column("text").to_pylist()]
    assert sum("All rights reserved" in text for text in texts) == 1
    assert sum(len(text.split()) > 120 for text in texts) == 3  # each passage in one document still
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(ray_cluster, crawl, tmp_path, undisturbed, workers):
    run(recipe(crawl, workers), str(tmp_path), console=Console(quiet=True))
    assert answer(tmp_path) == undisturbed


def test_four_workers_change_nothing(crawl, tmp_path, undisturbed):
    root = Path(__file__).parents[3]
    script = (
        "import importlib.util, sys\n"
        f"sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]\n"
        f"spec = importlib.util.spec_from_file_location('here', {__file__!r})\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        f"here.run(here.recipe(here.Path({str(crawl)!r}), 4), {str(tmp_path)!r}, console=here.Console(quiet=True))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=240, stdout=subprocess.DEVNULL
    )  # a Ray of 4 CPUs
    assert answer(tmp_path) == undisturbed


def test_other_partitions_and_batches_change_nothing(crawl, tmp_path, undisturbed):
    made = recipe(crawl, 0, split_bytes=5000, batch_documents=7, memory_per_worker="1MB")
    report = run(made, str(tmp_path), console=Console(quiet=True))
    assert len(report.stages[0]["partitions"]) > 2 * FILES
    assert answer(tmp_path) == undisturbed


def test_the_order_of_the_input_changes_nothing(crawl, tmp_path):
    """With `keep: none`; the first occurrence of a line is another one in another order."""
    run(recipe(crawl, 0, keep="none"), str(tmp_path / "out"), console=Console(quiet=True))
    expected = answer(tmp_path / "out")
    assert len(expected[1]) > 100
    rows = rows_of_a_crawl()
    for seed in (1, 2):
        random.Random(seed).shuffle(rows)
        folder = write(tmp_path / f"in{seed}", rows, files=FILES + seed)
        run(recipe(folder, 0, keep="none"), str(tmp_path / f"out{seed}"), console=Console(quiet=True))
        assert answer(tmp_path / f"out{seed}") == expected


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


class KillInEach(threading.Thread):
    """Kills one busy worker in each phase: when the phase before has ended."""

    def __init__(self, out: Path, phases: list[tuple[str, str]]):
        super().__init__(daemon=True)
        self.out, self.phases = out, phases
        self.killed: list[str] = []

    def run(self) -> None:
        deadline = time.monotonic() + 240
        for before, phase in self.phases:
            while time.monotonic() < deadline:
                busy = [p for p in worker_processes() if "run" in _title(p)]
                if any(self.out.glob(before)) and not any(self.out.glob(f"{phase}/all.json")) and busy:
                    busy[0].send_signal(signal.SIGKILL)
                    self.killed.append(phase)
                    break
                if any(self.out.glob(f"{phase}/all.json")):
                    break
                time.sleep(0.005)


def test_a_worker_killed_in_every_phase_changes_nothing(ray_cluster, crawl, tmp_path, undisturbed):
    killer = KillInEach(
        tmp_path,
        [
            ("stages/00-*/stage.json", "stages/01-*/hashes"),
            ("stages/01-*/hashes/all.json", "stages/01-*/choose"),
            ("stages/01-*/stage.json", "stages/02-*/hashes"),
            ("stages/02-*/hashes/all.json", "stages/02-*/choose"),
            ("stages/02-*/stage.json", "stages/03-*/signatures"),
            ("stages/03-*/signatures/all.json", "stages/03-*/edges"),
            ("stages/03-*/both_ends/all.json", "stages/03-*/large_star@1"),
            ("stages/03-*/large_star@1/all.json", "stages/03-*/small_star@1"),
            ("stages/03-*/label/all.json", "stages/03-*/members"),
            ("stages/03-*/members/all.json", "stages/03-*/choose"),
            ("stages/03-*/stage.json", "stages/04-*/lines"),
            ("stages/04-*/lines/all.json", "stages/04-*/count"),
            ("stages/04-*/stage.json", "stages/05-*/windows"),
            ("stages/05-*/windows/all.json", "stages/05-*/repeats"),
        ],
    )
    killer.start()
    run(recipe(crawl, 2, slow=True), str(tmp_path), console=Console(quiet=True))
    assert len(killer.killed) >= 12, killer.killed
    assert answer(tmp_path) == undisturbed


def test_a_run_that_was_cut_off_resumes_with_other_workers(ray_cluster, crawl, tmp_path, undisturbed):
    run(recipe(crawl, 2), str(tmp_path), console=Console(quiet=True))
    minhash = next(tmp_path.glob("stages/03-*"))
    for number in range(1, 6):  # every stage as if the driver had died in the middle of its last phases
        stage = next(tmp_path.glob(f"stages/{number:02d}-*"))
        (stage / "stage.json").unlink()
        for phase in ("members", "choose", "count", "repeats", "output"):
            for entry in [stage / phase / "all.json", *sorted((stage / phase / "done").glob("*.json"))[1:]]:
                entry.unlink(missing_ok=True)
    before = {p: p.stat().st_mtime_ns for p in (minhash / "signatures").rglob("*.*") if p.name != "all.json"}
    run(recipe(crawl, 1), str(tmp_path), console=Console(quiet=True))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert answer(tmp_path) == undisturbed
