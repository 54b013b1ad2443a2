"""The laws of the engine: nothing lost, the same answer every time, only what changed runs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from steps.numbers import Numbers
from steps.poison import Poison
from steps.short import Short
from steps.total import Total
from worker_processes import KillOnce

from cluster.errors import RunError
from pipeline.process import Applied, ChildDied, guarded
from pipeline.progress import Console
from pipeline.recipe import Recipe
from pipeline.run import RunReport, run
from pipeline.shards import content_hash
from pipeline.step import Documents, Step, Transform, Verdict
from pipeline.why import why

QUIET = Console(quiet=True)


def recipe(workers: int = 0, **settings: object) -> Recipe:
    """Numbers → Short → Total: a source, a filter and a step through the exchange."""
    numbers = {k: settings.pop(k) for k in ("batch", "reverse", "delay_s", "files") if k in settings}
    total = Total(delay_s=numbers.get("delay_s", 0.0))
    short = Short(min_chars=settings.pop("min_chars", 40))
    return Recipe(steps=(Numbers(**numbers), short, total), workers=workers, **settings)


def go(made: Recipe, out: Path) -> RunReport:
    return run(made, str(out), console=QUIET)


def documents(out: Path) -> str:
    return content_hash(sorted(str(p) for p in (out / "documents").glob("*.parquet")))


def fates(out: Path) -> list[tuple[object, ...]]:
    """The ledger's rows, without the names of quarantine files, which differ from try to try."""
    rows = []
    for path in sorted((out / "ledger").glob("*.parquet")):
        table = pq.read_table(path).drop_columns(["quarantine"])
        rows += [tuple(row.values()) for row in table.to_pylist()]
    return sorted(rows, key=repr)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[object, ...]]]:
    out = tmp_path_factory.mktemp("undisturbed")
    go(recipe(), out)
    return documents(out), fates(out)


def test_every_stage_accounts_for_every_document(tmp_path: Path) -> None:
    report = go(recipe(), tmp_path)
    for stage in report.stages:
        assert stage["documents_in"] == stage["kept"] + sum(stage["removed"].values()) + stage["failed"]
    for before, after in zip(report.stages, report.stages[1:], strict=False):
        assert after["documents_in"] == before["kept"]
    kept = sum(pq.read_metadata(p).num_rows for p in (tmp_path / "documents").glob("*.parquet"))
    assert report.stages[0]["documents_in"] == 400 == kept + len(fates(tmp_path))


class Loses(Transform):
    """Gives back one row fewer than it was given."""

    def transform(self, docs: Documents) -> tuple[pa.RecordBatch, Verdict | None]:
        return docs.batch.slice(1), None


def test_a_step_that_loses_a_row_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was given 30 rows and gave back"):
        go(Recipe(steps=(Numbers(), Loses()), workers=0), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "change", [{"batch": 7}, {"batch": 1000}, {"reverse": True}, {"batch_documents": 11}, {"memory_per_worker": "1MB"}]
)
def test_cutting_and_order_do_not_change_a_byte(tmp_path: Path, undisturbed: tuple[str, list], change: dict) -> None:
    go(recipe(**change), tmp_path)
    assert (documents(tmp_path), fates(tmp_path)) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_a_byte(
    ray_cluster: None, tmp_path: Path, undisturbed: tuple[str, list], workers: int
) -> None:
    go(recipe(workers), tmp_path)
    assert (documents(tmp_path), fates(tmp_path)) == undisturbed


@pytest.mark.parametrize(
    "phase", ["00-*/output", "01-*/keys", "01-*/choose", "01-*/output"], ids=["map", "exchange", "reduce", "apply"]
)
def test_a_killed_worker_changes_nothing(
    ray_cluster: None, tmp_path: Path, undisturbed: tuple[str, list], phase: str
) -> None:
    before = {
        "00-*/output": "recipe.yaml",
        "01-*/keys": "stages/00-*/stage.json",
        "01-*/choose": "stages/01-*/keys/all.json",
    }
    killer = KillOnce(tmp_path, before.get(phase, "stages/01-*/choose/all.json"))
    killer.start()
    go(recipe(2, delay_s=0.2), tmp_path)
    if phase != "01-*/output":  # that phase is over in milliseconds: the kill may come after it
        assert killer.killed == 1
    assert (documents(tmp_path), fates(tmp_path)) == undisturbed


def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path, undisturbed: tuple[str, list]) -> None:
    root = Path(__file__).parent.parent.parent
    script = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]\n"
        "from steps.numbers import Numbers; from steps.short import Short; from steps.total import Total\n"
        "from pipeline.recipe import Recipe; from pipeline.run import run\n"
        "r = Recipe(steps=(Numbers(delay_s=0.3), Short(), Total(delay_s=0.3)), workers=2)\n"
        f"run(r, {str(tmp_path)!r})\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("stages/00-*/output/done/*.json")):
        assert time.monotonic() < deadline, "the run never finished a partition"
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    committed = {p: p.stat().st_ino for p in tmp_path.glob("stages/00-*/output/done/*.json")}
    assert 0 < len(committed) < 4
    go(recipe(delay_s=0.3), tmp_path)
    assert {p: p.stat().st_ino for p in committed} == committed
    assert (documents(tmp_path), fates(tmp_path)) == undisturbed


def test_a_half_written_shard_is_never_read(tmp_path: Path, undisturbed: tuple[str, list]) -> None:
    go(recipe(), tmp_path)
    stage = next(tmp_path.glob("stages/00-*"))
    (stage / "stage.json").unlink()
    (stage / "output" / "all.json").unlink()
    lost = stage / "output" / "done" / "000002.json"
    lost.unlink()  # as if the process ended between writing the shard and committing it
    for shard in (stage / "output").glob("rows-000002-*.parquet"):
        shard.write_bytes(shard.read_bytes()[:100])
    go(recipe(), tmp_path)
    assert (documents(tmp_path), fates(tmp_path)) == undisturbed


def test_a_changed_threshold_runs_only_what_follows(tmp_path: Path) -> None:
    steps = (Numbers(), Total(), Short(min_chars=40))
    go(Recipe(steps=steps, workers=0), tmp_path)
    first = go(Recipe(steps=(*steps, Total()), workers=0), tmp_path)
    assert [bool(s.get("resumed")) for s in first.stages] == [True, True, False]
    again = go(Recipe(steps=(Numbers(), Total(), Short(min_chars=41), Total()), workers=0), tmp_path)
    assert [bool(s.get("resumed")) for s in again.stages] == [True, False, False]
    back = go(Recipe(steps=steps, workers=0), tmp_path)
    assert all(s.get("resumed") for s in back.stages)


def test_a_poison_document_is_quarantined_and_the_run_goes_on(tmp_path: Path) -> None:
    go(Recipe(steps=(Numbers(), Poison()), workers=0), tmp_path)
    (fate,) = [f for p in (tmp_path / "ledger").glob("*") for f in pq.read_table(p).to_pylist()]
    assert (fate["status"], fate["reason"], fate["url"]) == ("failed", "ValueError", "http://example.org/f001/7")
    assert "cannot take" in fate["error"]
    (row,) = pq.read_table(fate["quarantine"]).to_pylist()
    assert row["doc_id"] == fate["doc_id"]
    assert row["text"].startswith("document 7 of file f001")


@pytest.mark.parametrize("kind", ["kill", "hang"])
def test_a_document_that_ends_or_holds_up_its_worker_costs_only_itself(
    ray_cluster: None, tmp_path: Path, kind: str
) -> None:
    made = Recipe(
        steps=(Numbers(files=2), Poison(kind=kind)), workers=2, document_timeout_s=1.5, stall_timeout_s=5,
    )  # fmt: skip
    report = go(made, tmp_path)
    assert report.stages[0]["failed"] == 1
    assert report.stages[0]["kept"] == 199
    lines, _ = why(str(tmp_path), "http://example.org/f001/7")
    assert any(("SIGKILL" if kind == "kill" else "took longer than document_timeout_s=1.5") in line for line in lines)


def test_a_document_that_ends_its_process_ends_two_and_its_neighbours_are_done() -> None:
    batch = pa.RecordBatch.from_pydict({"text": [f"document {i}" for i in range(32)]})
    deaths: list[int] = []

    def call(step: Step, docs: Documents) -> Applied:
        if "document 17" in docs.column("text").to_pylist():
            deaths.append(len(docs))
            raise ChildDied("SIGSEGV")
        return docs.batch, Verdict.keep(len(docs)), {}

    rows, verdict, _ = guarded(Poison(), Documents(batch), call)
    assert deaths == [32, 1]
    assert rows is not None
    assert rows.equals(pa.concat_batches([batch.slice(0, 17), batch.slice(18)]))
    assert [i for i, reason in enumerate(verdict.reason) if reason is not None] == [17]


def test_too_many_failures_fail_the_run_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(
        RunError,
        match=r"4 of 400 documents failed \(1.0%\).*The first one, in steps.poison as ValueError: .*document 7",
    ):
        go(Recipe(steps=(Numbers(), Poison(marker="document 7 ")), workers=0, max_failed_share=0.005), tmp_path)


def test_why_names_the_step_and_the_match(tmp_path: Path) -> None:
    go(recipe(), tmp_path)
    short, found = why(str(tmp_path), "http://example.org/f000/0")
    assert found
    assert short[1] == "  removed by steps.short: too_short, 24 (limit 40)"
    duplicate = next(f for f in fates(tmp_path) if f[5] == "same_length")
    lines, _ = why(str(tmp_path), str(duplicate[1]))
    assert any(line.startswith("  duplicate of ") and "http://example.org/" in line for line in lines)


def test_an_unknown_document_is_said_to_be_unknown(tmp_path: Path) -> None:
    go(recipe(), tmp_path)
    lines, found = why(str(tmp_path), "http://example.org/nowhere")
    assert not found
    assert "no document 'http://example.org/nowhere'" in lines[0]


def test_a_run_can_be_moved_and_goes_on_where_it_lies(tmp_path: Path) -> None:
    go(recipe(), tmp_path / "a")
    before = documents(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "documents" / "part-00000.parquet").unlink()  # to be put there again from the stages
    report = go(recipe(), tmp_path / "b")
    assert all(stage["resumed"] for stage in report.stages)
    assert documents(tmp_path / "b") == before
    (stage_file,) = (tmp_path / "b" / "stages").glob("01-*/stage.json")
    stage_file.unlink()  # from its tasks
    go(recipe(), tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "a")
    stage_file = tmp_path / "a" / stage_file.relative_to(tmp_path / "b")
    assert str(tmp_path) not in stage_file.read_text()
    go(recipe(min_chars=41), tmp_path / "a")
    assert not (tmp_path / "b").exists()
