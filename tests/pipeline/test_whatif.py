"""What-if says exactly what a run with the other thresholds does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import RecipeError
from pipeline.progress import Console
from pipeline.recipe import from_mapping
from pipeline.run import run
from pipeline.whatif import whatif

TEXTS = ["Some words of the kind that people write and read with care. " * n + "é" * n for n in range(1, 60)]


def go(folder: Path, **changes: object) -> list[dict]:
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text, "source": "ab"[i % 2]}) + "\n" for i, text in enumerate(TEXTS)))
    raw = {
        "steps": [
            {"crawl.corpus": {"path": str(corpus)}},
            "clean.unicode",
            {"filters.gopher_quality": {"min_words": changes.get("min_words", 50)}},
            {"filters.gopher_repetition": {"dup_5_gram": changes.get("dup_5_gram", 0.99), "dup_line_frac": 0.9}},
        ],
        "workers": 0,
        "keep_scores": changes.get("keep_scores", True),
    }
    return run(from_mapping(raw), str(folder / "out"), console=Console(quiet=True)).stages


@pytest.mark.parametrize("change", [{"min_words": 300}, {"min_words": 10}, {"dup_5_gram": 0.9}])
def test_whatif_counts_what_the_changed_run_keeps(tmp_path: Path, change: dict[str, float]) -> None:
    before = go(tmp_path)
    name = "gopher_quality" if "min_words" in change else "gopher_repetition"
    ((field, value),) = change.items()
    lines = whatif(str(tmp_path / "out"), [f"filters.{name}.{field}={value}"])
    kept, would_keep = next(line for line in lines if line.strip().startswith("all")).split()[2:4]
    after = go(tmp_path, **change)
    assert (int(kept), int(would_keep)) == (before[-1]["kept"], after[-1]["kept"])


def test_whatif_needs_stored_scores(tmp_path: Path) -> None:
    go(tmp_path, keep_scores=False)
    with pytest.raises(RecipeError, match="kept no scores"):
        whatif(str(tmp_path / "out"), ["filters.gopher_quality.min_words=3"])


def test_an_unchanged_setting_changes_nothing(tmp_path: Path) -> None:
    go(tmp_path)
    assert whatif(str(tmp_path / "out"), ["filters.gopher_quality.min_words=50"])[0].startswith("nothing changes")


def test_rules_of_the_users_own_stand_beside_the_others(tmp_path: Path) -> None:
    """Their answers are stored as scores: the function is not called again, and two of them are told apart."""
    corpus = tmp_path / "corpus.jsonl"
    texts = [text if i % 3 else text.upper() for i, text in enumerate(TEXTS)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def go(least: int) -> int:
        own = [{"filters.python": {"function": f"texts_rules:{name}"}} for name in ("shouting", "never")]
        steps = [{"crawl.corpus": {"path": str(corpus)}}, {"filters.gopher_quality": {"min_words": least}}, *own]
        raw = {"steps": steps, "workers": 0, "keep_scores": True}
        return run(from_mapping(raw), str(tmp_path / "out"), console=Console(quiet=True)).stages[-1]["kept"]

    kept = go(50)
    lines = whatif(str(tmp_path / "out"), ["filters.gopher_quality.min_words=300"])
    found = [int(n) for n in next(line for line in lines if line.strip().startswith("all")).split()[2:4]]
    assert found == [kept, go(300)]


@pytest.mark.parametrize(
    "change",
    ["filters.gopher_quality.variant=datatrove", "clean.unicode.form=NFKC", "crawl.corpus.source=x", "workers=1"],
)
def test_what_no_stored_score_can_tell_is_refused(tmp_path: Path, change: str) -> None:
    go(tmp_path)
    with pytest.raises(RecipeError, match=f"{change.partition('=')[0]}: no limit on a stored score"):
        whatif(str(tmp_path / "out"), [change])
