"""The page of a feedback action, from what the command writes."""

import json
import re

from corpusmill import main
from trainers.feedback.page import page


def figures(text):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    return dict(zip(captions, re.findall(r"<figure>(.*?)</figure>", text), strict=True))


def test_select_leaves_a_page_with_accuracy_against_answers_and_tokens(tmp_path):
    problem = {"solutions": ["so 3", "so 4", "it is 4"], "answer": "#### 4", "tokens": [2, 2, 3]}
    (tmp_path / "in.jsonl").write_text(json.dumps(problem) + "\n")
    (tmp_path / "select.yaml").write_text(f"data: ['{tmp_path}/in.jsonl']\nns: [1, 3]\n")
    assert main(["feedback", "select", str(tmp_path / "select.yaml"), "--out", str(tmp_path / "<out>")]) == 0
    text = (tmp_path / "<out>" / "report.html").read_text()
    drawn = figures(text)
    assert "majority: 1 at 3" in drawn["accuracy against answers"]
    assert "majority: 1 at 7" in drawn["accuracy against tokens"]
    assert "<td>majority<td class=n>1<td class=n>66.67 %<td class=n>2.3" in text
    assert "&lt;out&gt;" in text
    assert "<out>" not in text
    assert "<script" not in text


def test_a_way_with_one_cost_is_a_point_beside_the_curves():
    lines = [{"method": "majority", "n": n, "accuracy": 0.5 + n / 10, "tokens": 10.0 * n} for n in (1, 2)]
    lines.append({"method": "beam", "n": 16, "accuracy": 0.8, "tokens": 90.0})
    drawn = figures(page("solve", lines, "runs/x", {}))
    assert "beam" not in drawn["accuracy against answers"]
    assert "beam: 0.8 at 90" in drawn["accuracy against tokens"]


def test_rounds_are_rows_that_link_to_their_trainings_and_three_make_a_curve(tmp_path):
    (tmp_path / "round-1" / "run").mkdir(parents=True)
    (tmp_path / "round-1" / "run" / "report.html").write_text("")
    told = [{"model": f"m{i}", "last_loss": 0.5 - i / 10, "validation": {"5": 9.0, "10": 0.4}} for i in range(2)]
    rounds = [
        {**one, "agreement": {"pairs": pairs}}
        for one, pairs in zip([*told, {"model": "end"}], (0.5, 0.6, 0.7), strict=True)
    ]
    text = page("self_rewarding", rounds, str(tmp_path), {"model": "a & b"})
    assert '<td><a href="round-1/run/report.html">1</a><td class=n>0.4000<td class=n>0.4000<td class=n>0.6000' in text
    assert "<td>0<td class=n>0.5000" in text
    assert figures(text).keys() == {"agreement: pairs"}
    assert "last model: <code>end</code>" in text
    assert "a &amp; b" in text


def test_a_judges_figures_say_what_they_are(tmp_path):
    found = {"pairs": 300, "agreed": 181, "agreement": 0.6033, "position_bias": 0.21, "accuracy": None}
    text = page("judge", found, str(tmp_path), {})
    assert "<td>position bias<td class=n>0.2100<td class=dim>share of verdicts for the answer shown first" in text
    assert "<td>agreed<td class=n>181" in text
    assert "accuracy" not in text


def test_parts_that_are_trainings_link_to_their_pages(tmp_path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "report.html").write_text("")
    text = page("rlaif", {"labels": {"pairs": 5}, "reward": {"last_loss": 0.5}}, str(tmp_path), {})
    assert '<td><a href="reward/report.html">reward</a>: last loss<td class=n>0.5000' in text
    assert "<td>labels: pairs<td class=n>5" in text
