"""A judge compares two answers in both orders; only where it says the same twice does it count. Imports no torch."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cluster.errors import DataError
from cluster.settings import Settings
from trainers.feedback.writer import Draw, Remember, Writer, key_of, user

COMPARE = """Two assistants answered the same request. Which answer does better what was asked? First of all it must do
exactly what the request says; then it should be right, helpful and harmless. Length is no merit, and the order of the
answers says nothing.

[Request]
{prompt}

[Answer {first_label}]
{first}

[Answer {second_label}]
{second}

"""
ENDING = {
    "answer": "Reply with {first_label} or {second_label} alone, for the better answer.",
    "log_prob": "Reply with {first_label} or {second_label} alone, for the better answer.",
    "reasoning": "Compare them in a few sentences, then write on a last line: Better: {first_label} or "
    "Better: {second_label}",
}
RATE = """Rate how well the answer does what was asked, from {lowest} (useless) to {highest} (excellent).

[Request]
{prompt}

[Answer]
{answer}

Reply with one digit alone, your rating."""


class Comparing(Settings):
    """How a judge is asked about two answers."""

    mode: Literal["answer", "reasoning", "log_prob"] = Field(
        "answer", description="read its reply; let it reason first; or compare the probabilities of the two labels"
    )
    labels: tuple[str, str] = Field(("A", "B"), description="names of the answer shown first and of the second")
    template: str | None = Field(
        None, description="text with {prompt}, {first}, {second}; None: a plain question that names the labels"
    )
    votes: int = Field(1, gt=0, description="replies per order, of which the majority counts; draw at temperature > 0")
    temperature: float = Field(0.0, ge=0, description="of the replies")
    max_tokens: int = Field(512, gt=0, description="longest reply")
    seed: int = Field(0, ge=0, description="of the replies")
    batch: int = Field(64, gt=0, description="pairs that are asked about at once, and then written down")

    def text(self, prompt: str, first: str, second: str) -> str:
        """What the judge reads."""
        template = self.template or COMPARE + ENDING[self.mode]
        named = {"first_label": self.labels[0], "second_label": self.labels[1]}
        return fill(template, prompt=prompt, first=first, second=second, **named)


def fill(template: str, **values: Any) -> str:
    """The template with each {name} replaced, once; braces of the values and unknown ones stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), template)


def verdict(text: str, labels: tuple[str, str], mode: str = "answer") -> int | None:
    """0 when a reply names the answer shown first, 1 for the second, None for neither or both.

    With reasoning the last label named decides, for the reasons before it name both.
    """
    found = [(m.start(), i) for i, label in enumerate(labels) for m in re.finditer(_word(label), text)]
    if not found:
        return None
    if mode == "reasoning":
        return max(found)[1]
    named = {i for _, i in found}
    return named.pop() if len(named) == 1 else None


def _word(label: str) -> str:
    before = r"(?<!\w)" if label[0].isalnum() else ""
    return before + re.escape(label) + (r"(?!\w)" if label[-1].isalnum() else "")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; `gold` is 0 or 1 where people have said which is better."""

    prompt: Any
    """Text or messages."""
    answers: tuple[str, str]
    gold: int | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a pair, in terms of the pair's answers: 0, 1, or None for neither."""

    straight: int | None
    """When answer 0 was shown first."""
    swapped: int | None
    """When answer 1 was shown first."""
    probability: float | None = None
    """log_prob: of answer 0 being better, the mean over both orders."""

    @property
    def label(self) -> int | None:
        """The answer that both orders call better; None when they differ."""
        return self.straight if self.straight == self.swapped else None


def both_orders(first_shown: int | None, swapped_shown: int | None) -> Judgement:
    """From verdicts about places (0: the answer shown first) to verdicts about answers."""
    return Judgement(first_shown, None if swapped_shown is None else 1 - swapped_shown)


def compare(writer: Writer, pairs: Sequence[Pair], settings: Comparing) -> list[Judgement]:
    """Ask about each pair in both orders."""
    chats = []
    for pair in pairs:
        prompt = prompt_text(pair.prompt)
        a, b = pair.answers
        chats += [user(settings.text(prompt, a, b)), user(settings.text(prompt, b, a))]
    if settings.mode == "log_prob":
        shares = [math.exp(a - _log_sum(a, b)) for a, b in writer.label_log_probs(chats, settings.labels)]
        return [
            Judgement(_larger(p, 0), _larger(q, 1), (p + 1 - q) / 2)
            for p, q in zip(shares[::2], shares[1::2], strict=True)
        ]
    fields = settings.model_dump(include={"temperature", "max_tokens", "seed"})
    draw = Draw(**fields, samples=settings.votes)
    said = [
        majority_of([verdict(text, settings.labels, settings.mode) for text in texts])
        for texts in writer.write(chats, draw)
    ]
    return [both_orders(p, q) for p, q in zip(said[::2], said[1::2], strict=True)]


def prompt_text(prompt: Any) -> str:
    """A prompt as a judge reads it: text as it is, one message's content, or all turns with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def majority_of(votes: Sequence[int | None]) -> int | None:
    """0 or 1, whichever has more votes; None on a draw."""
    ones, zeros = sum(vote == 1 for vote in votes), sum(vote == 0 for vote in votes)
    return None if ones == zeros else int(ones > zeros)


def _larger(share: float, shown_first: int) -> int | None:
    return None if share == 0.5 else shown_first if share > 0.5 else 1 - shown_first


def _log_sum(*values: float) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


@dataclass(frozen=True)
class Report:
    """Figures of many judgements; rates are None where there is nothing to divide by."""

    pairs: int
    agreed: int
    """Pairs with the same answer preferred in both orders: all that is kept."""
    ties: int
    """Pairs with a different answer preferred in each order."""
    unreadable: int
    """Pairs with a reply, in either order, that names no answer."""
    agreement: float | None
    """agreed / pairs."""
    position_bias: float | None
    """Share of readable verdicts for the answer shown first, less one half: 0.5 always the first, -0.5 the second."""
    gold: int
    """Pairs with a label by people."""
    accuracy: float | None
    """Mean over both orders of the share that is right, over pairs with gold; a reply without an answer is wrong."""
    accuracy_agreed: float | None
    """Share of right labels among agreed pairs with gold."""
    correct_both: float | None
    """Share of pairs with gold that are right in both orders."""


def report(judgements: Sequence[Judgement], gold: Sequence[int | None]) -> Report:
    """Count."""
    agreed = [j.label is not None for j in judgements]
    unreadable = [j.straight is None or j.swapped is None for j in judgements]
    first = [j.straight == 0 for j in judgements if j.straight is not None]
    first += [j.swapped == 1 for j in judgements if j.swapped is not None]
    known = [(j, g) for j, g in zip(judgements, gold, strict=True) if g is not None]
    right = [(j.straight == g) + (j.swapped == g) for j, g in known]
    return Report(
        len(judgements), sum(agreed), len(judgements) - sum(agreed) - sum(unreadable), sum(unreadable),
        _share(sum(agreed), len(judgements)), None if not first else sum(first) / len(first) - 0.5, len(known),
        _share(sum(right), 2 * len(known)),
        _share(sum(j.label == g for j, g in known if j.label is not None), sum(j.label is not None for j, _ in known)),
        _share(sum(both == 2 for both in right), len(known)),
    )  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def pairs_of(raw: Mapping[str, Any]) -> list[Pair]:
    """The pairs of one example: prompt with `chosen` and `rejected` (gold), or with `answers`, each with each.

    `scores` or `ranks` beside the answers are gold, where they differ. Raises ValueError, KeyError or TypeError.
    """
    from trainers.answers import judged

    example = judged(raw)
    known = "answers" not in raw or "scores" in raw or "ranks" in raw
    prompt: Any = example.prompt
    if isinstance(raw.get("prompt"), str) and not raw.get("system"):
        prompt = raw["prompt"]
    found = []
    for i, j in itertools.combinations(range(len(example.answers)), 2):
        a, b = example.scores[i], example.scores[j]
        gold = None if not known or a == b else int(b > a)
        found.append(Pair(prompt, (example.answers[i], example.answers[j]), gold))
    return found


def label(examples: Iterable[Mapping[str, Any]], writer: Writer, settings: Comparing, out: str) -> Report:
    """Judge all pairs and write what both orders agree on: OUT/preferences.jsonl and .parquet, OUT/report.json.

    The preferences have prompt, chosen, rejected, probability and judge, as `corpusmill answers` takes them. Finished
    batches lie in OUT/judgements.jsonl, where the same call goes on after an interruption. Raises DataError when an
    example has no two answers.
    """
    pairs = []
    for number, raw in enumerate(examples, 1):
        try:
            pairs += pairs_of(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"example {number}: expected a prompt with two answers or more: {error!r}") from None
    pairs = [pair for pair in pairs if pair.answers[0] != pair.answers[1]]
    done = Remember(Path(out, "judgements.jsonl"))
    asked = settings.model_dump(mode="json", exclude={"batch"})
    keys = [key_of(writer.name, asked, pair.prompt, pair.answers) for pair in pairs]
    first_of = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
    left = sorted(at for key, at in first_of.items() if key not in done.known)
    for start in range(0, len(left), settings.batch):
        chosen = left[start : start + settings.batch]
        said = compare(writer, [pairs[i] for i in chosen], settings)
        done.add([(keys[i], asdict(judgement)) for i, judgement in zip(chosen, said, strict=True)])
    judgements = [Judgement(**done.known[key]) for key in keys]
    rows = []
    for pair, judgement in zip(pairs, judgements, strict=True):
        if judgement.label is not None:
            chosen_text, rejected = pair.answers[judgement.label], pair.answers[1 - judgement.label]
            row = {"prompt": pair.prompt, "chosen": chosen_text, "rejected": rejected}
            sure = judgement.probability
            rows.append(row | {"probability": sure if sure is None or not judgement.label else 1 - sure})
            rows[-1]["judge"] = writer.name
    write_rows(rows, Path(out, "preferences"))
    found = report(judgements, [pair.gold for pair in pairs])
    put(Path(out, "report.json"), json.dumps(asdict(found), indent=1) + "\n")
    return found


def write_rows(rows: Sequence[Mapping[str, Any]], stem: Path) -> None:
    """The rows as STEM.jsonl and, when there are any, STEM.parquet, each whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    put(stem.with_suffix(".jsonl"), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if rows:
        aside = stem.with_suffix(".parquet.tmp")
        pq.write_table(pa.Table.from_pylist(list(rows)), aside, compression="zstd")
        os.replace(aside, stem.with_suffix(".parquet"))


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


# ---- one answer at a time ----------------------------------------------------------------------------------------


class Rating(Settings):
    """How a judge is asked for a score."""

    template: str = Field(RATE, description="text with {prompt} and {answer}; the reply begins with the digit")
    lowest: int = Field(1, ge=0, le=8, description="worst score")
    highest: int = Field(9, ge=1, le=9, description="best score; one digit, so that a label is never part of another")
    lead: str = Field("", description="what stands between the judge's turn and the digit, such as 'Score: '")


def expected_score(log_probs: Sequence[float], values: Sequence[float]) -> float:
    """Σ v p(v) / Σ p(v): the mean score under the judge's probabilities. Lee et al. 2023 (RLAIF), section 2.2.2."""
    whole = _log_sum(*log_probs)
    return sum(value * math.exp(log_prob - whole) for value, log_prob in zip(values, log_probs, strict=True))


def rate(writer: Writer, prompts: Sequence[Any], answers: Sequence[str], settings: Rating) -> list[float]:
    """The expected score of each answer, from `lowest` to `highest`. Needs a writer that gives log-probabilities."""
    values = list(range(settings.lowest, settings.highest + 1))
    if len(values) < 2:
        raise DataError(f"a rating from {settings.lowest} to {settings.highest} says nothing; give highest > lowest")
    bounds = {"lowest": settings.lowest, "highest": settings.highest}
    chats = [
        user(fill(settings.template, prompt=prompt_text(prompt), answer=answer, **bounds))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found = writer.label_log_probs(chats, [f"{settings.lead}{value}" for value in values])
    return [expected_score(log_probs, values) for log_probs in found]
