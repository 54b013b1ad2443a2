"""Real near-duplicates with known exact similarities: manuals in ten languages, poems, graded plagiarism."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import math
import statistics

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dedup.minhash import Minhash
from pipeline.kernels import minhash
from pipeline.step import string_buffers

LANGUAGES = ["ca", "es", "fr", "id", "ja", "pt", "ro", "ru", "sv", "zh_CN"]


def theory(similarity: float, bands: int = 14, rows: int = 8) -> float:
    """P(a pair shares a band)."""
    return 1 - (1 - similarity**rows) ** bands


def guide(data, language):
    """(texts, {(i, j): exact Jaccard}) of the installation guide in one language."""
    folder = data / "dedup" / "debian_installation_guide"
    with lzma.open(folder / f"{language}.jsonl.xz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    place = {page["id"]: i for i, page in enumerate(pages)}
    with gzip.open(folder / f"{language}.pairs.tsv.gz", "rt", encoding="utf-8") as rows:
        pairs = {(place[a], place[b]): float(j) for a, b, j in csv.reader(rows, delimiter="\t")}
    return [page["text"] for page in pages], pairs


def poems(data):
    """(Han characters of each poem, {(i, j): exact Jaccard of 3 characters}) of two editions."""
    folder = data / "dedup"
    with lzma.open(folder / "zh_tang_poems_two_editions.jsonl.xz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    place = {poem["id"]: i for i, poem in enumerate(lines)}
    with gzip.open(folder / "zh_tang_poems_two_editions.pairs.tsv.gz", "rt", encoding="utf-8") as rows:
        pairs = {(place[a], place[b]): float(j) for a, b, j in csv.reader(rows, delimiter="\t")}
    return [poem["text"] for poem in lines], pairs


def signed(texts, **settings):
    return minhash.signatures(*string_buffers(pa.array(texts, pa.large_string())), **settings)[0]


def exact(texts, i, j, **settings):
    """Exact Jaccard by the kernel; 1 for equal texts without a letter."""
    if texts[i] == texts[j]:
        return 1.0
    array = pa.array([texts[i], texts[j]], pa.large_string())
    offsets, values = minhash.shingle_sets(*string_buffers(array), np.arange(2, dtype=np.uint64), **settings)
    return minhash.jaccard(values[: offsets[1]], values[offsets[1] :])


def test_the_exact_jaccard_is_the_published_one(data):
    for language in ("fr", "ru", "sv"):
        texts, pairs = guide(data, language)
        for (i, j), similarity in list(pairs.items())[::5]:
            assert exact(texts, i, j, ngram=5) == pytest.approx(similarity, abs=1e-4)
    texts, pairs = poems(data)
    for (i, j), similarity in list(pairs.items())[::10]:
        assert exact(texts, i, j, ngram=3) == pytest.approx(similarity, abs=0.02)


def test_estimates_are_off_by_what_theory_says(data):
    errors, expected = [], []
    for language in LANGUAGES:
        texts, pairs = guide(data, language)
        signature = signed(texts, ngram=5, count=112)
        for i, j in pairs:
            similarity = exact(texts, i, j, ngram=5)
            errors.append(abs(minhash.agreement(signature[i], signature[j]) - similarity))
            expected.append(math.sqrt(2 / math.pi * similarity * (1 - similarity) / 112))
    assert len(errors) > 4000
    assert statistics.mean(errors) == pytest.approx(statistics.mean(expected), rel=0.1)
    assert statistics.mean(errors) < 0.023


def test_pairs_meet_in_a_band_as_often_as_theory_says(data):
    bins: dict[int, list[tuple[bool, float]]] = {}
    for language in LANGUAGES:
        texts, pairs = guide(data, language)
        keys = minhash.band_keys(signed(texts, ngram=5, count=112), 14, 8, np.zeros(len(texts), np.uint64))
        for i, j in pairs:
            similarity = exact(texts, i, j, ngram=5)
            bins.setdefault(int(similarity * 10), []).append((bool((keys[i] == keys[j]).any()), theory(similarity)))
    for pairs_in_bin in bins.values():
        found, expected = (statistics.mean(column) for column in zip(*pairs_in_bin, strict=True))
        # pages of four architectures change together, so a bin has fewer independent pairs than it has pairs
        assert found == pytest.approx(expected, abs=0.5 / math.sqrt(len(pairs_in_bin) / 4))


@pytest.mark.parametrize("threshold", [0.7, 0.8])
@pytest.mark.parametrize("language", LANGUAGES)
def test_guides_are_deduplicated_with_the_recall_of_theory_and_full_precision(dedup, docs, data, language, threshold):
    texts, pairs = guide(data, language)
    result = dedup(Minhash(verify=threshold), docs(texts))
    removed = {int.from_bytes(d, "big"): int.from_bytes(m, "big") for d, (_, m, _) in result["removed"].items()}
    own = {pair: exact(texts, *pair, ngram=5) for pair in pairs}
    similar = [pair for pair, similarity in own.items() if similarity >= threshold]
    found = sum(i in removed or j in removed for i, j in similar) / len(similar)
    assert found >= statistics.mean(theory(own[pair]) for pair in similar) - 0.02
    assert all(exact(texts, gone, stays, ngram=5) >= threshold for gone, stays in removed.items())
    by_publisher = [pairs.get((i, j), pairs.get((j, i), 0.0)) for i, j in removed.items()]
    assert statistics.mean(similarity >= threshold - 0.05 for similarity in by_publisher) > 0.97


def test_poems_of_two_editions_are_found_by_their_characters(dedup, docs, data):
    texts, pairs = poems(data)
    result = dedup(Minhash(ngram=3, verify=0.7, bands=20, rows=5), docs(texts))
    removed = {int.from_bytes(d, "big"): int.from_bytes(m, "big") for d, (_, m, _) in result["removed"].items()}
    own = {pair: exact(texts, *pair, ngram=3) for pair in pairs}
    similar = [pair for pair, similarity in own.items() if similarity >= 0.7]
    assert len(similar) > 900
    found = sum(i in removed or j in removed for i, j in similar) / len(similar)
    assert found >= statistics.mean(theory(own[pair], 20, 5) for pair in similar) - 0.01
    assert all(exact(texts, gone, stays, ngram=3) >= 0.7 for gone, stays in removed.items())


def test_plagiarism_grades_come_in_their_order(data):
    with gzip.open(data / "dedup" / "clough_stevenson_short_answers.jsonl.gz", "rt", encoding="utf-8") as lines:
        answers = [json.loads(line) for line in lines]
    texts = [answer["text"] for answer in answers]
    signature = signed(texts, ngram=3, count=256)
    original = {answer["task"]: i for i, answer in enumerate(answers) if answer["category"] == "orig"}
    grades: dict[str, list[tuple[float, float]]] = {}
    for i, answer in enumerate(answers):
        if answer["category"] != "orig":
            o = original[answer["task"]]
            pair = minhash.agreement(signature[i], signature[o]), exact(texts, i, o, ngram=3)
            grades.setdefault(answer["category"], []).append(pair)
    for which in (0, 1):
        mean = {grade: statistics.mean(pair[which] for pair in found) for grade, found in grades.items()}
        assert mean["cut"] > mean["light"] > mean["heavy"] > mean["non"]


def test_levels_of_copied_programs_come_in_their_order(data):
    """Java by Faidhi and Robinson's levels, from changed comments (L1) to changed logic (L6), and unrelated ones."""
    with gzip.open(data / "dedup" / "ir_plag_java_clones.jsonl.gz", "rt", encoding="utf-8") as lines:
        programs = [json.loads(line) for line in lines]
    texts = [program["code"] for program in programs]
    signature = signed(texts, ngram=5, count=256)
    original = {program["case"]: i for i, program in enumerate(programs) if program["kind"] == "original"}
    grades: dict[str, list[tuple[float, float]]] = {}
    for i, program in enumerate(programs):
        if program["kind"] != "original":
            o = original[program["case"]]
            pair = minhash.agreement(signature[i], signature[o]), exact(texts, i, o, ngram=5)
            grades.setdefault(program["level"] or "unrelated", []).append(pair)
    for which in (0, 1):
        mean = {grade: statistics.mean(pair[which] for pair in found) for grade, found in grades.items()}
        assert mean["L1"] > mean["L2"] > mean["L3"] > mean["L4"] > mean["L5"] > mean["L6"] > mean["unrelated"]
