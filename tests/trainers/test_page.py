"""The page of a training run."""

import json
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainers.page import _decades, page, plot, suggested_rate, thinned, write_page


def _run(folder):
    folder.mkdir()
    lines = [{"step": 0, "memory_expected_gib": 12.4}]
    for step in range(1, 1001):
        lines.append({"step": step, "loss": 3 + 5 / step, "rate": 1e-3, "seconds": 0.5, "tokens": 1000 * step})
        if step % 250 == 0:
            lines.append({"step": step, "validation": 3.1 + 5 / step, "validation_bpb": 1.2, "validation_code": 2.5})
            lines[-1]["samples"] = [{"prompt": "The <b>cat", "text": f" sat at {step} & more"}]
    lines.append({"step": 900, "alarm": "loss 9 is 7.0 deviations above", "rows": [10, 20]})
    lines[-1]["worst"] = [{"row": 13, "loss": 12.5, "documents": ["a1b2"]}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_points_without_a_place_are_left_out_of_a_plot():
    nan = float("nan")
    assert plot("a", {"a": [(nan, 1.0), (1.0, 2.0), (2.0, nan), (3.0, 4.0)]}) == plot(
        "a", {"a": [(1.0, 2.0), (3.0, 4.0)]}
    )


def test_the_page_shows_curves_figures_alarms_and_samples_and_escapes_text(tmp_path):
    text = page(str(_run(tmp_path / "run")))
    for said in (
        "loss (nats per token)",
        "bits per byte",
        "validation_code",
        "12.4 GiB",
        "10 to 19",
        "row 13: loss 12.5000, a1b2",
        "1,000,000 tokens",
    ):
        assert said in text
    assert "The &lt;b&gt;cat" in text
    assert "<b>cat" not in text
    assert [f"sat at {step}" in text for step in (250, 500, 750, 1000)] == [True, False, True, True]
    assert "<script" not in text
    assert len(text) < 100_000
    assert write_page(str(tmp_path / "run")) == str(tmp_path / "run" / "report.html")


def test_what_an_algorithm_logs_is_drawn_and_no_accuracy_lies_among_losses(tmp_path):
    lines = []
    for step in range(1, 21):
        lines.append({"step": step, "loss": 0.7, "accuracy": 0.5, "kl": 1.0, "rate": 1e-3, "seconds": 1, "tokens": 9})
    lines.append({"step": 20, "validation": 0.68, "validation_accuracy": 0.61})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text("trainer: reward\npeft: null\n")
    text = page(str(tmp_path))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions[:3] == ["loss", "accuracy (share of items)", "KL to the reference (nats per answer)"]
    figures = dict(zip(captions, re.findall(r"<figure>(.*?)</figure>", text), strict=True))
    assert "held out: 0.61 at 20" in figures["accuracy (share of items)"]
    assert "validation: 0.68 at 20" in figures["loss"]
    assert "0.61" not in figures["loss"]
    assert "peft" not in text


def test_held_out_figures_of_groups_have_plots_of_their_own(tmp_path):
    lines = [{"step": 1, "loss": 3.0, "rate": 1e-3, "seconds": 1, "tokens": 9}]
    grouped = {"validation_language/en": 2.9, "validation_language/zh": 3.4, "validation_language_bpb/zh": 1.7}
    lines.append({"step": 1, "validation": 3.1, "validation_bpb": 1.2, **grouped})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(str(tmp_path))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    figures = dict(zip(captions, re.findall(r"<figure>(.*?)</figure>", text), strict=True))
    assert "zh: 3.4 at 1" in figures["held out by language: loss (nats per token)"]
    assert "zh: 1.7 at 1" in figures["held out by language: bits per byte"]
    assert "3.4" not in figures["loss (nats per token)"]
    assert "1.7" not in figures["bits per byte"]
    assert all(name in text for name in grouped)


def test_what_lies_above_the_edge_is_said():
    drawn = plot("x", {"a": [(step, 1000.0 if step == 1 else 1 + step / 1000) for step in range(1, 200)]})
    assert "1 above the edge, up to 1000" in drawn
    assert "above the edge" not in plot("x", {"a": [(step, float(step)) for step in range(1, 200)]})


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_in_order_inside_and_tell_each_other_apart(low, width):
    high = low + width
    assume(width > 1e-6 * max(abs(low), abs(high)))
    drawn = plot("x", {"a": [(0, low), (1, high)]})
    labels = re.findall(r'text-anchor="end">([^<]*)<', drawn)
    heights = [float(h) for h in re.findall(r'class="grid"[^>]*y1="([^"]+)"', drawn)]
    assert 2 <= len(labels) <= 6
    assert len(set(labels)) == len(labels), labels
    assert heights == sorted(heights, reverse=True)
    assert all(0 <= height <= 266 for height in heights)


def test_more_curves_than_colours_are_dashed():
    curves = {f"curve {n}": [(0, float(n)), (1, float(n))] for n in range(8)}
    assert plot("x", curves).count("stroke-dasharray") == 2


def test_every_point_of_a_plot_lies_inside_it():
    drawn = plot("x", {"a": [(1, 500.0), (10, 2.0), (1000, 1.0), (2000, float("nan"))]}, logarithmic=True)
    places = [tuple(map(float, at.split(","))) for at in re.search(r'points="([^"]+)"', drawn)[1].split()]
    assert len(places) == 3
    assert all(0 <= x <= 470 and 0 <= y <= 250 for x, y in places)
    assert places == sorted(places)


def test_thinning_keeps_the_mean_and_the_last_step():
    line = [(step, float(step)) for step in range(1, 1001)]
    few = thinned(line, 100)
    assert len(few) == 100
    assert few[-1][0] == 1000
    assert sum(y for _, y in few) / 100 == sum(y for _, y in line) / 1000
    assert thinned(line[:50], 100) == line[:50]


def test_a_run_without_steps_has_a_page(tmp_path):
    assert "No step was trained" in page(str(tmp_path))


def test_the_suggested_rate_is_a_tenth_of_the_one_before_the_loss_rises(tmp_path):
    rates = [10 ** (-4 + step / 50) for step in range(200)]
    lines = [{"rate": rate, "loss": 5 - 2 * min(1, rate / 0.1) + max(0, rate - 0.1)} for rate in rates]
    assert 0.01 <= suggested_rate(lines) <= 0.03  # smoothing looks some 10 steps back, 50 a decade
    assert suggested_rate(lines[:9]) is None
    run = _run(tmp_path / "run")
    assert "Suggested rate" not in page(str(run))
    (run / "recipe.yaml").write_text("schedule: {shape: range}")
    assert "Suggested rate: 1.00e-04" in page(str(run))


def test_large_figures_and_figures_near_zero_have_labels_that_fit():
    speed = plot("speed", {"speed": [(step, 400_000 + 1000 * step) for step in range(50)]})
    rate = plot("rate", {"rate": [(step, 2e-3 * step / 50) for step in range(50)]})
    labels = [re.findall(r'text-anchor="end">([^<]*)<', drawn)[:5] for drawn in (speed, rate)]
    assert all(label.endswith("k") and len(label) <= 6 for label in labels[0]), labels[0]
    assert not any(label.startswith("-") for label in labels[1]), labels[1]


def test_between_two_steps_there_is_no_tick():
    drawn = plot("x", {"a": [(0, 1.0), (1, 2.0), (2, 4.0)]})
    assert re.findall(r'text-anchor="middle">([^<]*)<', drawn)[:-1] == ["0", "1", "2"]


def test_compute_is_labelled_by_powers_of_ten():
    drawn = plot("loss", {"loss": [(1e20, 3.0), (1e23, 2.0)]}, across="FLOP", logarithmic=True)
    assert [text for text in ("1e20", "1e21", "1e22", "1e23") if f">{text}</text>" not in drawn] == []


@pytest.mark.parametrize(
    ("first", "last"), [(99_919_903, 199_840_040), (2.1e8, 4.9e8), (1e3, 1e9), (3.1e-3, 4.4e-3), (1e18, 4e21)]
)
def test_a_logarithmic_axis_has_at_least_two_ticks(first, last):
    ticks = _decades(math.log10(first), math.log10(last))
    assert 2 <= len(ticks) <= 8
    assert len({label for _, label in ticks}) == len(ticks)
    assert all(len(label) <= 7 for _, label in ticks)
    assert all(first * 0.999 <= value <= last * 1.001 for value, _ in ticks)


def test_a_data_set_has_one_colour_in_all_plots_and_its_best_loss_in_the_table(tmp_path):
    lines = [{"step": n, "loss": 3.0, "rate": 1e-3, "seconds": 1, "tokens": n} for n in range(1, 9)]
    for step, loss in ((4, 2.5), (8, 2.9)):
        figures = {"validation": 3.0, "validation_new": loss, "validation_language/en": loss}
        bits = {"validation_bpb": 1.0, "validation_new_bpb": 1.1, "validation_language_bpb/en": 0.9}
        lines.append({"step": step, **figures, **bits})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(str(tmp_path))
    assert len(set(re.findall(r'color:(var\(--c\d\));white-space:nowrap">. validation_new<', text))) == 1
    for name in ("validation_new", "validation_language/en"):
        assert f"<td>{name}<td class=n>2.9000<td class=n>2.5000" in text
