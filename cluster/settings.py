"""Typed settings: frozen pydantic classes, read from YAML or Python, with errors that name the field.

A settings class's fields are its whole configuration. Unknown fields are refused with the nearest valid
name; `--set path.to.field=value` changes a field in the raw mapping before the class is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from cluster.errors import RecipeError, nearest


class Settings(BaseModel):
    """Base of every settings class: immutable, keyword only, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


S = TypeVar("S", bound=Settings)


def make(cls: type[S], fields: Mapping[str, Any] | None, where: str) -> S:
    """Make `cls` from raw fields; `where` names the place in the recipe for the error text.

    Raises RecipeError with one line per wrong field.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise RecipeError(f"{where}: expected a mapping of settings, found {type(fields).__name__} {fields!r}")
    try:
        return cls(**dict(fields or {}))
    except ValidationError as error:
        lines = []
        wrong: dict[str, tuple[list[str], Any]] = {}  # a field of several types has one problem for each
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"] if not _is_type(part))
            if problem["type"] == "extra_forbidden":
                known = [field.alias or key for key, field in cls.model_fields.items()]
                lines.append(f"{where}: no setting named '{name}'{nearest(name, known)}")
            elif problem["type"] == "missing":
                lines.append(f"{where}: setting '{name}' is required")
            else:
                wrong.setdefault(name, ([], problem["input"]))[0].append(problem["msg"].removeprefix("Value error, "))
        for name, (messages, found) in wrong.items():
            lines.append(f"{where}: setting '{name}': {', or: '.join(messages)}; found {found!r}")
        raise RecipeError("\n".join(lines)) from None


def _is_type(part: str | int) -> bool:
    """Whether a part of pydantic's location names a member of a union, not a field."""
    return isinstance(part, str) and (
        part.startswith(("constrained-", "literal[", "list[", "dict[", "tuple["))
        or part in ("int", "str", "float", "bool")
    )


def told(fields: Mapping[str, FieldInfo]) -> list[str]:
    """A line per setting of a class's `model_fields`: name, default, meaning, and the values that it can have."""
    lines = []
    for name, field in fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        choices = [str(one) for one in _choices(field.annotation)]
        names = "" if all(one in (field.description or "") for one in choices) else f" ({', '.join(choices)})"
        lines.append(f"  {field.alias or name:<22} {default:<16} {field.description or ''}{names}")
    return lines


def _choices(kind: object) -> list[object]:
    """The values that a setting's type names, those of a union included."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [one for part in get_args(kind) if get_origin(part) is not dict for one in _choices(part)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError when it is absent, unreadable or not a mapping."""
    import yaml

    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"no recipe at '{path}'{nearest(str(path), siblings)}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping at the top, found {type(raw).__name__}")
    return raw


def command_for(raw: Mapping[str, Any]) -> str:
    """The command whose recipe this looks like, by the fields that only its recipes have."""
    if isinstance(raw.get("steps"), list) and "base" not in raw:
        return "run"
    if "trainer" in raw or "stages" in raw:
        return "train"
    if "base" in raw and "parameters" in raw:
        return "scale shape"
    if "base" in raw or "models" in raw:
        return "scale sweep"
    if {"data", "schedule", "batch_rows", "engine", "start_from", "objective"} & set(raw) - {"data"}:
        return "train"
    return "feedback"


def refuse_other(raw: Mapping[str, Any], where: str, *commands: str) -> None:
    """Refuse a recipe that another command takes, before all its fields are told to be unknown."""
    found = command_for(raw)
    if found not in commands and found != "feedback":
        raise RecipeError(f"{where}: a recipe of `corpusmill {found}`, not of `corpusmill {commands[0]}`")


def assign(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `path.to.field=value` to a raw mapping in place; the value is parsed as YAML.

    A part of the path that meets a list of single-key mappings (a recipe's `steps`) selects by that key, so
    `filters.gopher_quality.min_words=80` reaches into `steps: [- filters.gopher_quality: {…}]`. Every
    occurrence of the step is changed; `name#2` selects the second one alone.
    """
    import yaml

    path, equals, text = assignment.partition("=")
    if not equals:
        raise RecipeError(f"--set {assignment}: expected path.to.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment}: the value is not valid YAML: {error}") from None
    for step_list in (raw.get("steps"),):
        if not isinstance(step_list, list):
            continue
        chosen = _steps_named(step_list, path)
        names, first = [_step_name(entry) for entry in step_list], path.partition(".")[0]
        if chosen is None and "." in path and (first == "steps" or first not in raw) and all("." in n for n in names):
            step = ".".join(path.removeprefix("steps.").split(".")[:2])
            raise RecipeError(f"--set {assignment}: the recipe has no step named '{step}'{nearest(step, names)}")
        if chosen is not None:
            indices, field = chosen
            for index in indices:
                name = _step_name(step_list[index])
                settings = dict((step_list[index][name] or {}) if isinstance(step_list[index], dict) else {})
                _assign_in(settings, field.split("."), value, assignment)
                step_list[index] = {name: settings}
            return
    _assign_in(raw, path.split("."), value, assignment)


def assigned(cls: type[S], assignments: Sequence[str], where: str) -> S:
    """`cls` from `field=value` assignments alone. Raises RecipeError."""
    raw: dict[str, Any] = {}
    for assignment in assignments:
        assign(raw, assignment)
    return make(cls, raw, where)


def _step_name(entry: object) -> str:
    return next(iter(entry)) if isinstance(entry, dict) and entry else str(entry)


def _steps_named(steps: list[Any], path: str) -> tuple[list[int], str] | None:
    """Indices of the steps that `path` begins with, and the rest of the path; None if it names no step."""
    names = [_step_name(entry) for entry in steps]
    for name in sorted(set(names), key=len, reverse=True):
        rest = path.removeprefix("steps.").removeprefix(name)
        if rest == path.removeprefix("steps."):
            continue
        indices = [i for i, other in enumerate(names) if other == name]
        if rest.startswith("#"):
            number, _, field = rest[1:].partition(".")
            if not number.isdigit() or not 1 <= int(number) <= len(indices):
                raise RecipeError(f"--set {path}: '{name}' occurs {len(indices)} times, '#{number}' is none of them")
            return [indices[int(number) - 1]], field
        if rest.startswith("."):
            return indices, rest[1:]
    return None


def _assign_in(mapping: dict[str, Any], keys: list[str], value: object, assignment: str) -> None:
    for key in keys[:-1]:
        inner = mapping.get(key)
        if inner is None:
            inner = mapping[key] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {assignment}: '{key}' is {inner!r}, not a mapping with fields")
        mapping = inner
    if not keys[-1]:
        raise RecipeError(f"--set {assignment}: the path ends without a field")
    mapping[keys[-1]] = value
