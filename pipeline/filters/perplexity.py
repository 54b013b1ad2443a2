"""Perplexity under a KenLM n-gram model, in CCNet's way: head, middle and tail of a language's documents."""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from cluster import storage
from cluster.errors import RecipeError
from pipeline.optional import require
from pipeline.step import Documents, Filter, Rule


class Perplexity(Filter):
    """Removes documents that an n-gram language model finds too surprising, or too predictable.

    The score is perplexity = 10 ** (-log10 p / n) over the document's lines, each with its end of sentence, as CCNet
    computes it; n counts tokens and line ends. NaN without any token. With `head_max` and `middle_max` the column
    `perplexity_bucket` is head, middle or tail. Reasons: too_surprising, too_predictable.

    The model is an ARPA or binary file of KenLM; without `model` it is the one that filters.train_perplexity made
    earlier in the recipe. That one knows the percentiles of the corpus: then perplexity_percentile is a score too (0
    for the least surprising documents), `max_percentile` a bound on it, and head and middle may be given as shares of
    the documents (CCNet: 0.3 and 0.6) instead of perplexities.
    Needs the package ufal-kenlm (`pip install corpusmill[perplexity]`).
    Source: Wenzek et al. 2019 (CCNet), arXiv 1911.00359; Heafield 2011 (KenLM).
    """

    model: str | None = Field(None, description="KenLM model, ARPA or binary; none: that of filters.train_perplexity")
    tokens: Literal["words", "characters", "sentencepiece"] = Field("words", description="what `model` counts")
    sentencepiece: str | None = Field(None, description="the SentencePiece model, for tokens: sentencepiece")
    lower: bool = Field(True, description="lower-case the text and write digits as 0, as CCNet does")
    max_perplexity: float | None = Field(None, description="documents above it go")
    min_perplexity: float | None = Field(None, description="documents below it go")
    max_percentile: float | None = Field(None, ge=0, le=100, description="documents above this one of the corpus go")
    head_max: float | None = Field(None, description="largest perplexity of the bucket head")
    middle_max: float | None = Field(None, description="largest perplexity of the bucket middle")
    head_share: float | None = Field(None, ge=0, le=1, description="share of the corpus in the bucket head")
    middle_share: float | None = Field(None, ge=0, le=1, description="share in the buckets head and middle together")

    _trained: dict[str, Any] = PrivateAttr(default_factory=dict)

    def check(self) -> None:
        require("kenlm", "filters.perplexity", "leave the step out: nothing else needs it")
        if self.model is not None and not os.path.isfile(self.model):
            raise RecipeError(f"filters.perplexity: no model at '{self.model}'")
        check_tokens(self.step_name(), self.tokens, self.sentencepiece)
        for names in (("head_max", "middle_max"), ("head_share", "middle_share")):
            if len({getattr(self, name) is None for name in names}) > 1:
                raise RecipeError(f"filters.perplexity: {' and '.join(names)} go together")
        if self.model is not None and (self.head_share is not None or self.max_percentile is not None):
            raise RecipeError(
                "filters.perplexity: shares and percentiles are those that filters.train_perplexity found; "
                "for a `model` of your own set perplexities (head_max, middle_max, max_perplexity)"
            )

    def needs(self) -> tuple[str, ...]:
        return () if self.model is not None else ("perplexity_model",)

    def input_identity(self) -> list[Any]:
        files = [path for path in (self.model, self.sentencepiece) if path and os.path.isfile(path)]
        return [[os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in files]

    def warm(self, artifacts: Mapping[str, str]) -> None:
        if self.model is None:
            folder = artifacts["perplexity_model"]
            about = json.loads(storage.read_bytes(storage.join(folder, "perplexity.json")))
            self._trained.update(about, model=storage.join(folder, "model.arpa"))
            if about["tokens"] == "sentencepiece":
                self._trained["sentencepiece"] = storage.join(folder, "sentencepiece.model")
        _model(self._trained.get("model", self.model))

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        score = self._perplexity(docs)
        if self.model is not None:
            return {"perplexity": score}
        return {"perplexity": score, "perplexity_percentile": self._percentile(score)}

    def columns(self, docs: Documents) -> dict[str, pa.Array]:
        score = self._perplexity(docs)
        if self.head_share is not None and self.middle_share is not None:
            value, head, middle = self._percentile(score), 100 * self.head_share, 100 * self.middle_share
        elif self.head_max is not None and self.middle_max is not None:
            value, head, middle = score, self.head_max, self.middle_max
        else:
            return {}
        names = np.where(value <= head, "head", np.where(value <= middle, "middle", "tail"))
        return {"perplexity_bucket": pa.array(names, pa.string(), mask=np.isnan(value))}

    def rules(self) -> list[Rule]:
        rules = [
            Rule("too_surprising", "perplexity", at_most=self.max_perplexity),
            Rule("too_predictable", "perplexity", at_least=self.min_perplexity),
        ]
        if self.model is None:
            rules.append(Rule("too_surprising", "perplexity_percentile", at_most=self.max_percentile))
        return rules

    def _perplexity(self, docs: Documents) -> np.ndarray:
        about = self._trained or {
            "model": self.model, "tokens": self.tokens, "lower": self.lower, "sentencepiece": self.sentencepiece,
        }  # fmt: skip
        split = splitter(about["tokens"], about.get("sentencepiece"))
        return docs.once(
            f"perplexity:{about['model']}:{about['tokens']}:{about['lower']}",
            lambda: perplexities(docs, about["model"], split, about["lower"]),
        )

    def _percentile(self, score: np.ndarray) -> np.ndarray:
        """The smallest percentile of the corpus whose perplexity is not exceeded, 0 to 100; NaN without a score."""
        table = np.array(self._trained["percentiles"] or [np.inf])
        found = np.minimum(np.searchsorted(table, score), 100).astype(np.float64)
        found[np.isnan(score)] = np.nan
        return found


def check_tokens(step: str, tokens: str, sentencepiece: str | None) -> None:
    """Refuse a way of splitting whose model is not named."""
    if (tokens == "sentencepiece") != (sentencepiece is not None):
        raise RecipeError(f"{step}: tokens: sentencepiece and the path `sentencepiece` go together")


def perplexities(docs: Documents, model: str, split: Callable[[str], list[str]], lower: bool) -> np.ndarray:
    """10 ** (-log10 p / n) of each document, float64; NaN without any token."""
    scorer = _model(model)
    out = np.full(len(docs), np.nan)
    for row, data in enumerate(docs.column("text").cast(pa.large_binary()).to_pylist()):
        text = (data or b"").decode("utf-8", "replace")
        lines, count = _lines_of_words(text, lower) if split is str.split else _lines_of_tokens(text, split, lower)
        log_probability = 0.0
        for line in lines:
            log_probability += scorer.score(line)
        if count:
            out[row] = math.pow(10.0, min(300.0, -log_probability / count))
    return out


def sentences(text: str, split: Callable[[str], list[str]], lower: bool) -> Iterator[list[str]]:
    """The tokens of each line that has any."""
    for line in _cased(text, lower).split("\n"):
        if tokens := split(line):
            yield tokens


def _cased(text: str, lower: bool) -> str:
    if not lower:
        return text
    data = text.lower().encode("utf-8", "surrogatepass")  # str.translate takes more time than all the rest
    return data.translate(_ZEROS).decode("utf-8", "surrogatepass")


def _lines_of_tokens(text: str, split: Callable[[str], list[str]], lower: bool) -> tuple[list[str], int]:
    """(lines as KenLM wants them, tokens between spaces; number of tokens and line ends)."""
    found = list(sentences(text, split, lower))
    return [" ".join(tokens) for tokens in found], sum(map(len, found)) + len(found)


def _lines_of_words(text: str, lower: bool) -> tuple[list[bytes], int]:
    """The same for words, which KenLM splits itself once all white space is that of ASCII, the only one it knows."""
    text = text.lower() if lower else text
    for wide in "" if text.isascii() else _WIDE_SPACES:
        text = text.replace(wide, " ")
    data = text.encode().translate(_WORDS_LOWER if lower else _WORDS)
    lines = [line for line in data.split(b"\n") if line and not line.isspace()]
    space = _IS_SPACE[np.frombuffer(b" " + data, np.uint8)]
    return lines, int(np.count_nonzero(space[:-1] > space[1:])) + len(lines)


def splitter(tokens: str, sentencepiece: str | None) -> Callable[[str], list[str]]:
    """How a line is split: at white space, into characters, or by a SentencePiece model."""
    if tokens == "words":
        return str.split
    if tokens == "characters":
        return lambda line: list("".join(line.split()))
    assert sentencepiece is not None
    processor = _sentencepiece(sentencepiece)
    return lambda line: processor.encode(line, out_type=str)  # type: ignore[no-any-return]


_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_WIDE_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_WORDS = bytes.maketrans(b"\x1c\x1d\x1e\x1f", b"    ")
_WORDS_LOWER = _WORDS.translate(_ZEROS)
_IS_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])


@functools.lru_cache(maxsize=4)
def _model(path: str) -> Any:
    import kenlm

    if os.path.isfile(path):
        return kenlm.Model(path)
    with tempfile.NamedTemporaryFile(suffix=".arpa") as file:  # KenLM opens local files only
        file.write(storage.read_bytes(path))
        file.flush()
        return kenlm.Model(file.name)


@functools.lru_cache(maxsize=4)
def _sentencepiece(path: str) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=storage.read_bytes(path))
