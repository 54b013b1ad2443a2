"""Turns conversations into token ids with a mask of what is to be learned: the assistant's words, not the user's.

The document's text is JSON: a list of messages, or an object in one of the usual shapes (messages, ShareGPT's
conversations, Alpaca's instruction and output, prompt and completion). What comes out are the ids that
`apply_chat_template` of the tokenizer gives, and the end-of-text token, so training sees the same tokens as a prompt at
inference. The template of tokenizers made here (ChatML) is encoded by our kernel: the text between two special tokens
at once, the mask follows the bytes. Any other is rendered (template.py). A tokenizer without a template gets prompt and
answer as plain text, a line break between them, as the trainers read such a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from cluster import storage
from cluster.errors import RecipeError
from pipeline.schema import Row, token_dtype
from pipeline.step import Documents, Transform, Verdict
from pipeline.tokens.codec import Codec
from pipeline.tokens.encode import readable_documents, token_rows
from pipeline.tokens.template import Template, read_template
from pipeline.tokens.vocabulary import (
    CHAT_END,
    CHAT_START,
    CHAT_TEMPLATE,
    Vocabulary,
    read_vocabulary,
    tokenizer_folder,
    tokenizer_identity,
)

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function_call": "assistant"}
_ROLES |= {"observation": "tool", "function_response": "tool"}
_PLAIN = (
    "{% for m in messages %}{{ m.content }}{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)
"""Where a tokenizer has no template: one prompt and one answer."""


class Chat(Transform):
    """Conversations to TOKENS rows with a column `loss_mask`; packing carries the mask along."""

    takes: ClassVar[Row] = Row.DOCUMENT
    gives: ClassVar[Row] = Row.TOKENS

    train_on: Literal["assistant", "all"] = Field("assistant", description="whose words are targets")
    prefix: str = Field("", description="a task's command, put in front of the first thing that the user says")
    tokenizer: str | None = Field(None, description="folder that AutoTokenizer opens; else the recipe's own")
    keep: list[str] = Field([], description="columns to carry along (scores or cluster sizes for mixing)")

    _codec: Any = PrivateAttr(None)
    _template: Template | None = PrivateAttr(None)
    _plain: bool = PrivateAttr(False)
    _vocabulary: Vocabulary | None = PrivateAttr(None)

    def needs(self) -> Sequence[str]:
        return () if self.tokenizer else ("tokenizer",)

    def provides(self) -> dict[str, str]:
        return {"tokenizer": storage.absolute(self.tokenizer)} if self.tokenizer else {}

    def input_identity(self) -> list[Any]:
        template = [read_template(str(storage.absolute(self.tokenizer)))[0]] if self.tokenizer else []
        return [*tokenizer_identity(self.tokenizer), *template]

    def warm(self, artifacts: Mapping[str, str]) -> None:
        folder = tokenizer_folder(self.tokenizer, artifacts, self.step_name())
        self._vocabulary = read_vocabulary(folder)
        source, named = read_template(folder)
        chatml = {CHAT_START, CHAT_END} <= self._vocabulary.specials.keys()
        self._codec = self._template = None
        if source == CHAT_TEMPLATE or (source is None and chatml):
            if not chatml:
                raise RecipeError(f"tokens.chat: {folder} lacks {CHAT_START} or {CHAT_END}, which its template writes")
            self._codec = Codec(folder, self.step_name())
            return
        spec = json.loads(storage.read_bytes(storage.join(folder, "tokenizer.json")))
        self._plain = source is None
        self._template = Template(source or _PLAIN, named, spec, self._vocabulary.eos_id)

    def transform(self, docs: Documents) -> tuple[pa.RecordBatch, Verdict | None]:
        if self._vocabulary is None:
            raise RuntimeError("tokens.chat: warm() loads the tokenizer and must come first")
        dtype = np.dtype(token_dtype(self._vocabulary.size))
        verdict = Verdict.keep(len(docs))
        talks: list[list[tuple[str, str]]] = []
        for row, text in enumerate(readable_documents(docs).column("text").to_pylist()):
            talk: list[tuple[str, str]] = []
            try:
                talk = prefixed(messages_of(json.loads(text)), self.prefix)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                verdict.fail(row, f"not a conversation: {type(error).__name__}: {error}", "bad_conversation")
            else:
                if self.train_on == "assistant" and all(role != "assistant" for role, _ in talk):
                    verdict.reason[row] = "no_assistant_turn"
                elif self._plain and [role for role, _ in talk if role != "system"] != ["user", "assistant"]:
                    verdict.reason[row] = "needs_chat_template"
            talks.append(talk)
        ids, ends, mask = self._encode(talks, dtype) if self._codec else self._rendered(talks, verdict, dtype)
        batch = token_rows(docs.batch, ids, ends, self.keep)
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(mask)]
        column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), buffers)
        return batch.append_column("loss_mask", column), verdict

    def _encode(self, talks: list[list[tuple[str, str]]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids of all talks end to end, where each ends, uint8 mask of the targets)."""
        assert self._vocabulary is not None
        start, end = self._vocabulary.specials[CHAT_START], self._vocabulary.specials[CHAT_END]
        turns = [f"{role}\n{content}".encode("utf-8", "replace") for talk in talks for role, content in talk]
        encoded = iter(self._codec.encode([*turns, b"\n"], self._vocabulary.eos_id, dtype))
        newline = self._codec.encode([b"\n"], self._vocabulary.eos_id, dtype)[0]
        out: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        ends: list[int] = []
        filled = 0
        for talk in talks:
            for role, _ in talk:
                ids = next(encoded)
                learned = self.train_on == "all" or role == "assistant"
                begins, _ = self._codec.decode(ids)
                # a token that begins before the answer and ends within it is the answer's: no seam token is lost
                target = (begins[1:] > len(role.encode()) + 1) & learned
                parts = (np.array([start], dtype), ids, np.array([end], dtype), newline)
                out += parts
                masks += [np.zeros(1, bool), target, np.array([learned]), np.zeros(len(newline), bool)]
                filled += sum(map(len, parts))
            out.append(np.array([self._vocabulary.eos_id], dtype))
            masks.append(np.zeros(1, bool))
            filled += 1
            ends.append(filled)
        ids = np.concatenate(out) if out else np.zeros(0, dtype)
        mask = np.concatenate(masks) if masks else np.zeros(0, bool)
        return ids, np.array(ends, np.int64), mask.astype(np.uint8)

    def _rendered(
        self, talks: list[list[tuple[str, str]]], verdict: Verdict, dtype: np.dtype
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_encode`, by the tokenizer's own template. What that refuses fails and gets no ids."""
        assert self._template is not None
        ids: list[int] = []
        mask: list[bool] = []
        ends: list[int] = []
        for row, talk in enumerate(talks):
            if talk and verdict.reason[row] is None:
                try:
                    of_talk, learned = self._template.encode(talk, everything=self.train_on == "all")
                    ids += of_talk
                    mask += learned
                except ValueError as error:
                    verdict.fail(row, str(error), "bad_conversation")
            ends.append(len(ids))
        return np.array(ids, dtype), np.array(ends, np.int64), np.array(mask, bool).astype(np.uint8)


def prefixed(talk: list[tuple[str, str]], prefix: str) -> list[tuple[str, str]]:
    """The talk with a command in front of its first user's turn, or as that turn where nobody asks."""
    if not prefix:
        return talk
    for place, (role, text) in enumerate(talk):
        if role == "user":
            return [*talk[:place], (role, prefix + text), *talk[place + 1 :]]
    systems = sum(role == "system" for role, _ in talk)
    return [*talk[:systems], ("user", prefix), *talk[systems:]]


def messages_of(content: Any) -> list[tuple[str, str]]:
    """(role, text) of each turn; raises ValueError, KeyError or TypeError for what is no conversation."""
    if isinstance(content, Mapping):
        system = [("system", str(content["system"]))] if content.get("system") else []
        for name in ("messages", "conversations", "conversation"):
            if content.get(name) is not None:  # a table has columns that some of its rows leave empty
                return system + messages_of(content[name])
        before = [*system, *(turn for pair in content.get("history") or () for turn in _exchange(*pair))]
        if content.get("instruction") is not None:
            asked = "\n\n".join(str(content[part]) for part in ("instruction", "input") if content.get(part))
            return [*before, *_exchange(asked, content["output"])]
        if "prompt" in content:
            answer = content["completion"] if "completion" in content else content["response"]
            if isinstance(content["prompt"], list):  # messages on both sides
                answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
                return [*before, *messages_of(content["prompt"]), *messages_of(answer)]
            return [*before, *_exchange(content["prompt"], answer)]
        raise ValueError(f"none of messages, conversations, instruction, prompt among {sorted(content)[:8]}")
    if not isinstance(content, list) or not content:
        raise ValueError(f"expected a list of messages, found {type(content).__name__}")
    return [_message(message) for message in content]


def _exchange(asked: Any, answer: Any) -> list[tuple[str, str]]:
    return [("user", _text(asked)), ("assistant", _text(answer))]


def _message(message: Mapping[str, Any]) -> tuple[str, str]:
    role = str(message["role"] if "role" in message else message["from"])
    if message.get("tool_calls"):
        raise ValueError("tool_calls beside a message's content; write them as the content of a turn")
    content = message["content"] if "content" in message else message["value"]
    if isinstance(content, list):  # parts, as multimodal data have them; text is all that is learned here
        content = "".join(str(part.get("text") or part.get("value") or "") for part in content)
    return _ROLES.get(role, role), _text(content)


def _text(content: Any) -> str:
    if content is None:
        raise ValueError("a turn without content (null)")
    return str(content)
