"""A recipe: an ordered list of typed steps and a few settings of the run. YAML and Python share one vocabulary.

    Recipe(steps=[Warc(path="crawl/*.warc.gz"), MainContent(), GopherQuality(min_words=50)])

is, in YAML, the same classes by the names of their files:

    steps:
      - crawl.warc: {path: "crawl/*.warc.gz"}
      - extract.main_content
      - filters.gopher_quality: {min_words: 50}
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, SerializeAsAny

from cluster import settings
from cluster.errors import RecipeError, nearest
from pipeline.step import Corpus, Filter, Source, Step, Transform

_ROOT = Path(__file__).parent
_FOLDERS = ("crawl", "extract", "clean", "filters", "dedup", "tokens", "pack")
_SHAPES = {cls.__name__ for cls in (Source, Transform, Filter, Corpus)}


class Recipe(settings.Settings):
    """What to do to a corpus, and within which limits. Only `steps` and `seed` decide the output."""

    steps: tuple[SerializeAsAny[Step], ...]
    seed: int = Field(0, description="of every random choice: samples, splits, shuffles")
    keep_scores: bool = Field(False, description="store every filter's scores, for `corpusmill whatif`")
    workers: NonNegativeInt | Literal["auto"] = Field(
        "auto", description="processes; auto: one per core; 0: in this process"
    )
    memory_per_worker: str = Field("2GB", description="limit that sorts, exchanges and buffers keep to, per worker")
    batch_documents: int = Field(1000, ge=1, description="rows that go through the steps at once")
    max_failed_share: float = Field(0.01, ge=0, le=1, description="share of failed rows of a stage that fails the run")
    document_timeout_s: float = Field(60, gt=0, description="a document that takes longer fails (found on the retry)")
    stall_timeout_s: float = Field(300, gt=0, description="a worker without any progress for so long is replaced")

    @property
    def memory_bytes(self) -> int:
        """memory_per_worker in bytes."""
        return parse_bytes(self.memory_per_worker)

    def dump(self) -> dict[str, Any]:
        """The resolved recipe: every field of every step, in the form that `load` takes."""
        fields = self.model_dump(mode="json", exclude={"steps"})
        steps = [{step.step_name(): step.model_dump(mode="json")} for step in self.steps]
        return {"steps": steps, **fields}


def load(path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `path.to.field=value` assignments applied. Raises RecipeError."""
    raw = settings.read_yaml(path)
    settings.refuse_other(raw, str(path), "run")
    for assignment in assignments:
        settings.assign(raw, assignment)
    return from_mapping(raw, where=str(path))


def from_mapping(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from the mapping that a YAML file holds. All wrong steps are reported at once."""
    entries = raw.get("steps")
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{where}: expected 'steps', a list with at least one step; found {entries!r}")
    steps: list[Step] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            steps.append(_make_step(entry, f"{where}: step {number}"))
        except RecipeError as error:
            problems.append(str(error))
    rest = {key: value for key, value in raw.items() if key != "steps"}
    try:
        recipe = settings.make(Recipe, {**rest, "steps": tuple(steps)}, where)
        _ = recipe.memory_bytes
    except RecipeError as error:
        problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def _make_step(entry: object, where: str) -> Step:
    if isinstance(entry, str):
        name, fields = entry, None
    elif isinstance(entry, Mapping) and len(entry) == 1:
        name, fields = next(iter(entry.items()))
    else:
        raise RecipeError(f"{where}: expected 'folder.name' or one 'folder.name: {{settings}}', found {entry!r}")
    return settings.make(step_class(str(name), where), fields, f"{where} {name}")


def step_class(name: str, where: str = "recipe", others: Iterable[str] = ()) -> type[Step]:
    """The one Step class in pipeline/<folder>/<file>.py. Raises RecipeError with the nearest name, of `others` too."""
    folder, _, file = name.partition(".")
    if folder not in _FOLDERS or not (_ROOT / folder / f"{file}.py").is_file() or not file.isidentifier():
        raise RecipeError(f"{where}: no step named '{name}'{nearest(name, [*step_docs(), *others])}")
    module = importlib.import_module(f"pipeline.{name}")
    found = [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Step) and cls.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RecipeError(
            f"{where}: '{name}' is no step: its file defines {len(found)} step classes{nearest(name, step_docs())}"
        )
    return found[0]


@functools.cache
def step_docs() -> dict[str, str]:
    """Every step's name and the first line of its class's docstring, read without importing anything."""
    docs: dict[str, str] = {}
    for folder in _FOLDERS:
        for path in sorted((_ROOT / folder).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(b, ast.Name) and b.id in _SHAPES for b in node.bases
                ):
                    docs[f"{folder}.{path.stem}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return docs


def parse_bytes(text: str) -> int:
    """Bytes in '512MB', '2GB', '1.5GiB' or a plain number (decimal units are powers of 1,000)."""
    units = {"": 1, "B": 1}
    units |= {prefix + "B": 1000**i for i, prefix in enumerate("KMGT", 1)}
    units |= {prefix + "iB": 1024**i for i, prefix in enumerate("KMGT", 1)}
    number = text.strip().rstrip("KMGTiB")
    unit = text.strip()[len(number) :]
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise RecipeError(f"'{text}' is no size; write 512MB, 2GB or 1.5GiB") from None
