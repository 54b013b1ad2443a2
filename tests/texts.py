"""Documents for tests: batches from strings, odd texts, and the real ones in ../shared/data where they are."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import DOCUMENT
from pipeline.step import Documents, Filter, Verdict

DATA = Path(__file__).parents[2] / "shared" / "data"

ENGLISH = (
    "The history of the valley begins with the river that shaped it. People have farmed there for a thousand years, "
    "and the oldest of the stone houses still stand beside the mill. In spring the water rises to the level of the "
    "lower gardens, so the families that live along the bank plant late and harvest early. Visitors come in summer "
    "to walk the long path between the two villages, which follows the old line of a wall that nobody remembers "
    "building."
)
CHINESE = (
    "这条河谷的历史从塑造它的河流开始。一千年来，人们一直在这里耕种，最古老的石屋仍然立在磨坊旁边。"
    "春天的时候，水位会上涨到低处花园的高度，所以住在岸边的家庭种得晚，收得早。"
    "夏天有很多游客来到这里，沿着两个村庄之间的长路散步，那条路顺着一道没有人记得是谁修建的旧墙。"
)
ODD = [
    "", " ", "\n\n\n", "\u3000\u2003\r\n", "word", "字", "…", "...", "#", "\ud7ff\ue000", "a\nb\n\nc",
    "• - *", "\x00\x01", "ำ", "กำ", "\r\r\n\n\x85\u2028x", "{", "😀😀 😀", "🇨🇳 👩‍👩‍👧",
    "a" * 5000, "字" * 3000, "word " * 3000,
]  # fmt: skip

DAMAGED = [b"\xed\xa0\x80 lone surrogate \xed\xbf\xbf", b"\xff\xfe", b"cut \xe4\xb8", b"\xf0\x9f\x98"]
"""What is no UTF-8."""


def batch_of(texts: Sequence[str | bytes | None], languages: Sequence[str | None] | None = None) -> pa.RecordBatch:
    """DOCUMENT rows of `texts`; bytes are put in as they are, valid UTF-8 or not."""
    raw = [t if isinstance(t, bytes) else (t or "").encode("utf-8", "surrogatepass") for t in texts]
    text = pa.array(raw, pa.large_binary()).view(pa.large_string())
    n = len(raw)
    columns: dict[str, pa.Array] = {name: pa.nulls(n, DOCUMENT.field(name).type) for name in DOCUMENT.names}
    columns["doc_id"] = pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16))
    columns["source"] = pa.array(["test"] * n)
    columns["url"] = pa.array([f"https://example.org/{i}" for i in range(n)])
    columns["text"] = text
    if languages is not None:
        columns["language"] = pa.array(languages, pa.string())
    return pa.RecordBatch.from_arrays([columns[name] for name in DOCUMENT.names], schema=DOCUMENT)


def judge(step: Filter, *texts: str | bytes) -> Verdict:
    """The verdict of a filter on the given texts as one batch."""
    docs = Documents(batch_of(texts))
    return step.verdict(docs, step.scores(docs))


def reasons(step: Filter, *texts: str | bytes) -> list[str | None]:
    """The reasons of `judge`."""
    return list(judge(step, *texts).reason)


def score(step: Filter, name: str, text: str | bytes) -> float:
    """One score of one text."""
    return float(step.scores(Documents(batch_of([text])))[name][0])


def equal_scores(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Whether two sets of scores are the same to the bit (NaN equals NaN)."""
    return left.keys() == right.keys() and all(
        np.array_equal(left[k], right[k], equal_nan=left[k].dtype.kind == "f") for k in left
    )


def real_texts(limit: int | None = None) -> list[str]:
    """Real documents in English, Chinese and eight other languages; skips the test where the data is not there."""
    if not DATA.is_dir():
        pytest.skip("needs the real documents in ../shared/data")
    out: list[str] = []
    for name in ("llamafactory_c4_demo", "llamafactory_wiki_demo", "dolma_cc_en_head-0091"):
        with gzip.open(DATA / "text" / f"{name}.jsonl.gz", "rt") as file:
            out += [json.loads(line)["text"] for line in file]
    for path in sorted((DATA / "dedup" / "debian_installation_guide").glob("*.jsonl.xz")):
        with lzma.open(path, "rt") as file:
            out += [json.loads(line)["text"] for line in file]
    if limit is not None:
        out = [out[k] for k in np.random.default_rng(0).permutation(len(out))[:limit]]
    return out


def parity_texts() -> list[str]:
    """The documents that goldens are made of: all real ones, shuffled once, and the odd ones."""
    valid = [text for text in ODD if text.encode("utf-8", "replace").decode() == text]
    return list(dict.fromkeys([*real_texts(4000), *valid]))
