"""`corpusmill train`: a recipe in, a trained model out. The driver; it loads no torch."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster import placement, storage
from cluster import ray as cluster_ray
from cluster.errors import RecipeError, RunError
from cluster.settings import make
from pipeline.schema import DATASET_FILE
from trainers import architecture, shelf
from trainers.page import write_page
from trainers.recipe import TrainRecipe, from_mapping, write
from trainers.schedule import Schedule
from trainers.workers import Crew, Lost, attempt, crewed, outlived

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TrainReport:
    """What a run ended with."""

    steps: int
    steps_done: int
    """In this call: fewer than `steps` when the run was resumed, 0 when it had been finished before."""
    first_loss: float
    last_loss: float
    validation: dict[int, float]
    """Mean held-out loss per target, by step."""
    checkpoint: str | None
    export: str | None
    parameters: int
    tokens: int
    seconds: float
    peak_memory: int | None = None
    """Bytes that rank 0 allocated on its GPU at most; None on CPU."""
    restarts: int = 0
    losses: dict[int, float] = field(default_factory=dict)


def train(
    recipe: TrainRecipe | Mapping[str, Any],
    out: str | None = None,
    console: Console | None = None,
    crew: Crew | None = None,
) -> TrainReport:
    """Train to the end of the recipe, resuming from the last checkpoint below `out` if there is one.

    Lost workers are replaced up to `max_restarts` times. With a `crew`, its workers are used and stay. Raises
    RecipeError before anything starts, RunError when the run cannot go on.
    """
    recipe = recipe if isinstance(recipe, TrainRecipe) else from_mapping(recipe)
    recipe.check()
    if not os.environ.get("RAY_ADDRESS") and importlib.util.find_spec("torch") is None:  # workers would be here
        raise RecipeError("training needs the package torch, which is not installed: pip install 'corpusmill[train]'")
    folder = out or recipe.out
    if folder is None:
        raise RecipeError("no output folder: give --out, or `out:` in the recipe")
    if storage.is_s3(folder):
        raise RecipeError(
            f"{folder}: the run's log and export need a local folder; give one to --out, and `checkpoints: {folder}` "
            "for its checkpoints"
        )
    folder = storage.absolute(folder)
    shares = {storage.absolute(path): share for path, share in recipe.folders().items()}
    rows = tokens = 0
    prints = {}
    for path in shares:
        if not storage.exists(storage.join(path, DATASET_FILE)):
            raise RecipeError(f"data: no {DATASET_FILE} in {path}; expected the packed/ folder of a pipeline run")
        about = json.loads(storage.read_bytes(storage.join(path, DATASET_FILE)))
        rows, tokens = rows + about["rows"], tokens + about["tokens"]
        prints[path] = about.get("fingerprint")
    architecture.check_models(recipe, path, about)
    data = next(iter(shares)) if isinstance(recipe.data, str) else shares
    own = recipe.checkpoints and storage.absolute(recipe.checkpoints)
    shelf_folder = own or storage.join(folder, "checkpoints")
    recipe = recipe.model_copy(update={"data": data, "out": folder, "checkpoints": own})
    if recipe.continue_ is not None:
        there = recipe.continue_.model_copy(update={"run": storage.absolute(recipe.continue_.run)})
        recipe = recipe.model_copy(update={"continue_": there})
    steps = recipe.total_steps(rows, tokens)
    make(Schedule, recipe.rates({}), "schedule").check(steps)
    outlived(folder)
    damaged = list(shelf.set_damaged_aside(shelf_folder))
    _check_resume(recipe, shelf_folder, prints)
    write(recipe, folder)
    shelf.clear_unfinished(shelf_folder)

    started = time.monotonic()
    device, world = _devices(recipe)
    show = _Progress(console, steps, world, device)
    restarts = 0
    with show:
        for line in damaged:
            show.say(line)
        while True:
            try:
                results = _attempt(recipe, folder, world, device, show, crew)
                break
            except Lost as error:
                restarts += 1
                if restarts > recipe.max_restarts:
                    raise RunError(
                        f"{error}. Gave up after {recipe.max_restarts} restarts; the last checkpoint stays, the same "
                        "command goes on from it"
                    ) from error
                shelf.clear_unfinished(shelf_folder)
                for line in shelf.set_damaged_aside(shelf_folder):
                    show.say(line)
                show.say(f"{error}; restart {restarts} of {recipe.max_restarts} from the last checkpoint")
                world = _left(recipe, device, world, show)
            except placement.NoRoom:
                left = _left(recipe, device, world, show) if restarts else world
                if left == world:
                    raise
                world = left
    report = _report(folder, shelf_folder, results[0], time.monotonic() - started, restarts)
    write_page(folder)
    return report


def _left(recipe: TrainRecipe, device: str, world: int, show: _Progress) -> int:
    """After a loss: how many workers go on. A node went with its GPUs: the same rows on those that are left."""
    if recipe.workers != "auto" or device != "cuda":
        return world
    kind, count = _devices(recipe)
    size = recipe.engine.get("sequence", 1)
    count = count - count % size or size  # ranks that share rows come and go together
    if kind != device or count >= world:
        return world
    show.say(f"{world - count} of {world} GPUs are gone; going on with {count}")
    return count


def _attempt(
    recipe: TrainRecipe, folder: str, world: int, device: str, show: _Progress, crew: Crew | None
) -> list[dict[str, Any]]:
    with crewed(crew) as own:
        return attempt(recipe.plain(), folder, world, device, show.line, own)


def _devices(recipe: TrainRecipe) -> tuple[str, int]:
    """Start or join Ray; the device kind and the number of workers in force."""
    wanted = recipe.workers if isinstance(recipe.workers, int) else None
    cluster_ray.start(max(wanted or 2, cluster_ray.cores()))
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    device = recipe.device if recipe.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise RecipeError("device: cuda, but the cluster has no GPU; use device: cpu")
    return device, wanted or (gpus if device == "cuda" else 2)


_FIXED = ("trainer", "data", "model", "start_from", "continue", "batch_rows", "seed", "peft", "prune")


def _check_resume(recipe: TrainRecipe, folder: str, prints: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with another model, data set or batch; `prints`: fingerprints by data set."""
    found = shelf.published(folder)
    if not found:
        return
    about = shelf.about(found[-1])
    before, now = about["recipe"], recipe.plain()
    for name in _FIXED:
        if before.get(name) != now[name]:
            raise RecipeError(
                f"{folder} holds checkpoints of a run with {name}: {before.get(name)!r}, the recipe has {now[name]!r}; "
                "use another --out, or the old value"
            )
    parts, seen = about["data"].get("parts", []), about["data"].get("fingerprints", [])
    for (path, *_), old in zip(parts, seen, strict=False):
        if path in prints and prints[path] != old:
            raise RecipeError(
                f"{path} was packed anew: its fingerprint is {prints[path]!r}, the checkpoints in {folder} come from "
                f"{old!r}, and their place in it means other rows; use another --out, or pack the old data again"
            )


def _report(folder: str, shelf_folder: str, result: dict[str, Any], seconds: float, restarts: int) -> TrainReport:
    from trainers.log import read_metrics

    lines = read_metrics(folder)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    if not losses:
        raise RunError(f"{folder}: no step was trained")
    return TrainReport(
        steps=result["steps"],
        steps_done=result["steps_done"],
        first_loss=losses[min(losses)],
        last_loss=losses[max(losses)],
        validation={line["step"]: line["validation"] for line in lines if "validation" in line},
        checkpoint=next(reversed(shelf.published(shelf_folder)), None),
        export=result["export"],
        parameters=result["parameters"],
        tokens=next((line["tokens"] for line in reversed(lines) if "tokens" in line), 0),
        seconds=seconds,
        peak_memory=result["peak_memory"],
        restarts=restarts,
        losses=losses,
    )


def _documents(worst: Mapping[str, Any]) -> str:
    """The documents of a row, for a terminal: what `corpusmill why RUN DOC` takes."""
    found = worst["documents"]
    return f"documents {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")


class _Progress:
    """A bar on a terminal, plain lines elsewhere, nothing without a console."""

    def __init__(self, console: Console | None, steps: int, world: int, device: str):
        self.console, self.steps, self.what = console, steps, f"{world} {device} workers"
        self._bar: Any = None
        self._task: Any = None
        self._every = max(1, steps // 20)

    def __enter__(self) -> _Progress:
        if self.console is not None and self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(f"starting {self.what}", total=self.steps)
        else:
            self.say(f"train: {self.steps} steps on {self.what}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line of its own."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def line(self, line: dict[str, Any]) -> None:
        """Show one metric line."""
        step = line["step"]
        if "alarm" in line:
            self.say(f"step {step:>6}  ALARM: {line['alarm']}; rows {line['rows'][0]} to {line['rows'][1] - 1}")
            for worst in line.get("worst", []):
                self.say(f"             row {worst['row']}: loss {worst['loss']:.4f}, {_documents(worst)}")
            return
        if "memory_expected_gib" in line:
            share = "" if line["trained_share"] == 1 else f", {line['trained_share']:.2%} of them trained"
            memory = f"{line['memory_expected_gib']:.2f} GiB expected per device"
            self.say(f"{line['parameters']:,} parameters{share}; {memory}")
            return
        if "memory_peak_gib" in line:
            self.say(f"{line['memory_peak_gib']:.2f} GiB used at most on the first device")
            return
        if "loss" not in line:
            figures = ", ".join(
                f"{name} {value:.4f}" for name, value in line.items() if name not in ("step", "samples")
            )
            self.say(f"step {step:>6}  {figures}")
            return
        text = f"loss {line['loss']:.4f}  rate {line['rate']:.2e}  {line['tokens_per_second']:,.0f} tokens/s"
        if "reward" in line:
            text = f"reward {line['reward']:.4f}  {text}"
        if "mfu" in line:
            text += f"  MFU {line['mfu']:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step == 1 or step == self.steps or step % self._every == 0:
            self.say(f"step {step:>6}/{self.steps}  {text}")
