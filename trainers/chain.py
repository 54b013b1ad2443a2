"""Several training runs as one recipe: each stage begins with a model that an earlier one made. Imports no torch.

    stages:
      sft:    {trainer: sft, …}
      reward: {trainer: reward, start_from: "{sft}", …}
      ppo:    {trainer: ppo, start_from: "{sft}", objective: {reward_model: "{reward}", …}, …}

`{name}` stands for the exported model of that stage, OUT/name/model. The same command goes on where it was stopped:
a stage that is done is not run again, the one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import storage
from cluster.errors import DataError, RecipeError, nearest
from cluster.page import document, table
from cluster.settings import assign, read_yaml
from trainers.page import write_page
from trainers.recipe import TrainRecipe, from_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from trainers.train import TrainReport
    from trainers.workers import Crew

_NAME = re.compile(r"\{(\w+)\}")


def is_chain(path: str) -> bool:
    """Whether a recipe file has stages."""
    return "stages" in read_yaml(path)


def load_chain(path: str, changes: Sequence[str] = (), out: str = "OUT") -> dict[str, TrainRecipe]:
    """The recipes of a file by stage, with `stages.name.field=value` changes applied. Raises RecipeError."""
    raw = read_yaml(path)
    for change in changes:
        assign(raw, change)
    return stages_of(raw, out, str(path))


def stages_of(raw: Mapping[str, Any], out: str, where: str = "recipe") -> dict[str, TrainRecipe]:
    """The recipes of all stages, in order, with the models of earlier ones filled in."""
    stages = raw.get("stages")
    if not isinstance(stages, Mapping) or not stages or set(raw) != {"stages"}:
        raise RecipeError(f"{where}: expected `stages:` with a training recipe per name, and nothing else")
    found: dict[str, TrainRecipe] = {}
    for name, given in stages.items():
        models = {before: storage.join(storage.absolute(out), before, "model") for before in found}
        found[name] = from_mapping(_filled(given, models, f"{where}: stages.{name}"), f"{where}: stages.{name}")
        if not found[name].export:
            raise RecipeError(f"{where}: stages.{name}: export: false, but later stages and the report need its model")
    return found


def _filled(value: Any, models: Mapping[str, str], where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(one, models, where) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, models, where) for one in value]
    if isinstance(value, str) and (match := _NAME.fullmatch(value)):
        if match[1] not in models:
            raise RecipeError(f"{where}: no earlier stage named '{match[1]}'{nearest(match[1], list(models))}")
        return models[match[1]]
    return value


def train_chain(
    stages: Mapping[str, TrainRecipe], out: str, console: Console | None = None, crew: Crew | None = None
) -> dict[str, TrainReport]:
    """Run all stages in order, and write OUT/report.md and report.html. What is done is not done again."""
    from trainers.train import train

    reports: dict[str, TrainReport] = {}
    for number, (name, recipe) in enumerate(stages.items(), 1):
        if console is not None:
            console.print(f"stage {number} of {len(stages)}: {name} ({recipe.trainer})", highlight=False)
        reports[name] = train(recipe, storage.join(out, name), console, crew)
    Path(out, "report.md").write_text(report(stages, out))
    Path(out, "report.html").write_text(page(stages, out), encoding="utf-8")
    return reports


_FIGURES = ("loss", "validation", "validation_accuracy", "reward", "validation_reward", "kl", "answer_tokens")
_MEANS = "First and last are means over the first and last tenth of what was logged."


def _rows(stages: Mapping[str, TrainRecipe], out: str) -> Iterator[tuple[str, str, int, str, float, float]]:
    """(stage, trainer, steps, figure, first, last) from the stages' metrics."""
    from trainers.log import read_metrics

    for name, recipe in stages.items():
        metrics = read_metrics(str(Path(out, name)))
        steps = max((line["step"] for line in metrics), default=0)
        for figure in _FIGURES:
            values = [line[figure] for line in metrics if figure in line]
            if values:
                part = max(1, len(values) // 10)
                first, last = (sum(some) / len(some) for some in (values[:part], values[-part:]))
                yield name, recipe.trainer, steps, figure, first, last


def rewrite_report(out: str) -> str:
    """Write OUT/report.html of a training run, or of `stages:` that are done, anew from its metrics. Its path."""
    path, told = Path(out, "report.html"), Path(out, "report.md")
    if told.is_file() and (found := re.search(r"```json\n(.*?)\n```", told.read_text("utf-8"), re.DOTALL)):
        stages = {name: from_mapping(given, f"{told}: {name}") for name, given in json.loads(found[1]).items()}
        for name in stages:
            write_page(str(Path(out, name)))
        path.write_text(page(stages, out), encoding="utf-8")
        return str(path)
    if not Path(out, "metrics.jsonl").is_file():
        raise DataError(f"{out}: neither run.json nor metrics.jsonl there; give a folder that `run` or `train` wrote")
    return write_page(out)


def report(stages: Mapping[str, TrainRecipe], out: str) -> str:
    """All stages as Markdown, from their metrics: what each began and ended with, and its settings."""
    lines = [
        "# What was trained",
        "",
        "| stage | trainer | steps | figure | first | last |",
        "|---|---|---|---|---|---|",
    ]
    for name, trainer, steps, figure, first, last in _rows(stages, out):
        lines.append(f"| {name} | {trainer} | {steps} | {figure} | {first:.4f} | {last:.4f} |")
    lines += ["", _MEANS, ""]
    for name, recipe in stages.items():
        lines.append(
            f"- `{name}/model` began with {recipe.start_from or 'new weights'}; settings in `{name}/recipe.yaml`."
        )
    lines += ["", "```json", json.dumps({name: recipe.plain() for name, recipe in stages.items()}, indent=1), "```", ""]
    return "\n".join(lines)


def page(stages: Mapping[str, TrainRecipe], out: str) -> str:
    """The same figures as a page, with a link to every stage's own curves."""
    rows = [
        f'<tr><td><a href="{html.escape(name)}/report.html">{html.escape(name)}</a><td>{html.escape(trainer)}'
        f"<td class=n>{steps:,}<td>{figure.replace('_', ' ')}<td class=n>{first:.4f}<td class=n>{last:.4f}"
        for name, trainer, steps, figure, first, last in _rows(stages, out)
    ]
    head = "<th>stage<th>trainer<th class=n>steps<th>figure<th class=n>first<th class=n>last"
    began = "".join(
        f"<li><code>{html.escape(name)}/model</code> began with {html.escape(recipe.start_from or 'new weights')}"
        for name, recipe in stages.items()
    )
    title = Path(out).resolve().name
    body = f"<h1>{html.escape(title)}</h1>{table(head, rows)}<p class=dim>{_MEANS}</p><ul>{began}</ul>"
    return document(f"{title} · corpusmill", body)
