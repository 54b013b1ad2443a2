"""Loops of stages that are redone only when they are not finished, and work spread over Ray. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import ray as cluster_ray
from cluster.errors import RecipeError, RunError
from trainers.feedback.judge import put
from trainers.feedback.writer import Chat, Draw
from trainers.workers import Crew

Row = dict[str, Any]


def stage(path: Path, work: Callable[[], Any]) -> Any:
    """What `work` returned, now or in an earlier call: it is kept in the JSON file `path` once it is finished."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = work()
    put(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def same_loop(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that another loop has begun; `iterations` may grow. Raises RecipeError."""
    path = out / "loop.json"
    now = json.loads(json.dumps({k: v for k, v in settings.items() if k != "iterations"}))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        if changed:
            raise RecipeError(f"{out} was begun with other values of {', '.join(changed)}; use another --out")
    put(path, json.dumps(now, indent=1) + "\n")


def spread(
    call: Callable[[str, Sequence[Any], Mapping[str, Any]], list[Row]],
    folder: str,
    items: Sequence[Any],
    settings: Mapping[str, Any],
    out: Path,
    *,
    workers: int = 2,
    chunk: int = 32,
    crew: Crew | None = None,
) -> list[Row]:
    """`call(folder, items, settings)` on chunks of the items in Ray tasks: one row per item, in their order.

    Finished chunks lie below `out`; a lost worker's chunk is redone by another, and a repeated call does what is
    missing. Raises RunError when a chunk fails for a reason of its own. A `crew` waits meanwhile: on CPUs it lends its
    places, on GPUs, whose memory is needed, it is ended.
    """
    starts = range(0, len(items), chunk)
    paths = {start: out / f"part-{start:08d}.json" for start in starts}
    missing = [start for start in starts if not paths[start].exists()]
    if missing:
        import ray

        cluster_ray.start(workers)
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        if crew is not None and gpus:
            crew.end()
        cpus = 1 if crew is None or gpus else 0
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(call)
        waiting: dict[Any, int] = {}
        while missing or waiting:
            while missing and len(waiting) < workers:
                start = missing.pop(0)
                waiting[task.remote(folder, list(items[start : start + chunk]), dict(settings))] = start
            ready, _ = ray.wait(list(waiting), num_returns=1)
            start = waiting.pop(ready[0])
            try:
                rows = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise RunError(f"{out}: items {start} to {start + chunk - 1} failed: {error}") from error
            put(paths[start], json.dumps(rows, ensure_ascii=False) + "\n")
    return [row for start in starts for row in json.loads(paths[start].read_text(encoding="utf-8"))]


def write_texts(folder: str, chats: Sequence[Chat], settings: Mapping[str, Any]) -> list[Row]:
    """For `spread`: the texts of a local model, {"texts": […]} per chat."""
    from trainers.feedback.local import open_model

    return [{"texts": texts} for texts in open_model(folder).write(chats, Draw(**settings))]


def rate_texts(folder: str, asked: Sequence[tuple[Any, str]], settings: Mapping[str, Any]) -> list[Row]:
    """For `spread`: expected scores by a local judge, {"score": …} per prompt and answer."""
    from trainers.feedback.judge import Rating, rate
    from trainers.feedback.local import open_model

    prompts, answers = [one[0] for one in asked], [one[1] for one in asked]
    return [{"score": score} for score in rate(open_model(folder), prompts, answers, Rating(**settings))]


def trained(recipe: Mapping[str, Any], out: Path, crew: Crew | None = None) -> Row:
    """Train to the end of the recipe, resuming from its checkpoints: {"model": folder, figures}."""
    from trainers.train import train

    report = train(recipe, str(out), crew=crew)
    if report.export is None:
        raise RecipeError(f"{out}: a loop needs the export of each iteration; leave out export: false")
    return {
        "model": report.export,
        "first_loss": report.first_loss,
        "last_loss": report.last_loss,
        "validation": report.validation,
    }


def as_chat(prompt: Any) -> Chat:
    """A prompt, text or messages, as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a file, whole or not at all; its path."""
    put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)
