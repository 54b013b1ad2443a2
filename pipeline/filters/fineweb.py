"""FineWeb's own rules: lines without punctuation, short lines, repeated lines, lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.optional import require
from pipeline.step import Documents, Filter, Rule, Verdict


class FineWeb(Filter):
    """Removes documents whose lines look like menus, lists or repeated parts, by the rules made for FineWeb.

    Scores: n_lines (not blank), line_punct_ratio (of lines that end in terminal punctuation, of any script),
    short_line_ratio, char_dup_ratio (characters in repeated lines), list_ratio (line feeds per word).

    `variant`:
    - paper: repeated characters up to 0.1, short lines are shorter than `short_line_length`, white space around
      lines is ignored, no list rule; each character of a script without spaces is a word, and counts twice for
      the length of a line.
    - datatrove: the code that made FineWeb: repeated characters up to 0.01, lines of `short_line_length` are short
      too, lines are taken as they are, at most 0.3 line feeds per word.

    Source: Penedo et al. 2024, arXiv 2406.17557, section 3.6.
    """

    bounds: ClassVar[frozenset[str]] = frozenset({"line_punct_exclude_zero"})

    variant: Literal["paper", "datatrove"] = Field("paper", description="whose numbers and lines")
    words: Literal["space", "spacy"] = Field(
        "space", description="how the datatrove variant splits words: at white space, or by spaCy as it does itself"
    )
    line_punct_thr: float | None = Field(0.12, description="least share of lines that end in punctuation")
    line_punct_exclude_zero: bool = Field(False, description="let documents without any such line stay")
    short_line_thr: float | None = Field(0.67, description="largest share of short lines")
    short_line_length: int = Field(30, description="what a short line is, characters")
    char_duplicates_ratio: float | None = Field(
        None, description="largest share of characters in repeated lines; the variant's own: 0.1 or 0.01"
    )
    new_line_ratio: float | None = Field(
        None, description="most line feeds per word; the variant's own: no limit or 0.3"
    )

    def check(self) -> None:
        if self.words == "spacy":
            require("spacy", "filters.fineweb: words: spacy", "set words: space")

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import characters, text
        from pipeline.kernels.lines import repeats

        paper = self.variant == "paper"
        lines = text.lines_of(docs)
        full = ~lines.blank()
        n_lines = text.per_document(lines.first, full)
        newlines = text.newlines_of(docs)
        if paper:
            chars = lines.chars - lines.lead - lines.trail
            hashes, end, limit = lines.strip_hash, lines.tail, self.short_line_length - 1
            width = chars + text.unspaced_in_lines(docs, lines)
        else:
            chars = width = lines.chars
            hashes, end, limit = lines.hash, lines.last, self.short_line_length
        repeated = repeats(lines.first, hashes, chars, full)
        terminal = (characters.flags_at(end) & characters.TERMINAL) != 0
        words = text.words_of(docs, "script" if paper else self.words).counts()
        return {
            "n_lines": n_lines,
            "line_punct_ratio": text.ratio(text.per_document(lines.first, terminal & full), n_lines),
            "short_line_ratio": text.ratio(text.per_document(lines.first, (width <= limit) & full), n_lines),
            "char_dup_ratio": text.ratio(repeated[:, 2], repeated[:, 3] if paper else text.chars_of(docs) - newlines),
            "list_ratio": text.ratio(newlines, words),
        }

    def rules(self) -> list[Rule]:
        paper = self.variant == "paper"
        duplicates, list_ratio = self.char_duplicates_ratio, self.new_line_ratio
        if duplicates is None:
            duplicates = 0.1 if paper else 0.01
        if list_ratio is None and not paper:
            list_ratio = 0.3
        return [
            Rule("empty", "n_lines", at_least=1),
            Rule("line_punct_ratio", "line_punct_ratio", at_least=self.line_punct_thr),
            Rule("short_line_ratio", "short_line_ratio", at_most=self.short_line_thr),
            Rule("char_dup_ratio", "char_dup_ratio", at_most=duplicates),
            Rule("list_ratio", "list_ratio", at_most=list_ratio),
        ]

    def verdict(self, docs: Documents, scores: Mapping[str, np.ndarray]) -> Verdict:
        if self.line_punct_exclude_zero:
            ratio = np.asarray(scores["line_punct_ratio"])
            scores = {**scores, "line_punct_ratio": np.where(ratio == 0, np.nan, ratio)}
        return super().verdict(docs, scores)
