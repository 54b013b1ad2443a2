"""The report shows what the run counted, and crawled text cannot become markup in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import corpusmill
from pipeline.progress import Console
from pipeline.recipe import from_mapping
from pipeline.run import run

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & more words of a text that stays here"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path) -> Tags:
    corpus = folder / "corpus.jsonl"
    rows = [{"text": EVIL, "url": "http://example.org/<b>"}, {"text": EVIL, "url": "http://example.org/<script>2"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {"steps": [{"crawl.corpus": {"path": str(corpus), "url_field": "url"}}, "dedup.exact"], "workers": 0}
    run(from_mapping(raw), str(folder / "out"), console=Console(quiet=True))
    tags = Tags()
    tags.feed((folder / "out" / "report.html").read_text(encoding="utf-8"))
    return tags


def test_crawled_text_is_text_and_nothing_else(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert not page.seen & {"script", "img", "b"}
    assert EVIL in page.text


def test_the_report_is_written_anew_wherever_the_run_was_moved_to(tmp_path: Path, capsys) -> None:
    report(tmp_path)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    before = (moved / "report.html").read_text("utf-8")
    (moved / "report.html").unlink()
    assert corpusmill.main(["report", str(moved)]) == 0
    assert capsys.readouterr().out == f"report     {moved}/report.html\n"
    assert (moved / "report.html").read_text("utf-8") == before.replace(f"{tmp_path}/out/", f"{moved}/")
    assert corpusmill.main(["report", str(tmp_path)]) == 1
    assert "neither run.json nor metrics.jsonl there" in capsys.readouterr().err


def test_the_report_tells_shares_and_epochs_of_a_mixture(tmp_path: Path) -> None:
    rows = [
        {"text": f"{'many words of one text ' * (1 + i % 9)} {i}", "from": "web" if i % 4 else "code"}
        for i in range(200)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [
        {"crawl.corpus": {"path": str(tmp_path / "a.jsonl"), "source_field": "from"}},
        {"tokens.train_bpe": {"vocab_size": 300}},
        "tokens.encode",
        {"pack.mix": {"method": "weights", "weights": {"web": 1, "code": 3}, "budget": 20_000}},
        {"pack.best_fit": {"seq_len": 64}},
    ]
    run(from_mapping({"steps": steps, "workers": 0}), str(tmp_path / "out"), console=Console(quiet=True))
    page = Tags()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    (mixed,) = (
        s for s in json.loads((tmp_path / "out" / "run.json").read_bytes())["stages"] if s["name"] == "pack.mix"
    )
    code = mixed["decided"]["report"]["sources"]["code"]
    assert code["epochs"] > 2
    told = f"code{code['tokens']:,}{code['gives']:,}75.0%{code['epochs']:.2f}"
    assert told in page.text.partition("Mixture")[2].replace("\n", "")


def test_the_report_balances_and_names_the_reasons(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "2 in = 1 kept + 1 removed + 0 failed" in page.text
    assert "exact_duplicate" in page.text
