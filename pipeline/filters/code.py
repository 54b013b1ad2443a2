"""BigCode's rules for source code: line lengths, letters, encoded data, generated files, comments, visible HTML."""

from __future__ import annotations

import re

import numpy as np
from pydantic import Field

from pipeline.step import Documents, Filter, Rule

_SPDX = re.compile(rb"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]{1,200})")


class Code(Filter):
    """Removes source files that are data, generated, minified or hardly code.

    Scores: max_line (characters), mean_line, alnum_ratio, encoded_ratio (bytes in long base64, hexadecimal or escape
    strings), comment_ratio (of the lines that are not blank), generated (1 if one of the first five lines says so),
    xml (1 for XML that is no HTML), visible_ratio and visible_chars (text outside of tags, for HTML pages, else NaN),
    licensed (1 if `licences` allow the file, NaN without such a list). A file's licence is what the column `licence`
    says, as crawl.code writes it, else its own SPDX-License-Identifier; a file without one is not allowed.

    Source: Kocetkov et al. 2022 (The Stack, arXiv 2211.15533), Li et al. 2023 (StarCoder, arXiv 2305.06161, section 3);
    the bounds on encoded data and comments as in The Stack v2 and SantaCoder (arXiv 2402.19173, 2301.03988).
    """

    max_line_length: int | None = Field(1000, description="longest line, characters")
    max_mean_line_length: float | None = Field(100, description="longest mean line, characters")
    min_alnum_ratio: float | None = Field(0.25, description="least share of letters and digits")
    max_encoded_ratio: float | None = Field(0.5, description="largest share of encoded data")
    min_comment_ratio: float | None = Field(None, description="least share of comment lines; SantaCoder: 0.01")
    max_comment_ratio: float | None = Field(0.8, description="largest share of comment lines")
    drop_generated: bool = Field(True, description="drop files that say they are generated")
    drop_xml: bool = Field(True, description="drop XML files")
    min_visible_ratio: float | None = Field(0.2, description="least share of visible text in HTML")
    min_visible_chars: int | None = Field(100, description="least visible text in HTML, characters")

    licences: tuple[str, ...] = Field((), description="only files under these licences (SPDX: MIT, …); all if empty")

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import code, text

        offsets, data = docs.text_buffers()
        lines, tally, feeds = text.lines_of(docs, universal=True), text.tallies_of(docs), text.lines_of(docs)
        kind, seen = code.markup(offsets, data)
        visible = np.where(kind == code.HTML, seen, np.nan)
        return {
            "max_line": code.longest_lines(lines.first, lines.chars),
            "mean_line": text.ratio(text.per_document(lines.first, lines.chars), lines.counts()),
            "alnum_ratio": text.ratio(tally["alpha"] + tally["numeric"], tally["chars"]),
            "encoded_ratio": text.ratio(code.encoded_bytes(offsets, data), np.diff(offsets)),
            "comment_ratio": text.ratio(
                code.comment_lines(feeds.first, feeds.start, feeds.end, data),
                text.per_document(lines.first, ~lines.blank()),
            ),
            "generated": code.says_generated(feeds.first, feeds.start, feeds.end, data).astype(np.float64),
            "xml": (kind == code.XML).astype(np.float64),
            "licensed": self._licensed(docs),
            "visible_ratio": visible / np.maximum(1, tally["chars"] - tally["space"]),
            "visible_chars": visible,
        }

    def rules(self) -> list[Rule]:
        return [
            Rule("line_too_long", "max_line", at_most=self.max_line_length),
            Rule("mean_line_too_long", "mean_line", at_most=self.max_mean_line_length),
            Rule("too_few_letters", "alnum_ratio", at_least=self.min_alnum_ratio),
            Rule("encoded_data", "encoded_ratio", at_most=self.max_encoded_ratio),
            Rule("generated", "generated", at_most=0 if self.drop_generated else None),
            Rule("licence", "licensed", at_least=1 if self.licences else None),
            Rule("xml", "xml", at_most=0 if self.drop_xml else None),
            Rule("too_little_visible_text", "visible_ratio", at_least=self.min_visible_ratio),
            Rule("too_little_visible_text", "visible_chars", at_least=self.min_visible_chars),
            Rule("too_few_comments", "comment_ratio", at_least=self.min_comment_ratio),
            Rule("too_many_comments", "comment_ratio", at_most=self.max_comment_ratio),
        ]

    def _licensed(self, docs: Documents) -> np.ndarray:
        out = np.full(len(docs), np.nan)
        if not self.licences:
            return out
        offsets, data = docs.text_buffers()
        known = docs.column("licence").to_pylist() if "licence" in docs.batch.schema.names else [None] * len(docs)
        for row, name in enumerate(known):
            if name is None:
                found = _SPDX.search(data[offsets[row] : min(offsets[row] + 4096, offsets[row + 1])].tobytes())
                name = found[1].decode() if found else ""
            out[row] = allows(name[:200], frozenset(self.licences))
        return out


def allows(expression: str, licences: frozenset[str]) -> bool:
    """Whether an SPDX expression can be met with the given licences alone.

    >>> allows("(MIT OR GPL-3.0-only) AND Apache-2.0", frozenset({"MIT", "Apache-2.0"}))
    True
    """
    names = re.findall(r"[A-Za-z0-9.+-]+|[()]", re.sub(r"\s+WITH\s+[A-Za-z0-9.+-]+", "", expression))
    for joint in ("OR", "AND"):  # OR binds less than AND
        parts: list[list[str]] = []
        depth, last = 0, 0
        for k, name in enumerate(names):
            depth += (name == "(") - (name == ")")
            if name == joint and depth == 0:
                parts.append(names[last:k])
                last = k + 1
        if parts:
            met = [allows(" ".join(part), licences) for part in [*parts, names[last:]]]
            return any(met) if joint == "OR" else all(met)
    if len(names) > 2 and names[0] == "(" and names[-1] == ")":
        return allows(" ".join(names[1:-1]), licences)
    return len(names) == 1 and names[0] in licences
