"""Prompts with answers that people or programs have judged, as packed rows: preferences, rankings, labels, steps.

A row holds whole prompts: each prompt with each of its answers is one document (prompt, answer, end of turn), so
attention, the cursor, ranks and resuming are those of pretraining. Beside the columns of the schema a row has, per
document, `groups` (which prompt of the row), `scores` (higher is better within a prompt) and `desirable` (2 yes,
1 no, 0 unknown); per token `step_labels` (2 right, 1 wrong, 0 no end of a step).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from pipeline.schema import DATASET_FILE, DATASET_FORMAT, packed_schema

Message = dict[str, str]
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "Human": "user"}
_ROLES |= {"Assistant": "assistant", "function_call": "assistant", "observation": "tool", "function_response": "tool"}
YES, NO = 2, 1
_WORDS = {"true": YES, "yes": YES, "+": YES, "good": YES, "desirable": YES, "1": YES}
_WORDS |= {"false": NO, "no": NO, "-": NO, "bad": NO, "undesirable": NO, "0": NO, "-1": NO}


@dataclass(frozen=True)
class Judged:
    """One prompt and its answers."""

    prompt: list[Message]
    answers: list[str]
    scores: list[float]
    desirable: list[int]
    steps: list[list[tuple[str, int]]] = field(default_factory=list)
    """Per answer: its steps with YES or NO; empty where steps are not labelled."""


@dataclass(frozen=True)
class Encoded:
    """One document: prompt and answer."""

    ids: list[int]
    mask: list[int]
    step_labels: list[int]


def judged(raw: Mapping[str, Any]) -> Judged:
    """One example from any of the usual shapes. Raises ValueError, KeyError or TypeError for what is none of them.

    prompt (text or messages, or `conversations`/`messages`, or `instruction` with `input`, or `question`) with chosen
    and rejected; chosen and rejected alone with the prompt in both (messages, or the Human/Assistant text of HH);
    answers with `scores`, with `ranks` (1 is best, equal numbers are ties) or best first; completion with `label`;
    steps with `labels`. Labels: true, 1, "+" are right, false, 0, −1, "-" wrong; a step's may be null: not labelled.
    """
    if not isinstance(raw, Mapping):
        raise TypeError(f"an example is an object, found {type(raw).__name__}")
    prompt = _prompt(raw)
    if "chosen" in raw:
        prompt, better, worse = _pair(prompt, raw["chosen"], raw["rejected"])
        return Judged(prompt, [better, worse], [1.0, 0.0], [YES, NO])
    if "labels" in raw:
        texts = [_text(text) for text in raw["steps" if "steps" in raw else "completions"]]
        if not all(text.strip() for text in texts):
            raise ValueError("a step without text")
        labels = [0 if label is None else _label(label) for label in raw["labels"]]
        steps = list(zip(texts, labels, strict=True))
        right = NO if NO in labels else YES
        return Judged(prompt, ["\n".join(texts)], [float(right == YES)], [right], [steps])
    if "label" in raw:
        name = next((name for name in ("completion", "answer", "response", "output") if name in raw), None)
        if name is not None:
            text = _answer(raw[name])
        elif len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            *prompt, last = prompt
            text = last["content"]
        else:
            raise ValueError(f"a label, but no completion among {sorted(raw)}")
        label = _label(raw["label"])
        return Judged(prompt, [text], [float(label == YES)], [label])
    if "answers" not in raw:
        raise ValueError(f"none of chosen and rejected, answers, label, labels among {sorted(raw)}")
    answers = [_answer(answer) for answer in raw["answers"]]
    if "scores" in raw:
        scores = [float(score) for score in raw["scores"]]
    else:
        scores = [-float(rank) for rank in raw.get("ranks", range(1, len(answers) + 1))]
    if len(scores) != len(answers):
        raise ValueError(f"{len(answers)} answers, {len(scores)} scores or ranks")
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"scores must be finite, found {scores}")
    if len(answers) == 1:  # there is nothing to compare it with: an example to follow
        return Judged(prompt, answers, scores, [YES])
    best, worst = max(scores), min(scores)
    desirable = [0 if best == worst else YES if s == best else NO if s == worst else 0 for s in scores]
    return Judged(prompt, answers, scores, desirable)


def _prompt(raw: Mapping[str, Any]) -> list[Message]:
    """What is asked, "" where an example has it in its answers."""
    names = ("prompt", "conversations", "messages", "conversation")
    prompt = _messages(next((raw[name] for name in names if raw.get(name)), []))
    if not prompt and (raw.get("instruction") or raw.get("question")):
        parts = [raw.get("instruction") or raw.get("question"), raw.get("input")]
        prompt = [{"role": "user", "content": "\n\n".join(_text(part) for part in parts if part)}]
    if raw.get("system"):
        prompt = [{"role": "system", "content": _text(raw["system"])}, *prompt]
    return prompt


def _pair(prompt: list[Message], chosen: Any, rejected: Any) -> tuple[list[Message], str, str]:
    """(prompt, better answer, worse answer); without a prompt, it is what both conversations begin with."""
    (*before, better), (*other, worse) = _conversation(chosen), _conversation(rejected)
    if before != other:
        raise ValueError("chosen and rejected do not differ in exactly their last answer")
    asked = [message for message in prompt if message["role"] != "system"]
    if not asked:
        prompt, asked = [*prompt, *before], before
    said = [message for message in before if message["role"] != "system"]
    if not asked and isinstance(chosen, str):
        raise ValueError("no prompt: chosen and rejected are texts; what they answer belongs into `prompt`")
    if not asked or said != asked[len(asked) - len(said) :]:
        raise ValueError("no prompt, or another one than chosen and rejected begin with")
    if (better["role"], worse["role"]) != ("assistant", "assistant"):
        raise ValueError(f"the last turns are by {better['role']} and {worse['role']}, not by the assistant")
    return prompt, better["content"], worse["content"]


def _label(label: Any) -> int:
    """YES or NO."""
    if isinstance(label, str) and label.strip().lower() in _WORDS:
        return _WORDS[label.strip().lower()]
    if isinstance(label, (bool, int, float)) and math.isfinite(label):
        return YES if label > 0 else NO
    raise ValueError(f"a label is true or false, 1 or 0, + or -, found {label!r}")


def _messages(content: Any) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": _text(content)}]
    found = []
    for message in content:
        role = str(message["role"] if "role" in message else message["from"])
        text = message["content"] if "content" in message else message["value"]
        found.append({"role": _ROLES.get(role, role), "content": _text(text)})
    return found


def _text(content: Any) -> str:
    """Text of a turn: parts joined, as multimodal data have them; half characters are U+FFFD. ValueError for null."""
    if content is None:
        raise ValueError("null instead of a text")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or part.get("value") or "") for part in content)
    return re.sub("[\ud800-\udfff]", "\ufffd", str(content))


def _answer(content: Any) -> str:
    return _text(content) if isinstance(content, str) else _conversation(content)[-1]["content"]


def _conversation(content: Any) -> list[Message]:
    """Messages of an answer: plain text, one message, several, or HH's "\\n\\nHuman: … \\n\\nAssistant: …"."""
    if isinstance(content, Mapping):
        return _messages([content])
    if content is None or not isinstance(content, (str, list)):
        raise ValueError(f"an answer is text or messages, found {content!r}")
    if not isinstance(content, str):
        return _messages(content)
    if not content.startswith("\n\nHuman:"):
        return [{"role": "assistant", "content": _text(content)}]
    turns: list[Message] = []
    for part in content.split("\n\n"):
        name, colon, text = part.partition(":")
        if colon and name in ("Human", "Assistant"):
            turns.append({"role": _ROLES[name], "content": _text(text.strip())})
        elif turns:
            turns[-1]["content"] += f"\n\n{_text(part)}"
    return turns


class Encoder:
    """Prompt and answer to ids, once, by the tokenizer's chat template; plain text where it has none."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._template = bool(getattr(tokenizer, "chat_template", None))
        self._end = turn_end(tokenizer)
        self._specials = [t for t in tokenizer.get_added_vocab() if t in tokenizer.all_special_tokens]

    def __call__(self, prompt: list[Message], answer: str, steps: Sequence[tuple[str, int]] = ()) -> Encoded:
        """The whole text is encoded at once and characters are mapped to tokens.

        A token that begins before the answer and ends within it counts as the answer's, so no seam token is lost.
        White space behind the end of turn is cut: nothing is learned there, and the last token is the end of turn; EOS
        where the template has none.
        Raises ValueError where a turn spells out a special token, which it would forge, or a step is not found.
        """
        for text in (*(message["content"] for message in prompt), answer):
            if forged := next((token for token in self._specials if token in text), None):
                raise ValueError(f"a turn spells out the special token {forged}")
        before, whole = self._texts(prompt, answer)
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        if not self._end:
            ids, offsets = [*ids, self.tokenizer.eos_token_id], [*offsets, (len(whole), len(whole) + 1)]
        mask = [int(end > len(before)) for _, end in offsets]
        labels = [0] * len(ids)
        place = whole.find(answer.strip(), len(before)) if steps else 0
        for text, label in steps:
            found = whole.find(text.strip(), place)
            if found < 0:
                raise ValueError(f"the chat template does not write the step {text!r} as it is")
            place = found + len(text.strip())
            last = max(number for number, (begin, end) in enumerate(offsets) if begin < place and end > begin)
            labels[last] = label
        return Encoded(ids, mask, labels)

    def before(self, prompt: list[Message]) -> list[int]:
        """The ids of a prompt up to where its answer begins, for sampling."""
        if not self._template:
            text = "\n".join(message["content"] for message in prompt) + "\n"
        else:
            text = self._render(prompt, ask=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _texts(self, prompt: list[Message], answer: str) -> tuple[str, str]:
        if not self._template:
            before = "\n".join(message["content"] for message in prompt) + "\n"
            return before, before + answer
        before = self._render(prompt, ask=True)
        whole = self._render([*prompt, {"role": "assistant", "content": answer}])
        if not whole.startswith(before):
            raise ValueError("the chat template does not put the answer behind the generation prompt")
        return before, whole.rstrip() if self._end else whole

    def _render(self, talk: list[Message], *, ask: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=ask))
        except TemplateError as error:  # a system turn, or two turns of one speaker, where it has no place for them
            raise ValueError(f"the chat template refuses it: {error}") from None


def turn_end(tokenizer: Any) -> str:
    """What the chat template puts behind an answer, "" where there is no template or nothing visible.

    It ends an answer as EOS does, whether or not the tokenizer calls it EOS.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "corpusmill"}]
    whole = str(tokenizer.apply_chat_template(chat, tokenize=False))
    return whole.rpartition("corpusmill")[2].strip()


def open_lines(path: str) -> IO[bytes]:
    """The bytes of a file that may be compressed: .gz, .xz, .zst."""
    if path.endswith(".zst"):
        return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    opener: Any = gzip.open if path.endswith(".gz") else lzma.open if path.endswith(".xz") else open
    return opener(path, "rb")  # type: ignore[no-any-return]


def read_examples(path: str) -> Iterator[dict[str, Any]]:
    """Raw examples of a JSONL (plain, .gz, .xz, .zst) or Parquet file. Raises DataError with file and line."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    if path.endswith(".parquet"):
        try:
            for batch in pq.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: not a whole Parquet file: {error}") from None
        return
    with open_lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:  # of the encoding too
                    raise DataError(f"{path}, line {number}: not JSON: {error}") from None


def write_answers(
    source: str | Sequence[str],
    tokenizer: str,
    out: str,
    *,
    seq_len: int = 2048,
    validation: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Tokenise and pack judged answers into a data set that `data:` of a recipe names. Returns its dataset.json.

    `source`: files as `read_examples` takes them; `tokenizer`: a folder that AutoTokenizer opens. Prompts are
    shuffled by `seed`; the share `validation` is held out by a hash of the prompt, so that no prompt is on both sides.
    What cannot be used is counted under `refused`: too_long (the answers of one prompt do not fit into seq_len
    together), same_answer, no_difference (of the answers' scores), and bad_example; `refused_first` says where each
    was first met, and why.
    """
    from trainers.model import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    encoder = Encoder(loaded)
    refused: Counter[str] = Counter()
    first: dict[str, str] = {}
    groups: dict[bool, list[tuple[bytes, Judged, list[Encoded]]]] = {True: [], False: []}
    documents = 0
    for path in [source] if isinstance(source, str) else source:
        for number, raw in enumerate(read_examples(path), 1):
            why = ""
            try:
                example = judged(raw)
                steps = example.steps or [[] for _ in example.answers]
                encoded = [encoder(example.prompt, a, s) for a, s in zip(example.answers, steps, strict=True)]
                size = sum(len(one.ids) for one in encoded)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why, reason = f"{type(error).__name__}: {error}", "bad_example"
            else:
                if len(set(example.answers)) < len(example.answers):
                    why, reason = "two answers are equal", "same_answer"
                elif not any(example.desirable):
                    why, reason = f"no answer is better than another: scores {example.scores}", "no_difference"
                elif size > seq_len:
                    why, reason = f"{size:,} tokens, seq_len {seq_len:,}", "too_long"
            if why:
                refused[reason] += 1
                first.setdefault(reason, f"{path}, example {number}: {why}")
            else:
                key = hashlib.blake2b(json.dumps(example.prompt).encode(), digest_size=16).digest()
                held = int.from_bytes(key[:8], "little") < validation * 2**64
                groups[held].append((key, example, encoded))
                documents += len(encoded)
    if not groups[False]:
        raise DataError(
            f"{source}: not one usable example for seq_len {seq_len}; refused: {dict(refused)}; first: "
            f"{'; '.join(first.values())}"
        )
    aside = f"{out}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    loaded.save_pretrained(os.path.join(aside, "tokenizer"))
    pad = loaded.pad_token_id if loaded.pad_token_id is not None else loaded.eos_token_id
    about: dict[str, Any] = {
        "format": DATASET_FORMAT, "answers": True, "seq_len": seq_len, "vocab_size": len(loaded), "pad_id": pad,
        "eos_id": loaded.eos_token_id, "tokenizer": "tokenizer",
        "tokenizer_hash": hashlib.blake2b(
            Path(aside, "tokenizer/tokenizer.json").read_bytes(), digest_size=16
        ).hexdigest(),
        "documents": documents, "prompts": sum(map(len, groups.values())), "refused": dict(refused),
        "refused_first": first, "sources": {},
    }  # fmt: skip
    about |= _write(aside, "train", groups[False], about, seed)
    if groups[True]:
        about["validation"] = _write(aside, "validation", groups[True], about, seed)
    about["fingerprint"] = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
    Path(aside, DATASET_FILE).write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)
    return about


def _write(
    folder: str, name: str, groups: list[tuple[bytes, Judged, list[Encoded]]], about: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Pack one split into one shard, whole prompts first-fit into the last 16 open rows."""
    width = about["seq_len"]
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    rows: list[list[int]] = []
    free: list[int] = []
    for number in order:
        size = sum(len(one.ids) for one in groups[number][2])
        fits = [row for row in range(max(0, len(rows) - 16), len(rows)) if free[row] >= size]
        if fits:
            rows[fits[0]].append(number)
            free[fits[0]] -= size
        else:
            rows.append([number])
            free.append(width - size)
    steps = any(example.steps for _, example, _ in groups)
    columns: dict[str, list[Any]] = {key: [] for key in _schema(about, steps).names}
    for row in rows:
        chosen = [groups[number] for number in row]
        documents = [one for _, _, encoded in chosen for one in encoded]
        for key, values in (
            ("input_ids", [i for one in documents for i in one.ids]),
            ("loss_mask", [m for one in documents for m in one.mask]),
            ("step_labels", [label for one in documents for label in one.step_labels]),
        ):
            if key in columns:
                blank = about["pad_id"] if key == "input_ids" else 0
                columns[key].append(values + [blank] * (width - len(values)))
        columns["doc_lengths"].append([len(one.ids) for one in documents])
        columns["doc_ids"].append([key for key, _, encoded in chosen for _ in encoded])
        columns["groups"].append([place for place, (_, _, encoded) in enumerate(chosen) for _ in encoded])
        columns["scores"].append([score for _, example, _ in chosen for score in example.scores])
        columns["desirable"].append([label for _, example, _ in chosen for label in example.desirable])
    path = f"{name}-00000.parquet"
    table = pa.table(columns, schema=_schema(about, steps))
    pq.write_table(table, os.path.join(folder, path), row_group_size=64, compression="zstd")
    tokens = sum(sum(lengths) for lengths in columns["doc_lengths"])
    return {"rows": len(rows), "tokens": tokens, "shards": [{"path": path, "rows": len(rows), "tokens": tokens}]}


def _schema(about: Mapping[str, Any], steps: bool) -> pa.Schema:
    schema = packed_schema(about["seq_len"], about["vocab_size"], loss_mask=True)
    for name, kind in (("groups", pa.int64()), ("scores", pa.float64()), ("desirable", pa.int8())):
        schema = schema.append(pa.field(name, pa.list_(pa.field("item", kind, nullable=False)), nullable=False))
    if steps:
        item = pa.field("item", pa.int8(), nullable=False)
        schema = schema.append(pa.field("step_labels", pa.list_(item, about["seq_len"]), nullable=False))
    return schema
