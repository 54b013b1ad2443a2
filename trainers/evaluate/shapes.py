"""Rows of public benchmarks as they are published, turned into items, with the prompts of lm-evaluation-harness 0.4.

MMLU             {"question", "choices": [text, …], "answer": index or letter}
CMMLU            {"Question", "A", "B", "C", "D", "Answer": letter}
ARC, OpenBookQA  {"question" or "question_stem", "choices": {"text", "label"}, "answerKey"}, or AI2's nested rows
HellaSwag        {"ctx", "endings", "label", …}
PIQA             {"goal", "sol1", "sol2", "label"}
BoolQ            {"question", "passage", "answer" or "label"}
LAMBADA          {"text"}: its last word is the target
of the harness   {"query", "choices", "gold"}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"


def as_item(row: Row) -> Row:
    """The item that a row of a known benchmark is; other rows as they are. Raises ValueError for a broken one."""
    for needed, make in _SHAPES:
        if needed <= set(row):
            try:
                return {name: row[name] for name in ("split", "subject") if name in row} | make(row)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"a row with {sorted(needed)}, but {type(error).__name__}: {error}") from None
    return row


def _index(answer: Any, labels: Sequence[str]) -> int:
    """The place of an answer that is an index, a label, or a truth value."""
    if isinstance(answer, int) and 0 <= answer < len(labels):
        return int(answer)
    text = str(answer).strip()
    if text in labels:
        return labels.index(text)
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    raise ValueError(f"answer {answer!r} is none of {', '.join(labels)}")


def _lettered(question: str, choices: Sequence[str], answer: Any, last: str) -> Row:
    """A question with lettered choices, of which the letter is asked."""
    letters = LETTERS[: len(choices)]
    lines = [question.strip(), *(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)), last]
    return {"prompt": "\n".join(lines), "choices": list(letters), "answer": _index(answer, list(letters))}


def _mmlu(row: Row) -> Row:
    return _lettered(row["question"], row["choices"], row["answer"], "Answer:")


def _cmmlu(row: Row) -> Row:
    return _lettered(row["Question"], [row[letter] for letter in "ABCD"], row["Answer"], "答案：")


def _arc(row: Row) -> Row:
    question, choices = row.get("question", row.get("question_stem")), row.get("choices")
    if isinstance(question, dict):  # AI2's own files
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, list):
        choices = {name: [choice[name] for choice in choices] for name in ("text", "label")}
    if not isinstance(question, str) or not isinstance(choices, dict):
        raise TypeError("a question and its choices were expected")
    prompt = question if "question_stem" in row else f"Question: {question}\nAnswer:"
    labels = [str(label) for label in choices["label"]]
    return {"prompt": prompt, "choices": list(choices["text"]), "answer": _index(str(row["answerKey"]), labels)}


def _hellaswag(row: Row) -> Row:
    def plain(text: str) -> str:
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if "ctx_a" in row and "ctx_b" in row else row["ctx"]
    prompt = f"{row['activity_label']}: {context}" if "activity_label" in row else context
    endings = [plain(ending) for ending in row["endings"]]
    answer = _index(row["label"], [str(number) for number in range(len(endings))])
    return {"prompt": plain(prompt), "choices": endings, "answer": answer}


def _piqa(row: Row) -> Row:
    prompt, answer = f"Question: {row['goal']}\nAnswer:", _index(row["label"], ["0", "1"])
    return {"prompt": prompt, "choices": [row["sol1"], row["sol2"]], "answer": answer}


def _boolq(row: Row) -> Row:
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    answer = row["answer"] if "answer" in row else row["label"]
    return {"prompt": prompt, "choices": ["no", "yes"], "answer": _index(answer, ["no", "yes"])}


def _lambada(row: Row) -> Row:
    prompt, space, target = row["text"].strip().rpartition(" ")
    if not space:
        raise ValueError(f"a text of one word, {row['text']!r}, has no last word to ask for")
    return {"prompt": prompt, "target": target}


def _harness(row: Row) -> Row:
    return {"prompt": row["query"], "choices": row["choices"], "answer": row["gold"]}


_SHAPES: tuple[tuple[set[str], Callable[[Row], Row]], ...] = (
    ({"query", "choices", "gold"}, _harness),
    ({"Question", "A", "B", "C", "D", "Answer"}, _cmmlu),
    ({"question", "answerKey"}, _arc),
    ({"question_stem", "answerKey"}, _arc),
    ({"endings", "label"}, _hellaswag),
    ({"goal", "sol1", "sol2"}, _piqa),
    ({"question", "passage", "answer"}, _boolq),
    ({"question", "passage", "label"}, _boolq),
    ({"question", "choices", "answer"}, _mmlu),
    ({"text"}, _lambada),
)
