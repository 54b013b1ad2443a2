"""A file that is one JSON array, element by element, so that its size does not matter."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

_PIECE = 1 << 20
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


def is_array(stream: Any) -> bool:
    """Whether a buffered stream begins with `[` and an object, or with `[]`; it stays where it is."""
    head = stream.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    return bool(head.startswith(b"[")) and head[1:].lstrip()[:1] in (b"{", b"]", b"")


def elements(stream: Any, longest: int) -> Iterator[tuple[int, Any, str | None]]:
    """(number, element, None), and (number, b"", what is wrong) as the last where it is no JSON from there on.

    Memory is bounded by `longest`, the most characters of an element. Bytes that are no UTF-8 are lone surrogates.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    parse = json.JSONDecoder().raw_decode
    text = decoder.decode(stream.read(_PIECE))
    at, number, ended = text.index("[") + 1, 0, False
    while True:
        if between := _BETWEEN.match(text, at):
            at = between.end()
        if text[at : at + 1] == "]":
            if (text[at + 1 :] + decoder.decode(stream.read(_PIECE), True)).strip():
                yield number, b"", f"something follows the array of {number} elements"
            return
        try:
            value, end = parse(text, at)
            if end == len(text) and not ended:
                raise ValueError("a number may have more digits")
        except (ValueError, RecursionError) as error:
            if ended or len(text) - at > longest:
                yield number, b"", f"the array breaks off at element {number}: {error}"
                return
            piece = stream.read(max(_PIECE, len(text) - at))
            ended = not piece
            text, at = text[at:] + decoder.decode(piece, ended), 0
            continue
        yield number, value, None
        number, at = number + 1, end
