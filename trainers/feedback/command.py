"""`corpusmill feedback ACTION RECIPE`: what the model's own samples and judges are good for, each by a YAML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.errors import RecipeError
from cluster.settings import Settings, assign, make, read_yaml, refuse_other
from trainers.feedback.judge import Comparing, put
from trainers.feedback.page import page
from trainers.feedback.writer import Model

ACTIONS = ("judge", "select", "solve", "rlaif", "spin", "self_rewarding", "self_instruct", "evol_instruct")


class JudgeFile(Settings):
    """What `feedback judge` reads."""

    data: tuple[str, ...] = Field(description="files of prompts with answers, or chosen and rejected")
    judge: Model = Field(description="who judges")
    comparing: Comparing = Field(Comparing(), description="how it is asked")  # type: ignore[call-arg]


class SelectFile(Settings):
    """What `feedback select` reads."""

    data: tuple[str, ...] = Field(description="files of problems: solutions or answers, right, scores, steps, tokens")
    methods: tuple[str, ...] = Field(("majority", "oracle"), description="see METHODS of select.py")
    ns: tuple[int, ...] = Field((1, 2, 4), description="answers per problem")
    draws: int = Field(64, gt=0, description="subsets per problem, where there are more")
    seed: int = Field(0, ge=0, description="of the subsets")


def feedback(action: str, recipe: str, out: str, changes: Sequence[str] = ()) -> Iterator[str]:
    """Do it, write OUT/report.json and OUT/report.html, and tell the figures line by line. The same call again
    continues."""
    raw = read_yaml(recipe)
    refuse_other(raw, recipe, f"feedback {action}")
    for change in changes:
        assign(raw, change)
    found = _done(action, raw, out, recipe)
    if action in ("select", "solve"):
        from trainers.feedback.select import Line, told

        yield from told([Line(**line) for line in found])
    else:
        for entry in found if isinstance(found, list) else [found]:
            yield json.dumps(entry, ensure_ascii=False)
    put(Path(out, "report.json"), json.dumps(found, indent=1) + "\n")
    put(Path(out, "report.html"), page(action, found, out, raw))


def _done(action: str, raw: dict[str, Any], out: str, where: str) -> Any:
    from dataclasses import asdict

    from trainers.answers import read_examples

    if action == "judge":
        from trainers.feedback.judge import label

        settings = make(JudgeFile, raw, where)
        rows = [row for path in settings.data for row in read_examples(path)]
        return asdict(label(rows, settings.judge.open(), settings.comparing, out))
    if action == "select":
        from trainers.feedback.select import against_n, candidates_of

        chosen = make(SelectFile, raw, where)
        problems = [candidates_of(row) for path in chosen.data for row in read_examples(path)]
        return [asdict(x) for x in against_n(problems, chosen.methods, chosen.ns, draws=chosen.draws, seed=chosen.seed)]
    if action == "solve":
        from trainers.feedback.solve import Solve, solve

        return [asdict(line) for line in solve(make(Solve, raw, where), out)]
    if action == "rlaif":
        from trainers.feedback.rlaif import Rlaif, rlaif

        return rlaif(make(Rlaif, raw, where), out)
    if action == "spin":
        from trainers.feedback.spin import Spin, spin

        return spin(make(Spin, raw, where), out)
    if action == "self_rewarding":
        from trainers.feedback.self_rewarding import SelfRewarding, self_rewarding

        return self_rewarding(make(SelfRewarding, raw, where), out)
    if action == "self_instruct":
        from trainers.feedback.self_instruct import SelfInstruct, self_instruct

        return self_instruct(make(SelfInstruct, raw, where), out)
    if action == "evol_instruct":
        from trainers.feedback.evol_instruct import EvolInstruct, evol_instruct

        return evol_instruct(make(EvolInstruct, raw, where), out)
    raise RecipeError(f"no action named '{action}'; known are {', '.join(ACTIONS)}")
