"""C4's rules: keep the lines that read like sentences, drop pages with too few of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.optional import require
from pipeline.step import Documents, Filter, Rule


class C4(Filter):
    """Drops lines that are no sentences, and pages with too few sentences, placeholder text or code.

    The text becomes the lines that stay. Lines go for a word that is too long, no terminal punctuation ("..." is
    none), too few words, "javascript" and phrases about cookies and terms of use; citation marks ("[12]", "[edit]")
    are taken out. Scores: n_sentences (in the lines that stay), lorem_ipsum and curly_bracket (1 where the page goes
    for it), lines_kept, lines_dropped. Reasons: lorem_ipsum, curly_bracket, too_few_sentences.

    `variant`:
    - paper: the code that made C4: 5 words a line, 3 sentences a page. Terminal marks of other scripts count too
      (。！？), and each character of Chinese or Japanese text is a word.
    - datatrove: 3 words a line, 5 sentences a page, and "'" ends a line as well.
    - dolma: as that toolkit's tagger c4_v2 measures: 3 words a line; "javascript" anywhere drops the page; sentences
      are not counted, citations and phrases about cookies stay. A page without a line left goes, as "nothing_left".

    Sentences are counted by rules over characters, see pipeline.kernels.sentences.
    Source: Raffel et al. 2020, arXiv 1910.10683, section 2.2, and its published code (c4_utils).
    """

    variant: Literal["paper", "datatrove", "dolma"] = Field("paper", description="whose numbers and marks")
    sentences: Literal["rules", "spacy"] = Field(
        "rules", description="how sentences are counted: by rules over characters, or by spaCy as datatrove does"
    )
    min_num_sentences: int | None = Field(None, description="fewest sentences; the variant's own: 3, 5 or none")
    min_words_per_line: int | None = Field(None, description="fewest words of a line; the variant's own: 5, 3 or 3")
    max_word_length: int = Field(1000, description="a longer word drops its line, characters")
    filter_no_terminal_punct: bool = Field(True, description="drop lines without terminal punctuation")
    remove_citations: bool = Field(True, description="take out citation marks")
    filter_lorem_ipsum: bool = Field(True, description="drop pages with 'lorem ipsum'")
    filter_javascript: bool = Field(True, description="drop lines with 'javascript'")
    filter_curly_bracket: bool = Field(True, description="drop pages with '{'")
    filter_policy: bool = Field(True, description="drop lines about cookies, privacy and terms of use")

    def check(self) -> None:
        if self.sentences == "spacy":
            require("spacy", "filters.c4: sentences: spacy", "set sentences: rules")

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import c4, text
        from pipeline.kernels.lines import split_lines
        from pipeline.kernels.spacy_words import count_sentences_by_kind

        if self.variant == "dolma":
            return self._dolma_scores(docs)
        counts, offsets, data = self._cleaned(docs)
        sentences = counts[:, c4.SENTENCES]
        if self.sentences == "spacy":
            # Every kept line is split on its own; the line feed at its end is white space to the tokenizer.
            lines = split_lines(offsets, data, universal=False)
            found, kinds = text.spacy_words().split(np.append(lines.start, offsets[-1]), data)
            sentences = text.per_document(lines.first, count_sentences_by_kind(found.first, kinds))
        return {
            "n_sentences": sentences,
            "lorem_ipsum": counts[:, c4.LOREM],
            "curly_bracket": counts[:, c4.CURLY],
            "lines_kept": counts[:, c4.KEPT],
            "lines_dropped": counts[:, : c4.KEPT].sum(axis=1),
        }

    def columns(self, docs: Documents) -> dict[str, pa.Array]:
        from pipeline.kernels.text import lines_of, text_array, with_lines

        if self.variant == "dolma":
            return {"text": with_lines(docs, lines_of(docs), self._dolma_lines(docs))}
        _, offsets, data = self._cleaned(docs)
        return {"text": text_array(offsets, data)}

    def rules(self) -> list[Rule]:
        fewest = self.min_num_sentences
        if fewest is None:
            fewest = 3 if self.variant == "paper" else 5
        page = [Rule("lorem_ipsum", "lorem_ipsum", at_most=0), Rule("curly_bracket", "curly_bracket", at_most=0)]
        if self.variant == "dolma":
            return [*page, Rule("javascript", "javascript", at_most=0), Rule("nothing_left", "lines_kept", at_least=1)]
        return [
            *page,
            Rule("too_few_sentences", "n_sentences", at_least=fewest),
        ]

    def _cleaned(self, docs: Documents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from pipeline.kernels import c4, text

        paper = self.variant == "paper"
        fewest = self.min_words_per_line
        if fewest is None:
            fewest = 5 if paper else 3
        lines = text.lines_of(docs, universal=True)

        def compute() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            splitter: text.Splitter = "script" if paper else "space"
            words = text.words_of(docs, splitter)
            first = text.words_in_lines(docs, lines, splitter)
            long = np.flatnonzero(words.chars > self.max_word_length)
            longest = np.zeros(len(lines.start), np.int64)
            longest[np.searchsorted(first, long, side="right") - 1] = self.max_word_length + 1
            return c4.clean_lines(
                lines.first, lines.strip_start, lines.strip_end, lines.tail, np.diff(first), longest,
                docs.text_buffers()[1], self.max_word_length, fewest, self.filter_no_terminal_punct, not paper, paper,
                self.remove_citations, self.filter_lorem_ipsum, self.filter_javascript,
                self.filter_curly_bracket, self.filter_policy,
            )  # fmt: skip

        return docs.once(f"c4:{self.model_dump_json()}", compute)

    def _dolma_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import c4, text

        lines, keep = text.lines_of(docs), self._dolma_lines(docs)
        wanted = (self.filter_lorem_ipsum, self.filter_javascript, self.filter_curly_bracket)
        lorem, javascript, curly = (c4.page_flags(*docs.text_buffers()) * np.array(wanted)).T
        return {
            "lorem_ipsum": lorem,
            "curly_bracket": curly,
            "javascript": javascript,
            "lines_kept": text.per_document(lines.first, keep),
            "lines_dropped": text.per_document(lines.first, ~keep),
        }

    def _dolma_lines(self, docs: Documents) -> np.ndarray:
        """Which lines stay, bool."""
        from pipeline.kernels import text

        lines = text.lines_of(docs)
        keep: np.ndarray = np.diff(text.words_in_lines(docs, lines, "space")) >= (self.min_words_per_line or 3)
        if self.filter_no_terminal_punct:
            keep &= np.isin(lines.tail, [ord(mark) for mark in '.?!"'])
        return keep
