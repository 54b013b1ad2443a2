"""Recipe → stages. Refuses what cannot work, in well under a second, before Ray starts.

Steps that look at one document at a time are fused: a partition is read, goes through all of them in memory and
is written once. A step that needs the whole corpus begins a stage. A stage's fingerprint covers its steps, their
settings and code, the run's seed and its input: an unchanged stage is found finished, a changed one starts fresh.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.schema import Row
from pipeline.step import Corpus, Source, Step

_ROOT = Path(__file__).parent.parent
_BRIDGES = {
    (Row.RECORD, Row.DOCUMENT): "extract.main_content",
    (Row.DOCUMENT, Row.TOKENS): "tokens.encode",
    (Row.RECORD, Row.TOKENS): "extract.main_content and tokens.encode",
}

MAKERS = {"tokenizer": "tokens.train_bpe", "perplexity_model": "filters.train_perplexity"}
"""The step that one puts before another that needs an artifact."""


@dataclass(frozen=True)
class Stage:
    """A part of a recipe that runs in one go: an entry that reads or decides, then fused per-document steps."""

    number: int
    entry: Step | None
    """A Source or a Corpus step; None when rows only change their type (the stage starts from written rows)."""

    steps: tuple[Step, ...]
    gives: Row
    fingerprint: str

    @property
    def name(self) -> str:
        return (self.entry or self.steps[0]).step_name()

    @property
    def folder(self) -> str:
        """Its folder's name below OUT/stages."""
        return f"{self.number:02d}-{self.name}-{self.fingerprint[:12]}"

    @property
    def all_steps(self) -> tuple[Step, ...]:
        return ((self.entry,) if self.entry else ()) + self.steps

    @property
    def takes(self) -> Row:
        return self.all_steps[0].takes


def plan(recipe: Recipe, out: str | None = None) -> list[Stage]:
    """The stages of a recipe. Raises RecipeError naming every step that is out of place or cannot work.

    `out`: the run's folder, where it is known; a source that would read from there is refused.
    """
    problems = _misplaced(recipe.steps) + (_reads_itself(recipe.steps[0], out) if out else [])
    for number, step in enumerate(recipe.steps, 1):
        try:
            step.check()
        except RecipeError as error:
            text = str(error).removeprefix(f"{step.step_name()}: ")
            problems.append(f"step {number} {step.step_name()}: {text}")
    if problems:
        raise RecipeError("\n".join(problems))
    groups: list[tuple[Step | None, list[Step]]] = []
    for step in recipe.steps:
        if isinstance(step, Source | Corpus):
            groups.append((step, []))
        elif step.takes != step.gives and step.gives == Row.TOKENS and not _passes_rows(groups[-1]):
            groups.append((None, [step]))
        else:
            groups[-1][1].append(step)
    stages: list[Stage] = []
    for number, (entry, steps) in enumerate(groups):
        before = stages[-1].fingerprint if stages else ""
        all_steps = ([entry] if entry else []) + steps
        print_ = fingerprint(all_steps, before, {"seed": recipe.seed, "keep_scores": recipe.keep_scores})
        stages.append(Stage(number, entry, tuple(steps), all_steps[-1].gives, print_))
    return stages


def told(recipe: Recipe, out: str | None = None) -> list[str]:
    """Lines of `corpusmill plan`: the stages and their steps; with `out`, which stages are finished there."""
    lines = []
    for stage in plan(recipe, out):
        done = ""
        if out:
            path = storage.join(storage.absolute(out), "stages", stage.folder, "stage.json")
            done = "  finished" if storage.exists(path) else "  to do"
        lines.append(f"stage {stage.number}  {stage.fingerprint[:12]}  {stage.takes} → {stage.gives}{done}")
        for step in stage.all_steps:
            changed = step.model_dump(exclude_defaults=True)
            lines.append(f"    {step.step_name()}" + (f"  {changed}" if changed else ""))
    return lines


def _reads_itself(source: Step, out: str) -> list[str]:
    """Why the same command would have other input the second time: what the run has written."""
    given = getattr(source, "path", ())
    written = [storage.join(out, name) for name in ("documents/part-00000.parquet", "report.html", "run.json")]
    return [
        f"step 1 {source.step_name()}: path '{path}' takes in what this run writes to {out}, so doing it again would "
        "read its own documents; name the inputs, as in 'runs/{web,code}/…', or choose another --out"
        for path in ((given,) if isinstance(given, str) else given)
        if any(storage.takes_in(path, file) for file in written)
    ]


def _passes_rows(group: tuple[Step | None, list[Step]]) -> bool:
    """Whether the group leaves its input rows as they are, so that the written rows are still the ones to read."""
    entry, steps = group
    return isinstance(entry, Corpus) and not entry.changes_rows and not steps


def _misplaced(steps: Sequence[Step]) -> list[str]:
    problems: list[str] = []
    rows, made = Row.NOTHING, set[str]()
    for number, step in enumerate(steps, 1):
        name = f"step {number} {step.step_name()}"
        if isinstance(step, Source) != (number == 1):
            if number == 1:
                problems.append(f"{name}: a recipe begins with a source (crawl.warc, crawl.site, crawl.corpus)")
            else:
                problems.append(f"{name}: a source can only be the first step")
        elif step.takes != rows:
            bridge = _BRIDGES.get((rows, step.takes))
            hint = f"; put {bridge} before it" if bridge else "; move it"
            problems.append(f"{name}: takes {step.takes} rows, but the steps before it give {rows} rows{hint}")
        made |= set(step.provides())
        for artifact in step.needs():
            if artifact not in made:
                maker = MAKERS.get(artifact, "a step that makes it")
                problems.append(f"{name}: needs a {artifact}: name one in its settings, or put {maker} before it")
        if isinstance(step, Corpus) and step.makes:
            made.add(step.makes)
        rows = step.gives
    return problems


def fingerprint(steps: Sequence[Step], before: str, run: dict[str, Any]) -> str:
    """128-bit hex digest of everything that decides the output of these steps."""
    facts = [
        before,
        run,
        [
            [s.step_name(), s.model_dump(mode="json"), code_version(type(s).__module__), s.input_identity()]
            for s in steps
        ],
    ]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def code_version(module: str) -> str:
    """Digest of a module's code and of all project modules that it imports, at any depth; comments do not count."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(_imports(module, set())):
        digest.update(f"{name}:{_code(name)[0]}".encode())
    return digest.hexdigest()


def _imports(module: str, seen: set[str]) -> set[str]:
    if module in seen:
        return seen
    seen.add(module)
    for name in _code(module)[1]:
        _imports(name, seen)
    return seen


@functools.cache
def _code(module: str) -> tuple[str, tuple[str, ...]]:
    """(digest of the code without comments and docstrings, the project modules that it imports)."""
    path = _module_file(module)
    if path is None:
        return "", ()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        body = getattr(node, "body", None)
        is_scope = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_scope and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    mine = tuple(sorted(n for n in names if n.split(".")[0] in ("pipeline", "cluster") and _module_file(n)))
    # The run's driver decides who works when, never what comes out; step modules import it for its types alone.
    mine = tuple(n for n in mine if n != "pipeline.run")
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=16).hexdigest(), mine


def _module_file(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    if module.split(".")[0] in ("pipeline", "cluster"):
        return path / "__init__.py" if (path / "__init__.py").is_file() else None
    import importlib.util

    spec = importlib.util.find_spec(module) if "." not in module else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
