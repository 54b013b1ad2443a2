"""Gopher's quality rules: word counts, word lengths, symbols, bullets, ellipses, letters and stop words."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.optional import require
from pipeline.step import Documents, Filter, Rule

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
DCLM_BULLETS, REDPAJAMA_BULLETS = "●•*-", "•‣▶◀◦■□▪▫–"
CHINESE_STOP_WORDS = ("的", "是", "在", "了", "不", "有", "和", "这", "為", "为", "与", "以", "也", "之")
BULLETS = "•‣▪●◦·*-–—∙○■□▶►➤➢✓※"


class GopherQuality(Filter):
    """Removes documents that are not ordinary prose, by Gopher's quality rules.

    Scores: n_words, mean_word_length, hash_ratio, ellipsis_ratio, bullet_lines, ellipsis_lines, alpha_words,
    stop_words; the reasons are in `rules`.

    `variant` says what a word, a line and a stop word are:
    - paper: words at white space; each character of a script without spaces (Chinese, Japanese, Thai …) is a word,
      and where such words are the majority `mean_word_length` is undefined and removes nothing. Stop words are
      compared in lower case without punctuation, English and Chinese ones together. Blank lines do not count.
    - datatrove: as that library decides with its words split at white space: symbol-only words are not counted,
      stop words are case-sensitive and whole, bullets are "•" and "-" only, blank lines count.
    - dolma: as that toolkit's tagger gopher_v1 measures: the median word length, the share of words with "#" or "…"
      (both in hash_ratio), every stop word counted each time, bullets "*" and "-" and "…" at the very edge of a line.
    - dclm: as DataComp-LM's filters decide: words are counted as fastText splits them, where they start with a letter
      or digit; hash_ratio has all symbols, ". . ." among them; every stop word counts each time, in any case; lines
      are those that are not blank.
    - redpajama: RedPajama-V2's signals: words in lower case without ASCII punctuation, decomposed (n_words,
      mean_word_length), or runs of word characters and of signs (hash_ratio, which has all symbols, and alpha_words,
      by the letters a to z); blank lines count. It has no rule about stop words.

    Source: Rae et al. 2021, arXiv 2112.11446, A1.1; Weber et al. 2024, arXiv 2411.12372; Li et al. 2024,
    arXiv 2406.11794.
    """

    variant: Literal["paper", "datatrove", "dolma", "dclm", "redpajama"] = Field(
        "paper", description="whose definition of words and lines"
    )
    words: Literal["space", "spacy"] = Field(
        "space", description="how the datatrove variant splits words: at white space, or by spaCy as it does itself"
    )
    min_words: int | None = Field(50, description="fewest words")
    max_words: int | None = Field(100_000, description="most words")
    min_mean_word_length: float | None = Field(3, description="least mean word length, characters")
    max_mean_word_length: float | None = Field(10, description="greatest mean word length, characters")
    max_hash_ratio: float | None = Field(0.1, description="most '#' per word")
    max_ellipsis_ratio: float | None = Field(0.1, description="most '...' and '…' per word")
    max_bullet_lines: float | None = Field(0.9, description="largest share of lines that start with a bullet")
    max_ellipsis_lines: float | None = Field(0.3, description="largest share of lines that end in an ellipsis")
    min_alpha_words: float | None = Field(0.8, description="least share of words with a letter")
    min_stop_words: int | None = Field(2, description="fewest different stop words")
    stop_words: tuple[str, ...] | None = Field(None, description="the stop words, instead of the variant's own")

    def check(self) -> None:
        if self.words == "spacy":
            require("spacy", "filters.gopher_quality: words: spacy", "set words: space")

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import text
        from pipeline.kernels.words import count_distinct, hash_words, word_sums

        if self.variant == "dolma":
            return self._dolma_scores(docs)
        if self.variant == "dclm":
            return self._dclm_scores(docs)
        if self.variant == "redpajama":
            return self._redpajama_scores(docs)
        paper = self.variant == "paper"
        words = text.words_of(docs, "script" if paper else self.words)
        alpha, content, content_chars, unspaced, spaced, spaced_chars, _ = word_sums(
            words.first, words.chars, words.flags
        ).T
        hashes, ellipses = text.marks_of(docs)
        lines = text.lines_of(docs, universal=not paper)
        every = words.counts()
        counted = ~lines.blank() if paper else np.ones(len(lines.head), np.bool_)
        n_lines = text.per_document(lines.first, counted)
        bullets = np.isin(lines.head, [ord(c) for c in (BULLETS if paper else "•-")])
        mean_length = text.ratio(spaced_chars, spaced) if paper else text.ratio(content_chars, content)
        if paper:
            mean_length[unspaced > spaced] = np.nan
        own = ENGLISH_STOP_WORDS + CHINESE_STOP_WORDS if paper else ENGLISH_STOP_WORDS
        stop_words = hash_words(own if self.stop_words is None else self.stop_words)
        return {
            "n_words": every if paper else content,
            "mean_word_length": mean_length,
            "hash_ratio": text.ratio(hashes, every),
            "ellipsis_ratio": text.ratio(ellipses, every),
            "bullet_lines": text.ratio(text.per_document(lines.first, bullets & counted), n_lines),
            "ellipsis_lines": text.ratio(
                text.per_document(lines.first, text.ends_with_ellipsis(docs, lines) & counted), n_lines
            ),
            "alpha_words": text.ratio(alpha, every),
            "stop_words": count_distinct(words.first, words.normal if paper else words.hash, stop_words),
        }

    def rules(self) -> list[Rule]:
        return [
            Rule("too_few_words", "n_words", at_least=self.min_words),
            Rule("too_many_words", "n_words", at_most=self.max_words),
            Rule("words_too_short", "mean_word_length", at_least=self.min_mean_word_length),
            Rule("words_too_long", "mean_word_length", at_most=self.max_mean_word_length),
            Rule("too_many_hashes", "hash_ratio", at_most=self.max_hash_ratio),
            Rule("too_many_ellipses", "ellipsis_ratio", at_most=self.max_ellipsis_ratio),
            Rule("too_many_bullet_lines", "bullet_lines", at_most=self.max_bullet_lines),
            Rule("too_many_ellipsis_lines", "ellipsis_lines", at_most=self.max_ellipsis_lines),
            Rule("too_few_alpha_words", "alpha_words", at_least=self.min_alpha_words),
            Rule("too_few_stop_words", "stop_words", at_least=self.min_stop_words),
        ]

    def _dolma_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import text
        from pipeline.kernels.words import count_containing, count_members, hash_words, median_chars, word_sums

        words, lines = text.words_of(docs, "space"), text.lines_of(docs)
        every, n_lines = words.counts(), lines.counts()
        edge = lines.lead == 0
        bullets = edge & ((lines.head == ord("*")) | (lines.head == ord("-")))
        symbols = count_containing(words.first, words.start, words.size, docs.text_buffers()[1])
        alpha = word_sums(words.first, words.chars, words.flags)[:, 0]
        stop_words = hash_words(ENGLISH_STOP_WORDS if self.stop_words is None else self.stop_words)
        return {
            "n_words": every,
            "mean_word_length": median_chars(words.first, words.chars),
            "hash_ratio": text.ratio(symbols, every),
            "ellipsis_ratio": np.full(len(docs), np.nan),
            "bullet_lines": text.ratio(text.per_document(lines.first, bullets), n_lines),
            "ellipsis_lines": text.ratio(text.per_document(lines.first, lines.last == 0x2026), n_lines),
            "alpha_words": text.ratio(alpha, every),
            "stop_words": count_members(words.first, words.hash, stop_words),
        }

    def _dclm_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import text
        from pipeline.kernels.characters import count_spaced_dots
        from pipeline.kernels.words import count_ascii_separated, count_lower_members, hash_words, word_sums

        words, lines = text.words_of(docs, "space"), text.lines_of(docs)
        offsets, data = docs.text_buffers()
        sums, every, full = word_sums(words.first, words.chars, words.flags), words.counts(), ~lines.blank()
        n_lines = text.per_document(lines.first, full)
        hashes, ellipses = text.marks_of(docs)
        ends = text.ends_with_ellipsis(docs, lines) | text.ends_with_spaced_dots(docs, lines)
        own = ENGLISH_STOP_WORDS if self.stop_words is None else self.stop_words
        longest = max(map(len, own), default=0)
        return {
            "n_words": count_ascii_separated(offsets, data),
            "mean_word_length": text.ratio(sums[:, 6], every),
            "hash_ratio": text.ratio(hashes + ellipses + count_spaced_dots(offsets, data), every),
            "ellipsis_ratio": np.full(len(docs), np.nan),
            "bullet_lines": text.ratio(
                text.per_document(lines.first, np.isin(lines.head, [ord(c) for c in DCLM_BULLETS])), n_lines
            ),
            "ellipsis_lines": text.ratio(text.per_document(lines.first, ends), n_lines),
            "alpha_words": text.ratio(sums[:, 0], every),
            "stop_words": count_lower_members(
                words.first, words.start, words.size, words.chars, data, hash_words(own), longest
            ),
        }

    def _redpajama_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import text
        from pipeline.kernels.normal_words import raw_words
        from pipeline.kernels.words import word_sums

        words, lines = text.words_of(docs, "normal"), text.lines_of(docs)
        chars = word_sums(words.first, words.chars, words.flags)[:, 6]
        raw, latin = raw_words(*docs.text_buffers()).T
        hashes, ellipses = text.marks_of(docs)
        n_lines = lines.counts() - (lines.chars[lines.first[1:] - 1] == 0)  # no line behind the last line feed
        bullets = np.isin(lines.head, [ord(c) for c in REDPAJAMA_BULLETS])
        return {
            "n_words": words.counts(),
            "mean_word_length": text.ratio(chars, words.counts()),
            "hash_ratio": text.ratio(hashes + ellipses, raw),
            "ellipsis_ratio": np.full(len(docs), np.nan),
            "bullet_lines": text.ratio(text.per_document(lines.first, bullets), n_lines),
            "ellipsis_lines": text.ratio(text.per_document(lines.first, text.ends_with_ellipsis(docs, lines)), n_lines),
            "alpha_words": text.ratio(latin, raw),
            "stop_words": np.full(len(docs), np.nan),
        }
