"""Rows of CSV and TSV files, with what is wrong with the bad ones."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from typing import Any

from pipeline.crawl.damage import DAMAGED, is_damage

_MOST_BROKEN = 1024


class _Bounded:
    """Lines of a stream as text; a longer line raises csv.Error, so that memory stays bounded."""

    def __init__(self, stream: Any, longest: int):
        self._stream, self._longest, self._first = stream, longest, True

    def __iter__(self) -> _Bounded:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._longest + 1)
        if not line:
            raise StopIteration
        if len(line) > self._longest:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(1 << 20)
            raise csv.Error(f"a line is longer than {self._longest} bytes")
        if self._first:
            self._first, line = False, line.removeprefix(codecs.BOM_UTF8)
        return str(line.decode("utf-8", "replace"))


def rows_of(stream: Any, delimiter: str, longest: int) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
    """(number, row by column name, None) or (number, bytes, what is wrong) for each row behind the header.

    TSV has no quotes: a field is what stands between tabs, with `\\t`, `\\n` and `\\\\` for those characters.
    """
    csv.field_size_limit(longest)
    lines = _Bounded(stream, longest)
    quoted = delimiter == ","
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    number = 0
    names: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield number, b"", f"row {number}: {error}"
            continue
        except DAMAGED as error:
            if not is_damage(error):
                raise
            yield number + 1, b"", f"the compressed stream is damaged behind row {number}: {error}"
            return
        if names is None:
            names = [name.strip() for name in row]
            continue
        if not row:
            continue
        number += 1
        if len(row) != len(names):
            out = io.StringIO()
            csv.writer(out, delimiter=delimiter).writerow(row)
            broken = out.getvalue()[:_MOST_BROKEN].encode("utf-8", "replace")
            yield number, broken, f"row {number} has {len(row)} fields, the header names {len(names)}"
            continue
        if not quoted:
            row = [_unescaped(field) if "\\" in field else field for field in row]
        yield number, dict(zip(names, row, strict=True)), None


def _unescaped(field: str) -> str:
    out, at = [], 0
    while (found := field.find("\\", at)) >= 0:
        out.append(field[at:found])
        following = field[found + 1 : found + 2]
        known = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}.get(following)
        out.append(known if known is not None else "\\" + following)
        at = found + 2
    return "".join(out) + field[at:]
