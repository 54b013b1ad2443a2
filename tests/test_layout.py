"""The rules of the house: who imports whom, a test for every step, no long files, no drawers for odds and ends."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

import corpusmill
from pipeline.recipe import step_docs

ROOT = Path(__file__).parent.parent
SKIPPED = (".git", ".venv", "runs", "build", ".ruff_cache", ".mypy_cache", ".pytest_cache", ".hypothesis")
SOURCES = sorted(p for side in ("pipeline", "trainers", "cluster") for p in (ROOT / side).rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def top_level_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_imports_point_one_way() -> None:
    for path in SOURCES:
        side = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            other = name.split(".")[0]
            if side == "cluster":
                assert other not in ("pipeline", "trainers"), f"{path} imports {name}"
            if side == "pipeline":
                assert other != "trainers", f"{path} imports {name}"
            if side == "trainers" and other == "pipeline":
                assert name == "pipeline" or name.startswith("pipeline.schema"), f"{path} imports {name}"


def test_only_the_engine_imports_deepspeed() -> None:
    users = {str(p.relative_to(ROOT)) for p in SOURCES if any(n.split(".")[0] == "deepspeed" for n in imports(p))}
    assert users <= {"trainers/engine.py"}


def test_no_file_is_longer_than_500_lines() -> None:
    for path in [*SOURCES, *ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines"


def test_there_are_no_drawers() -> None:
    for path in SOURCES:
        assert path.stem not in ("utils", "util", "common", "helpers", "base", "misc"), path


@pytest.mark.parametrize("name", step_docs())
def test_every_step_has_a_test_and_says_what_it_does(name: str) -> None:
    folder, _, file = name.partition(".")
    tests = ROOT / "tests" / "pipeline" / folder
    own = tests / f"test_{file}.py"
    assert own.is_file(), f"{own.relative_to(ROOT)} is missing"
    assert step_docs()[name], f"{name}: its class has no docstring"


@pytest.mark.parametrize("name", step_docs())
def test_steps_import_light(name: str) -> None:
    heavy = {"ray", "torch", "numba", "tokenizers", "fasttext", "boto3", "transformers", "deepspeed", "sentencepiece"}
    path = ROOT / "pipeline" / (name.replace(".", "/") + ".py")
    assert not top_level_imports(path) & heavy


def test_shapes_are_inherited_once() -> None:
    shapes = {"Source", "Transform", "Filter", "Corpus"}
    steps = {}
    for name in step_docs():
        path = ROOT / "pipeline" / (name.replace(".", "/") + ".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and {b.id for b in node.bases if isinstance(b, ast.Name)} & (
                shapes | set(steps)
            ):
                steps[node.name] = {b.id for b in node.bases if isinstance(b, ast.Name)}
    derived = [name for name, bases in steps.items() if bases & (set(steps) - shapes)]
    assert not derived, f"steps that inherit from steps: {derived}"
    assert any(bases & shapes for bases in steps.values())


def test_the_readme_names_the_rooms_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in ("pipeline/", "trainers/", "cluster/", "recipes/", "tests/", "benchmarks/", "docker/"):
        assert (ROOT / room).is_dir()
        assert room in readme, f"README.md does not name {room}"
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_plans(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = []
    if path.name == "chat.yaml":  # names the model that will be tuned, whose tokenizer must be there
        from tokenizers import Tokenizer, models

        Tokenizer(models.BPE({"</s>": 0}, [])).save(str(tmp_path / "tokenizer.json"))
        changes = ["--set", f"tokens.chat.tokenizer={tmp_path}"]
    assert corpusmill.main(["plan", str(path), *changes]) == 0, capsys.readouterr().err


def test_no_machine_path_and_no_registry_host() -> None:
    forbidden = re.compile(r"(?<![\w.])/(work|root)/|pypi\.org|pythonhosted|registry\.npmjs|deb\.debian")
    for path in (
        p
        for top in sorted(ROOT.iterdir())
        if top.name not in SKIPPED
        for p in ([top] if top.is_file() else top.rglob("*"))
    ):
        text_file = path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cfg", "")
        if path.is_file() and text_file and "__pycache__" not in path.parts and path != Path(__file__):
            found = forbidden.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"
