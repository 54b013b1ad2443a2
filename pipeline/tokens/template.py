"""A tokenizer's own chat template: conversations to ids, and which of them are the assistant's.

The whole text of a conversation is encoded at once, as `apply_chat_template` does it, and spans of characters are
mapped to tokens. A template that marks the assistant's words (`{% generation %}`) says itself where they are; in any
other they lie between what it writes for the turns before them with a generation prompt, and the end of the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cluster import storage

Talk = list[tuple[str, str]]
"""(role, text) of each turn."""
Span = tuple[int, int]

_BROKEN = "\ufdd0"
"""A noncharacter of Unicode, put into special tokens that a turn spells out while the template is rendered."""
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
"""Two others, around what a template marks as the assistant's."""


def read_template(folder: str) -> tuple[str | None, dict[str, str]]:
    """(the chat template of a tokenizer's folder or None, its named special tokens such as bos_token)."""
    try:
        config = json.loads(storage.read_bytes(storage.join(folder, "tokenizer_config.json")))
    except FileNotFoundError:
        config = {}
    named = {}
    for name, token in config.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            named[name] = text
    try:
        return storage.read_bytes(storage.join(folder, "chat_template.jinja")).decode(), named
    except FileNotFoundError:
        found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found, named


class Template:
    """Renders and encodes conversations by a Jinja template and a tokenizer.json, as transformers does.

    The date is not told to templates: what they write must not depend on the day of a run.
    """

    def __init__(self, source: str, named: Mapping[str, str], spec: Mapping[str, Any], eos_id: int):
        from tokenizers import Tokenizer

        self._template = _compiled(source)
        self._named, self._eos = dict(named), eos_id
        self._marks = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._whole: Any
        self._apart: Any
        self._whole, self._apart = Tokenizer.from_str(json.dumps(spec)), Tokenizer.from_str(json.dumps(spec))
        for one in (self._whole, self._apart):
            one.no_truncation()
            one.no_padding()
        self._apart.encode_special_tokens = True
        specials = sorted((t["content"] for t in spec.get("added_tokens", []) if t.get("special")), key=len)[::-1]
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self.turn_end = self._turn_end()

    def encode(self, talk: Talk, *, everything: bool = False) -> tuple[list[int], list[bool]]:
        """(ids, which are learned): those of `apply_chat_template`, and the end-of-text token if they do not end so.

        Raises ValueError for a conversation that the template refuses, or whose answers it does not write.
        """
        safe = [(role, self._disarmed(text)) for role, text in talk]
        text, spans = self.told(safe)
        if everything:
            spans = [(0, len(text))]
        ids, offsets = self._tokens(text)
        # a token that begins before an answer and ends within it is the answer's: no seam token is lost
        mask = [any(begin < last and end > first for first, last in spans) for begin, end in offsets]
        if not ids or ids[-1] != self._eos:
            ids.append(self._eos)
            # where no turn has an end of its own, this is the end of the last answer
            mask.append(everything or (not self.turn_end and talk[-1][0] == "assistant"))
        return ids, mask

    def told(self, talk: Talk) -> tuple[str, list[Span]]:
        """(text of a conversation, first and last character of each of the assistant's turns with its end)."""
        text = self._render(talk)
        if self._marks:
            return _marked(text)
        return text, [self._span(text, talk, turn) for turn, (role, _) in enumerate(talk) if role == "assistant"]

    def _span(self, text: str, talk: Talk, turn: int) -> Span:
        before = self._render(talk[:turn], ask=True)
        if not text.startswith(before):
            before = self._render(talk[:turn])  # templates without a generation prompt, or with more in it
            if not text.startswith(before):
                raise ValueError(f"the chat template changes what lies before turn {turn + 1} when that is answered")
        upto = self._render(talk[: turn + 1])
        upto = upto.rstrip() if self.turn_end else upto  # where nothing visible ends a turn, its white space does
        if text.startswith(upto) and len(upto) > len(before):
            return len(before), len(upto)
        said = talk[turn][1].strip()  # a template that drops something of earlier turns, such as their reasoning
        begin = text.find(said, len(before))
        if begin < 0 or not said:
            raise ValueError(f"the chat template does not write the answer of turn {turn + 1} as it is")
        end = begin + len(said)
        close = re.compile(r"\s*" + re.escape(self.turn_end)).match(text, end) if self.turn_end else None
        return len(before), close.end() if close else end

    def _render(self, talk: Talk, *, ask: bool = False) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": content} for role, content in talk]
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=ask, **self._named))
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error}") from None

    def _turn_end(self) -> str:
        try:
            text, _ = _marked(self._render([("user", "a"), ("assistant", "corpusmill")]))
            return text.rpartition("corpusmill")[2].strip()
        except ValueError:
            return ""

    def _disarmed(self, text: str) -> str:
        """A turn must not forge a special token: those it spells out are broken up until they have been encoded."""
        text = re.sub(f"[{_BROKEN}{_OPEN}{_CLOSE}]", "\ufffd", text)
        return self._specials.sub(lambda m: m[0][0] + _BROKEN + m[0][1:], text) if self._specials else text

    def _tokens(self, text: str) -> tuple[list[int], list[Span]]:
        if _BROKEN not in text or self._specials is None:
            found = self._whole.encode(text, add_special_tokens=False)
            return list(found.ids), list(found.offsets)
        ids: list[int] = []
        offsets: list[Span] = []
        place = 0
        for special in [*self._specials.finditer(text), None]:
            piece = text[place : special.start() if special else len(text)]
            found = self._apart.encode(piece.replace(_BROKEN, ""), add_special_tokens=False)
            at = [place + i for i, character in enumerate(piece) if character != _BROKEN]
            ids += found.ids
            offsets += [(at[a] if a < len(at) else place + len(piece), at[b - 1] + 1) for a, b in found.offsets if at]
            if special:
                ids.append(self._whole.token_to_id(special[0]))
                offsets.append(special.span())
                place = special.end()
        return ids, offsets


def _marked(text: str) -> tuple[str, list[Span]]:
    """Rendered text without the marks around the assistant's words, and where these are."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, piece in enumerate(re.split(f"[{_OPEN}{_CLOSE}]", text)):
        if number % 2:
            spans.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), spans


def _compiled(source: str) -> Any:
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012 — as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_noted"), [], [], body).set_lineno(line)

        def _noted(self, caller: Any) -> str:
            return f"{_OPEN}{caller()}{_CLOSE}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)
