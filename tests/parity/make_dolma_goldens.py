"""Writes tests/golden/dolma_filters.json.gz: what dolma's taggers and DataComp-LM's filters measure of real texts.

    python tests/parity/make_dolma_goldens.py          (an environment with dolma and uniseg; some minutes)

The documents themselves stay where they are (../shared/data); the file names them by hash.
"""

# ruff: noqa: E402 (the script makes its imports findable first)

from __future__ import annotations

import gzip
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import dclm_reference
from datatrove_reference import text_hash
from texts import parity_texts

FILE = Path(__file__).parents[1] / "golden" / "dolma_filters.json.gz"
DOCUMENTS = 2200
WITH_DCLM = 500
"""Of these documents, how many are measured DataComp-LM's way as well: its word boundaries take seconds a megabyte."""


def gopher(text: str) -> dict[str, float]:
    """Attributes of the tagger gopher_v1 under our names."""
    from dolma.taggers.gopher import get_attributes

    found = get_attributes(text)
    out = {
        "n_words": found.word_count,
        "mean_word_length": found.median_word_length,
        "hash_ratio": found.symbol_to_word_ratio,
        "bullet_lines": found.fraction_of_lines_starting_with_bullet_point,
        "ellipsis_lines": found.fraction_of_lines_ending_with_ellipsis,
        "alpha_words": found.fraction_of_words_with_alpha_character,
        "stop_words": found.required_word_count,
        "dup_line_frac": found.fraction_of_duplicate_lines,
        "dup_line_char_frac": found.fraction_of_characters_in_duplicate_lines,
    }
    out |= {f"top_{n}_gram": value for n, value in found.fraction_of_characters_in_most_common_ngram}
    return out | {f"dup_{n}_gram": value for n, value in found.fraction_of_characters_in_duplicate_ngrams}


def c4(text: str) -> dict[str, Any]:
    """Spans of the tagger c4_v2: flags of the page, lines that it marks, and the text without these."""
    from dolma.core.data_types import Document
    from dolma.taggers.c4 import FasterC4Tagger

    spans = FasterC4Tagger().predict(Document(id="x", text=text, source="x")).spans
    marked = {(span.start, span.end) for span in spans if span.type.startswith("lines_with")}
    lines, start = [], 0
    for line in text.split("\n"):
        end = min(start + len(line) + 1, len(text))
        lines += [line] if (start, end) not in marked else []
        start = end
    types = {span.type for span in spans}
    return {
        "flags": [f"has_{name}" in types for name in ("lorem_ipsum", "curly_brace", "javascript")],
        "dropped": len(text.split("\n")) - len(lines),
        "text": text_hash("\n".join(lines)),
    }


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats to 12 digits: the file is smaller, and the tests compare to 1e-9."""
    return {name: round(value, 12) if isinstance(value, float) else value for name, value in values.items()}


def main() -> None:
    """Measure all texts and write the file."""
    documents = {}
    for number, text in enumerate(parity_texts()[:DOCUMENTS]):
        found = {"gopher": rounded(gopher(text)), "c4": c4(text)}
        if number < WITH_DCLM:
            found["dclm"] = rounded(dclm_reference.quality(text) | dclm_reference.repetition(text))
        documents[text_hash(text)] = found
    golden = {"dolma": version("dolma"), "uniseg": version("uniseg"), "documents": documents}
    FILE.write_bytes(gzip.compress(json.dumps(golden, sort_keys=True).encode(), 9, mtime=0))
    print(f"{FILE}: {len(documents)} documents, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
