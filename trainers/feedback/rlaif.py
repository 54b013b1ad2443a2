"""Feedback by a model instead of people: labels for a reward model (canonical), or its score as the reward (direct).

Lee et al. 2023 (RLAIF vs. RLHF): canonical, section 2.2.1: the judge labels pairs, a reward model learns from the
labels, the policy learns from the reward model. Direct (d-RLAIF), section 2.2.2: the judge's expected score is the
reward at once, and nothing is trained but the policy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.errors import RecipeError
from cluster.settings import Settings, make
from trainers.feedback.judge import RATE, Comparing, Rating, label, rate
from trainers.feedback.stages import as_chat, same_loop, spread, stage, trained, write_jsonl, write_texts
from trainers.feedback.writer import Draw, Endpoint, Model, Server, Writer
from trainers.recipe import from_mapping
from trainers.workers import Crew, crewed


class Rlaif(Settings):
    """Settings of the canonical chain."""

    model: str = Field(description="transformers folder of the policy to begin with")
    judge: Model = Field(description="who labels")
    comparing: Comparing = Field(Comparing(mode="log_prob"), description="how it is asked")  # type: ignore[call-arg]
    data: tuple[str, ...] = Field(description="JSONL or Parquet files with `prompt`")
    draw: Draw = Field(Draw(temperature=1.0, samples=2), description="how the policy answers; two answers or more")  # type: ignore[call-arg]
    seq_len: int = Field(2048, gt=0, description="tokens per packed row")
    reward: dict[str, Any] = Field(default_factory=dict, description="recipe fields of the reward model's training")
    policy: dict[str, Any] = Field(
        description="recipe fields of the policy's training: trainer: ppo (or grpo) learns from the reward model, "
        "preference from the labels; REWARD, LABELS and PROMPTS as whole texts become their paths"
    )
    workers: int = Field(2, gt=0, description="processes that answer at a time")
    chunk: int = Field(32, gt=0, description="prompts per task of a process")


def rlaif(settings: Rlaif, out: str, judge: Writer | None = None, crew: Crew | None = None) -> dict[str, Any]:
    """Answers → labels of both orders → reward model → policy. Figures and folders of each stage.

    A finished stage is not redone, and one that was stopped goes on from its checkpoints. `judge` is asked instead of
    settings.judge. Raises RecipeError for a recipe of either training before anything starts.
    """
    with crewed(crew) as own:
        return _chain(settings, out, judge, own)


def recipes(settings: Rlaif, top: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipes of the reward model and of the policy. PPO begins its critic with the reward model, as in Ouyang et
    al. 2022, unless the recipe says otherwise."""
    paths = {"REWARD": top / "reward" / "model", "LABELS": top / "packed", "PROMPTS": top / "prompts.jsonl"}
    learn = {"start_from": settings.model, **settings.reward, "trainer": "reward", "data": str(paths["LABELS"])}
    given = dict(settings.policy)
    if given.get("trainer") in ("ppo", "grpo"):
        asked = {"prompts": "PROMPTS", "reward_model": "REWARD"} | (
            {"critic": "REWARD"} if given["trainer"] == "ppo" else {}
        )
        given["objective"] = asked | given.get("objective", {})
    policy = {"data": "LABELS", "start_from": settings.model, **given}
    return learn, _named(policy, {name: str(path) for name, path in paths.items()})


def _chain(settings: Rlaif, out: str, judge: Writer | None, crew: Crew) -> dict[str, Any]:
    from trainers.answers import read_examples, write_answers

    top = Path(out).absolute()
    for name, recipe in zip(("reward", "policy"), recipes(settings, top), strict=True):
        from_mapping(recipe, name)
    same_loop(top, settings.model_dump(mode="json"))
    if settings.draw.samples < 2:
        raise RecipeError("rlaif: a judge compares two answers or more; set draw.samples: 2")
    prompts = [row["prompt"] for path in settings.data for row in read_examples(path)]
    drawn = spread(
        write_texts, settings.model, [as_chat(p) for p in prompts], settings.draw.model_dump(mode="json"),
        top / "answers", workers=settings.workers, chunk=settings.chunk, crew=crew,
    )  # fmt: skip
    examples = [
        {"prompt": prompt, "answers": texts}
        for prompt, row in zip(prompts, drawn, strict=True)
        if len(texts := list(dict.fromkeys(row["texts"]))) > 1
    ]
    write_jsonl(top / "examples.jsonl", examples)
    write_jsonl(top / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])

    def labelled() -> dict[str, Any]:
        found = label(examples, judge or settings.judge.open(), settings.comparing, str(top / "labels"))
        if not found.agreed:
            raise RecipeError(f"{top}/labels: the judge agreed with itself on none of {found.pairs} pairs")
        source = str(top / "labels" / "preferences.jsonl")
        write_answers(source, settings.model, str(top / "packed"), seq_len=settings.seq_len)
        return {name: getattr(found, name) for name in ("pairs", "agreed", "ties", "unreadable", "position_bias")}

    labels = stage(top / "labels.json", labelled)
    learn, follow = recipes(settings, top)
    reward = stage(top / "reward.json", lambda: trained(learn, top / "reward", crew))
    policy = stage(top / "policy.json", lambda: trained(follow, top / "policy", crew))
    return {"labels": labels, "reward": reward, "policy": policy}


def _named(value: Any, folders: dict[str, str]) -> Any:
    """The value with REWARD and LABELS, as whole texts, replaced by their folders."""
    if isinstance(value, dict):
        return {key: _named(one, folders) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_named(one, folders) for one in value]
    return folders.get(value, value) if isinstance(value, str) else value


def direct_reward(judge: Writer, settings: Rating) -> Callable[[Sequence[Any], Sequence[str]], list[float]]:
    """d-RLAIF: `reward(prompts, answers)` in [-1, 1], the judge's expected score mapped from its scale."""
    middle, half = (settings.highest + settings.lowest) / 2, (settings.highest - settings.lowest) / 2

    def reward(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        return [(score - middle) / half for score in rate(judge, prompts, answers, settings)]

    return reward


def direct(
    records: Sequence[Mapping[str, Any]],
    answers: Sequence[str],
    *,
    judge: str,
    template: str = RATE,
    lowest: int = 1,
    highest: int = 9,
    lead: str = "",
) -> list[float]:
    """d-RLAIF as a rule of a reward recipe: `trainers.feedback.rlaif:direct: {weight: 1, judge: FOLDER or URL#MODEL}`.

    All answers of a rank's iteration are asked about at once. A record's `prompt` is text or messages; the other
    settings are those of `Rating`. In [-1, 1].
    """
    settings = Rating(template=template, lowest=lowest, highest=highest, lead=lead)
    return direct_reward(_opened(judge), settings)([record["prompt"] for record in records], answers)


@functools.lru_cache(maxsize=4)
def _opened(judge: str) -> Writer:
    if judge.startswith(("http://", "https://")):
        url, _, model = judge.partition("#")
        return Server(make(Endpoint, {"url": url, "model": model}, "judge"))
    return make(Model, {"folder": judge}, "judge").open()
