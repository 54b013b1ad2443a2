"""Executes a plan: stage after stage, each resumable and checked to the document; publishes the outputs at the end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster import storage
from cluster.errors import RunError
from pipeline import manifest
from pipeline.executor import Executor, LocalExecutor, RayExecutor
from pipeline.html import write_report
from pipeline.ledger import check_balance
from pipeline.plan import Stage, plan
from pipeline.process import totals
from pipeline.progress import Console, kernels_compiled
from pipeline.publish import publish
from pipeline.recipe import Recipe
from pipeline.schema import Row
from pipeline.step import Corpus, Source
from pipeline.workers import OUTPUT, Job


@dataclass
class StageRun:
    """One stage while it runs: what a Source's `prepare` and a Corpus step's `decide` work with."""

    stage: Stage
    recipe: Recipe
    folder: str
    """Storage path of the stage's directory."""

    partitions: list[dict[str, Any]]
    """The stage's input in a stable order: {"index", "file": Parquet path or None, "rows", "bytes"}."""

    artifacts: dict[str, str]
    executor: Executor
    console: Console
    peak_memory: int = 0

    @property
    def fingerprint(self) -> str:
        return self.stage.fingerprint

    @property
    def memory_bytes(self) -> int:
        return self.recipe.memory_bytes

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def workers(self) -> int:
        """For sizing work in parallel; it must not decide the output."""
        return self.executor.workers

    @property
    def rows(self) -> int:
        return sum(partition["rows"] for partition in self.partitions)

    def fix(self, name: str, value: Any) -> Any:
        """The value that was fixed under this name when the stage first ran; `value` if this is that time.

        For decisions that later tasks rely on (a number of buckets): a resumed run must not decide anew.
        """
        return manifest.once(storage.join(self.folder, f"{name}.fixed.json"), value)

    def map(self, phase: str, tasks: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
        """`entry.<phase>(task, work)` for each task, on the workers; results in order. Finished ones are not redone.

        A method that is needed in rounds is called as "name@1", "name@2", …: each has a folder of its own.
        """
        folder = storage.join(self.folder, phase)
        entry = self.stage.entry
        job = Job(
            folder=folder, phase=phase, entry=entry, artifacts=self.artifacts, memory_bytes=self.memory_bytes,
            seed=self.seed, batch_documents=self.recipe.batch_documents, keep_scores=self.recipe.keep_scores,
            document_timeout_s=self.recipe.document_timeout_s, **more,
        )  # fmt: skip
        label = self.stage.name if phase == OUTPUT else f"{self.stage.name} · {phase}"
        with self.console.task(label, len(tasks)) as on_progress:
            entries = self.executor.map(job, tasks, on_progress)
        manifest.finish(folder, entries)
        self.peak_memory = max([self.peak_memory, *(entry["peak_memory"] for entry in entries)])
        return [entry["result"] for entry in entries]


@dataclass
class RunReport:
    """What a finished run leaves: the content of run.json."""

    out: str
    stages: list[dict[str, Any]]
    outputs: dict[str, str]
    seconds: float = 0.0
    status: str = "done"
    extra: dict[str, Any] = field(default_factory=dict)


def run(
    recipe: Recipe, out: str, *, console: Console | None = None, recipe_name: str = "", executor: Executor | None = None
) -> RunReport:
    """Execute a recipe into the folder `out` (local or s3://). Doing it again continues where it was.

    Raises RecipeError before anything starts if the recipe cannot work, RunError when the run fails; run.json then
    says "failed" and why, and everything that was committed stays.
    """
    stages = plan(recipe, out)
    out = storage.absolute(out)
    console = console or Console()
    storage.check_writable(out)
    _write_recipe(recipe, out)
    started = time.perf_counter()
    record: dict[str, Any] = {
        "status": "running", "recipe": recipe_name, "started": _now(), "fingerprint": stages[-1].fingerprint,
        "stages": [], "outputs": {},
    }  # fmt: skip
    _write_record(out, record)
    owned = executor is None
    try:
        partitions: list[dict[str, Any]] = []
        artifacts: dict[str, str] = {}
        for stage in stages:
            summary = _finished(out, stage)
            if summary is None:
                if executor is None:
                    if not kernels_compiled():
                        console.line("the first run here compiles its kernels: a minute or two, once")
                    executor = make_executor(recipe, console)
                summary = _run_stage(stage, recipe, out, partitions, artifacts, executor, console)
            else:
                summary["resumed"] = True
            console.stage(summary)
            partitions, artifacts = summary["partitions"], summary["artifacts"]
            record["stages"].append(summary)
            _write_record(out, record)
        record["outputs"] = publish(out, stages, record["stages"])
        record |= {"status": "done", "finished": _now(), "seconds": round(time.perf_counter() - started, 2)}
        _write_record(out, record)
        write_report(out, record, record["outputs"])
    except BaseException as error:
        told = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        record |= {"status": "failed", "error": told, "finished": _now()}
        _write_record(out, record)
        raise
    finally:
        if owned and executor is not None:
            executor.close()
    return RunReport(out, record["stages"], record["outputs"], record["seconds"])


def make_executor(recipe: Recipe, console: Console) -> Executor:
    """The executor that a recipe's `workers` asks for."""
    if recipe.workers == 0:
        return LocalExecutor()
    return RayExecutor(0 if recipe.workers == "auto" else recipe.workers, recipe.stall_timeout_s, console.line)


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    out: str,
    partitions: list[dict[str, Any]],
    artifacts: dict[str, str],
    executor: Executor,
    console: Console,
) -> dict[str, Any]:
    started = time.perf_counter()
    folder = storage.join(out, "stages", stage.folder)
    for step in stage.all_steps:
        artifacts = {**artifacts, **step.provides()}
    this = StageRun(stage, recipe, folder, partitions, artifacts, executor, console)
    decided: dict[str, Any] = {}
    if isinstance(stage.entry, Source):
        stage.entry.prepare(this)
        tasks = stage.entry.tasks(this)
    else:
        tasks = partitions
    if isinstance(stage.entry, Corpus):
        decided = stage.entry.decide(this)
        if stage.entry.makes:
            artifacts = {**artifacts, stage.entry.makes: decided["path"]}
            this.artifacts = artifacts
    if stage.gives == Row.PACKED:
        sums = _packed_totals(stage, this, decided)
        outputs: list[dict[str, Any]] = []
    elif isinstance(stage.entry, Corpus) and not stage.entry.changes_rows and not stage.steps:
        sums = totals([{"in": this.rows, "rows": this.rows}])
        outputs = partitions
    else:
        results = this.map(OUTPUT, tasks, steps=stage.steps, decided=decided)
        sums = totals(results)
        outputs = [
            {"index": index, "file": result["file"], "rows": result["rows"], "bytes": result["bytes"]}
            for index, result in enumerate(results)
        ]
        sums["files"] = _files(results)
    summary = _summary(stage, sums, decided, outputs, artifacts, time.perf_counter() - started, this)
    _check(stage, summary, sums, recipe, None if isinstance(stage.entry, Source) else this.rows)
    storage.write_bytes(storage.join(folder, "stage.json"), manifest.dump(summary, out, indent=1))
    return summary


def _files(results: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {
        "ledger": [r["ledger"] for r in results if r.get("ledger")],
        "scores": [r["scores"] for r in results if r.get("scores")],  # {number of a group's first filter: path}
    }


def _packed_totals(stage: Stage, this: StageRun, decided: dict[str, Any]) -> dict[str, Any]:
    """A packing step's own account, in the form of the others'."""
    removed = decided.get("removed", {})
    went = sum(removed.values())
    sums = totals([{"in": this.rows, "rows": decided["documents"], "ledger_rows": decided.get("ledger_rows", went)}])
    sums["removed"] = {stage.name: removed} if removed else {}
    sums["files"] = {"ledger": decided.get("ledger", []), "scores": []}
    return sums


def _summary(
    stage: Stage,
    sums: dict[str, Any],
    decided: dict[str, Any],
    outputs: list[dict[str, Any]],
    artifacts: dict[str, str],
    seconds: float,
    this: StageRun,
) -> dict[str, Any]:
    removed: dict[str, int] = {}
    for reasons in sums["removed"].values():
        for reason, count in reasons.items():
            removed[reason] = removed.get(reason, 0) + count
    failed = sum(sums["failed"].values())
    return {
        "name": stage.name, "folder": stage.folder, "gives": str(stage.gives), "status": "done",
        "documents_in": sums["in"], "kept": sums["rows"], "removed": removed, "failed": failed,
        "seconds": round(seconds, 2), "documents_per_s": round(sums["in"] / seconds, 1) if seconds else None,
        "peak_memory_bytes": this.peak_memory,
        "steps": _step_rows(stage, sums),
        "fused": len(stage.steps),
        "decided": decided, "partitions": outputs, "artifacts": artifacts, "files": sums.get("files", {}),
        "ledger_rows": sums["ledger_rows"],
    }  # fmt: skip


def _step_rows(stage: Stage, sums: dict[str, Any]) -> list[dict[str, Any]]:
    """Per step: documents in, removed by reason, failed, seconds of CPU."""
    rows = []
    if stage.entry is not None:
        name = stage.entry.step_name()
        mine = sums["removed"].get(name, {})
        rows.append({"name": name, "in": sums["in"], "removed": mine, "failed": sums["failed"].get(name, 0)})
    for number, step in enumerate(stage.steps):
        name = step.step_name()
        documents, seconds = sums["steps"].get(f"{number}:{name}", (0, 0.0))
        mine, failed = sums["removed"].get(name, {}), sums["failed"].get(name, 0)
        rows.append({"name": name, "in": documents, "removed": mine, "failed": failed, "seconds": round(seconds, 2)})
    return rows


def _check(stage: Stage, summary: dict[str, Any], sums: dict[str, Any], recipe: Recipe, rows_given: int | None) -> None:
    removed = sum(summary["removed"].values())
    check_balance(
        stage.folder, summary["documents_in"], summary["kept"], removed, summary["failed"], sums["ledger_rows"]
    )
    if rows_given is not None and rows_given != summary["documents_in"]:
        raise RunError(f"stage {stage.folder}: {rows_given} documents came in, but it read {summary['documents_in']}")
    share = summary["failed"] / max(1, summary["documents_in"])
    if share > recipe.max_failed_share:
        raise RunError(
            f"stage {stage.folder}: {summary['failed']} of {summary['documents_in']} documents failed ({share:.1%}),"
            f" more than max_failed_share={recipe.max_failed_share:.1%}.{_first_failure(sums)} The ledger and the"
            f" quarantine below stages/{stage.folder}/output have all; set max_failed_share to accept it and run again."
        )


def _first_failure(sums: dict[str, Any]) -> str:
    """One failure as an example: most often all have the same cause, a field's name say."""
    import pyarrow.parquet as pq

    columns = ["status", "step", "reason", "error"]
    for path in sums["files"]["ledger"]:
        with storage.open_read(path) as file:
            for row in pq.read_table(file, columns=columns).to_pylist():
                if row["status"] == "failed":
                    return f" The first one, in {row['step']} as {row['reason']}: {row['error']}."
    return ""


def _finished(out: str, stage: Stage) -> dict[str, Any] | None:
    path = storage.join(out, "stages", stage.folder, "stage.json")
    try:
        summary: dict[str, Any] = manifest.load(storage.read_bytes(path), out)
    except FileNotFoundError:
        return None
    return summary


def _write_recipe(recipe: Recipe, out: str) -> None:
    import yaml

    text = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(out, "recipe.yaml"), text.encode())


def _write_record(out: str, record: dict[str, Any]) -> None:
    public = {
        **record,
        "stages": [{k: v for k, v in s.items() if k not in ("partitions", "files")} for s in record["stages"]],
    }
    storage.write_bytes(storage.join(out, "run.json"), json.dumps(public, indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
