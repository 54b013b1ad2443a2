"""The public extraction benchmarks, read from ../shared/data, with the scoring rule of each."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DATA = Path(__file__).parents[2] / "shared/data/html_extraction"
FOLDS = 4
_WORD = re.compile(r"\w+")


class Item(NamedTuple):
    """A page; `gold` is its main text, or None where only snippets that must (not) be found are known."""

    set: str
    id: str
    url: str | None
    kind: str
    html: bytes
    gold: str | None
    must: list[str]
    must_not: list[str]

    @property
    def domain(self) -> str:
        """What pages are held back by: the registered domain, nearly."""
        labels = (urlsplit(self.url or "").hostname or self.id).removeprefix("www.").split(".")
        return ".".join(labels[-3:] if len(labels) > 2 and len(labels[-2]) <= 3 else labels[-2:])


def fold_of(item: Item) -> int:
    """0 … FOLDS - 1, the same for all pages of a domain."""
    return int(hashlib.md5(item.domain.encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS


def items(sets: tuple[str, ...] = ("wcxb", "aeb", "trafilatura")) -> Iterator[Item]:
    """All pages: WCXB development set, article-extraction-benchmark, trafilatura's evaluation set."""
    readers = {"wcxb": _wcxb, "aeb": _articles, "trafilatura": _trafilatura}
    for name in sets:
        yield from readers[name]()


def _wcxb() -> Iterator[Item]:
    with tempfile.TemporaryDirectory() as folder:
        pages = DATA / "wcxb_dev/pages.tar.zst"
        subprocess.run(["tar", "--use-compress-program", "zstd -d --long=27", "-xf", pages, "-C", folder], check=True)
        with lzma.open(DATA / "wcxb_dev/ground-truth.jsonl.xz", "rt", encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if "main_content" in entry:
                    kind = entry["page_type"]["primary"] if isinstance(entry["page_type"], dict) else entry["page_type"]
                    html = (Path(folder) / f"{entry['file_id']}.html").read_bytes()
                    yield Item("wcxb", entry["file_id"], entry["url"], kind, html, entry["main_content"], [], [])


def _articles() -> Iterator[Item]:
    truth = json.loads((DATA / "article_extraction_benchmark/ground-truth.json").read_text())
    with tarfile.open(DATA / "article_extraction_benchmark/pages.tar") as archive:
        files = {Path(m.name).name.partition(".")[0]: m for m in archive.getmembers() if m.isfile()}
        for name, entry in sorted(truth.items()):
            found: Any = archive.extractfile(files[name])
            html = gzip.decompress(found.read())
            yield Item("aeb", name, entry.get("url"), "article", html, entry["articleBody"], [], [])


def _trafilatura() -> Iterator[Item]:
    truth = json.loads((DATA / "trafilatura_eval/evaldata.json").read_text())
    with tarfile.open(DATA / "trafilatura_eval/pages.tar.xz") as archive:
        files = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
        for url, entry in sorted(truth.items()):
            found: Any = archive.extractfile(files[entry["file"]])
            yield Item("trafilatura", url, url, "article", found.read(), None, entry["with"], entry["without"])


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def word_f1(text: str, gold: str) -> float:
    """WCXB: F1 of the multisets of words."""
    a, b = Counter(words(text)), Counter(words(gold))
    if not a and not b:
        return 1.0
    hits = (a & b).total()
    return 2 * hits / (a.total() + b.total())


def shingle_f1(pairs: list[tuple[str, str]]) -> float:
    """article-extraction-benchmark: F1 of mean precision and recall of 4-word shingles."""
    precision, recall = [], []
    for text, gold in pairs:
        a, b = _shingles(text), _shingles(gold)
        hits = (a & b).total()
        if a:
            precision.append(hits / a.total())
        if b:
            recall.append(hits / b.total())
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return 2 * p * r / (p + r)


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    found = _WORD.findall(text)
    return Counter(tuple(found[i : i + 4]) for i in range(max(1, len(found) - 3))) if found else Counter()


def snippet_f1(outcomes: list[tuple[str, list[str], list[str]]]) -> float:
    """trafilatura's set: F1 over snippets that must and must not be in the text, white space apart."""
    hits = wrong = missed = 0
    for text, must, must_not in outcomes:
        flat = " ".join(text.split())
        found = sum(" ".join(snippet.split()) in flat for snippet in must)
        hits += found
        missed += len(must) - found
        wrong += sum(" ".join(snippet.split()) in flat for snippet in must_not)
    return 2 * hits / (2 * hits + wrong + missed)


def scores(texts: dict[tuple[str, str], str], pages: list[Item]) -> dict[str, float]:
    """The three scores, and WCXB by kind of page, of texts by (set, id)."""
    by_kind: dict[str, list[float]] = {}
    for page in pages:
        if page.set == "wcxb" and (page.set, page.id) in texts:
            by_kind.setdefault(page.kind, []).append(word_f1(texts[page.set, page.id], page.gold or ""))
    everything = [value for values in by_kind.values() for value in values]
    out = {"wcxb": sum(everything) / max(1, len(everything))}
    out["aeb"] = shingle_f1([(texts[p.set, p.id], p.gold or "") for p in pages if p.set == "aeb"])
    out["trafilatura"] = snippet_f1(
        [(texts[p.set, p.id], p.must, p.must_not) for p in pages if p.set == "trafilatura" and (p.set, p.id) in texts]
    )
    return out | {f"wcxb {kind}": sum(v) / len(v) for kind, v in sorted(by_kind.items()) if len(v) > 5}
