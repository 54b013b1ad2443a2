"""Gopher's repetition rules: thirteen ways in which a document can say the same thing again and again."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.optional import require
from pipeline.step import Documents, Filter, Rule


class GopherRepetition(Filter):
    """Removes documents with too many repeated lines, paragraphs or word n-grams.

    The 13 scores are named as the thresholds, and so are the reasons; the shares of characters are of 0 to 1.

    `variant`:
    - paper: shares of the characters of words, lines or paragraphs, white space aside. Lines and paragraphs count
      from their second occurrence; top n-grams count the characters inside the most frequent n-gram (if it occurs
      twice at least); duplicate n-grams the characters inside any n-gram that occurs twice, each character once.
      Each character of a script without spaces is a word. Blank lines do not count.
    - datatrove: shares of all characters, white space included; a top n-gram counts even where it occurs once;
      duplicate n-grams are joined without spaces and counted from the second on, without overlap. An empty
      document goes, as "empty".
    - dolma: as that toolkit's tagger gopher_v1 measures: repeated lines count from their first occurrence, blank ones
      too; shares are of the characters of words; a top n-gram counts even where it occurs once; characters of
      repeated n-grams count once for each n-gram, of all n-grams' characters. It has no paragraph rules.
    - dclm: as DataComp-LM's filters decide: lines and paragraphs are stripped, and count from their first occurrence;
      words are those between Unicode's word boundaries (UAX 29) that start with a letter or digit; the most frequent
      n-gram (of equally frequent ones the longest) counts its characters times its occurrences. An empty document
      goes, as "empty".
    - redpajama: RedPajama-V2's signals: words in lower case without ASCII punctuation; the most frequent n-gram (of
      equally frequent ones the first) as in dclm. It has no rules for lines and paragraphs.

    Source: Rae et al. 2021, arXiv 2112.11446, A1.2, table A1; Weber et al. 2024, arXiv 2411.12372; Li et al. 2024,
    arXiv 2406.11794.
    """

    variant: Literal["paper", "datatrove", "dolma", "dclm", "redpajama"] = Field(
        "paper", description="whose way of counting"
    )
    words: Literal["space", "spacy"] = Field(
        "space", description="how the datatrove variant splits words: at white space, or by spaCy as it does itself"
    )
    dup_line_frac: float | None = Field(0.30, description="largest share of lines that repeat an earlier one")
    dup_para_frac: float | None = Field(0.30, description="largest share of repeated paragraphs")
    dup_line_char_frac: float | None = Field(0.20, description="largest share of characters in repeated lines")
    dup_para_char_frac: float | None = Field(0.20, description="largest share of characters in repeated paragraphs")
    top_2_gram: float | None = Field(0.20, description="largest share of characters in the most frequent 2-gram")
    top_3_gram: float | None = Field(0.18, description="largest share of characters in the most frequent 3-gram")
    top_4_gram: float | None = Field(0.16, description="largest share of characters in the most frequent 4-gram")
    dup_5_gram: float | None = Field(0.15, description="largest share of characters in repeated 5-grams")
    dup_6_gram: float | None = Field(0.14, description="largest share of characters in repeated 6-grams")
    dup_7_gram: float | None = Field(0.13, description="largest share of characters in repeated 7-grams")
    dup_8_gram: float | None = Field(0.12, description="largest share of characters in repeated 8-grams")
    dup_9_gram: float | None = Field(0.11, description="largest share of characters in repeated 9-grams")
    dup_10_gram: float | None = Field(0.10, description="largest share of characters in repeated 10-grams")

    def check(self) -> None:
        if self.words == "spacy":
            require("spacy", "filters.gopher_repetition: words: spacy", "set words: space")

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import ngrams, text
        from pipeline.kernels.lines import repeats, split_paragraphs
        from pipeline.kernels.words import word_sums

        if self.variant == "dolma":
            return self._dolma_scores(docs)
        if self.variant == "dclm" or self.variant == "redpajama":
            return self._marked_scores(docs)
        paper = self.variant == "paper"
        words = text.words_of(docs, "script" if paper else self.words)
        chars = text.chars_of(docs)
        lines = text.lines_of(docs)
        paragraphs = split_paragraphs(lines)
        everything = np.ones(len(paragraphs.hash), np.bool_)
        if paper:
            dup_lines = repeats(lines.first, lines.strip_hash, lines.chars - lines.lead - lines.trail, ~lines.blank())
            top = ngrams.repeated_ngrams(words.first, words.hash, words.chars, 4, 10, ngrams.TOP_CONTAINED)
            dup = top[:, 3:]
            word_chars = word_sums(words.first, words.chars, words.flags)[:, 6]
            paragraphs_take = paragraphs.chars > 0
        else:
            take = lines.chars > 0
            take[lines.first[:-1]] = True  # the parts of re.split("\n+") are empty only at both ends
            take[lines.first[1:] - 1] = True
            dup_lines = repeats(lines.first, lines.hash, lines.chars, take)
            top = ngrams.repeated_ngrams(words.first, words.hash, words.chars, 4, 4, ngrams.TOP_JOINED)
            dup = ngrams.greedy_ngrams(words.first, words.hash, words.chars, 5, 10)
            word_chars = chars
            paragraphs_take = everything
        dup_paras = repeats(paragraphs.first, paragraphs.hash, paragraphs.chars, paragraphs_take)
        out = {
            "chars": chars,
            "dup_para_frac": text.ratio(dup_paras[:, 1], dup_paras[:, 0]),
            "dup_para_char_frac": text.ratio(dup_paras[:, 2], dup_paras[:, 3] if paper else chars),
            "dup_line_frac": text.ratio(dup_lines[:, 1], dup_lines[:, 0]),
            "dup_line_char_frac": text.ratio(dup_lines[:, 2], dup_lines[:, 3] if paper else chars),
        }
        for n in (2, 3, 4):
            out[f"top_{n}_gram"] = text.ratio(top[:, n - 2], word_chars)
        for n in range(5, 11):
            out[f"dup_{n}_gram"] = text.ratio(dup[:, n - 5], word_chars)
        return out

    def rules(self) -> list[Rule]:
        signals = ["dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac"]
        signals += [f"top_{n}_gram" for n in (2, 3, 4)] + [f"dup_{n}_gram" for n in range(5, 11)]
        rules = [Rule(signal, signal, at_most=getattr(self, signal)) for signal in signals]
        return rules if self.variant not in ("datatrove", "dclm") else [Rule("empty", "chars", at_least=1), *rules]

    def _dolma_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        from pipeline.kernels import ngrams, text
        from pipeline.kernels.lines import repeats
        from pipeline.kernels.words import word_sums

        words, lines = text.words_of(docs, "space"), text.lines_of(docs)
        chars = word_sums(words.first, words.chars, words.flags)[:, 6]
        again = repeats(lines.first, lines.hash, lines.chars, np.ones(len(lines.hash), np.bool_), True)
        found = ngrams.repeated_ngrams(words.first, words.hash, words.chars, 4, 10, ngrams.TOP_ONCE, True)
        out = {
            "chars": text.chars_of(docs),
            "dup_para_frac": np.full(len(docs), np.nan),
            "dup_para_char_frac": np.full(len(docs), np.nan),
            "dup_line_frac": text.ratio(again[:, 1], again[:, 0]),
            "dup_line_char_frac": text.ratio(again[:, 2], chars),
        }
        for n in (2, 3, 4):
            out[f"top_{n}_gram"] = text.ratio(found[:, n - 2], chars)
        for n in range(5, 11):
            out[f"dup_{n}_gram"] = text.ratio(found[:, n - 2], ngrams.ngram_chars(words.first, words.chars, n))
        return out

    def _marked_scores(self, docs: Documents) -> dict[str, np.ndarray]:
        """DCLM's and RedPajama's way: n-grams that occur twice mark their words."""
        from pipeline.kernels import ngrams, text
        from pipeline.kernels.lines import repeats, split_paragraphs
        from pipeline.kernels.words import word_sums

        dclm = self.variant == "dclm"
        words = text.words_of(docs, "unicode" if dclm else "normal")
        chars = word_sums(words.first, words.chars, words.flags)[:, 6]
        mode = ngrams.TOP_LONGEST if dclm else ngrams.TOP_PRODUCT
        found = ngrams.repeated_ngrams(words.first, words.hash, words.chars, 4, 10, mode)
        out = {"chars": text.chars_of(docs)}
        if dclm:
            lines = text.lines_of(docs)
            stripped = lines.chars - lines.lead - lines.trail
            dup_lines = repeats(lines.first, lines.strip_hash, stripped, ~lines.blank(), True)
            parts = split_paragraphs(lines, strip=True)
            dup_paras = repeats(parts.first, parts.hash, parts.chars, np.ones(len(parts.hash), np.bool_), True)
            out["chars"] = dup_lines[:, 3]
            for name, table in (("para", dup_paras), ("line", dup_lines)):
                out[f"dup_{name}_frac"] = text.ratio(table[:, 1], table[:, 0])
                out[f"dup_{name}_char_frac"] = text.ratio(table[:, 2], table[:, 3])
        else:
            for name in ("para", "line"):
                out[f"dup_{name}_frac"] = out[f"dup_{name}_char_frac"] = np.full(len(docs), np.nan)
        for n in range(2, 11):
            out[f"top_{n}_gram" if n < 5 else f"dup_{n}_gram"] = text.ratio(found[:, n - 2], chars)
        return out
