"""Two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import corpusmill
from pipeline.progress import Console
from pipeline.recipe import from_mapping
from pipeline.run import run


def test_two_runs_tell_settings_counts_reasons_and_the_documents_of_one_alone(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    words = {"a": 3, "b": 7, "c": 12}
    lines = [json.dumps({"url": f"http://e.org/{name}", "text": " ".join(["word"] * n)}) for name, n in words.items()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "rules_for_compare.py").write_text(
        "def at_least_5(doc):\n    return 'short' if len(doc['text'].split()) < 5 else None\n"
        "def at_least_10(doc):\n    return 'short' if len(doc['text'].split()) < 10 else None\n"
    )
    for name, least in (("few", 5), ("many", 10)):
        steps = [
            {"crawl.corpus": {"path": str(tmp_path / "a.jsonl")}},
            {"filters.python": {"function": f"rules_for_compare:at_least_{least}"}},
        ]
        run(from_mapping({"steps": steps, "workers": 0}), str(tmp_path / name), console=Console(quiet=True))
    assert corpusmill.main(["compare", str(tmp_path / "few"), str(tmp_path / "many")]) == 0
    told = capsys.readouterr().out
    assert "filters.python.function: rules_for_compare:at_least_5 → rules_for_compare:at_least_10\n" in told
    row = next(line for line in told.splitlines() if line.startswith("filters.python  "))
    assert row.split() == ["filters.python", "2", "1", "-1", "short", "1", "→", "2"]
    first = told.partition("kept by the first run only: 1\n")[2].partition("kept by the second run only: 0\n")[0]
    assert "http://e.org/b\n  removed by filters.python: short" in first
    (tmp_path / "many" / "run.json").write_text('{"status": "failed"}')
    assert corpusmill.main(["compare", str(tmp_path / "few"), str(tmp_path / "many")]) == 1
    assert "this run is failed, not done" in capsys.readouterr().err
