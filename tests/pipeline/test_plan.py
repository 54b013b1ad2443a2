"""A recipe that cannot work is refused at once, with the nearest valid name, and without starting anything."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from steps.numbers import Numbers
from steps.short import Short
from steps.total import Total

from cluster.errors import RecipeError
from pipeline import recipe as recipes
from pipeline.plan import plan
from pipeline.recipe import Recipe, from_mapping, parse_bytes

ROOT = Path(__file__).parent.parent.parent
GOOD = {"steps": [{"crawl.corpus": {"path": "x.jsonl"}}, "filters.gopher_quality", "dedup.exact"]}


def refusal(raw: dict) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(from_mapping(raw))
    return str(caught.value)


def test_an_unknown_step_is_answered_with_the_nearest_name() -> None:
    text = refusal({"steps": ["filters.gopher_qualty"]})
    assert "no step named 'filters.gopher_qualty'; did you mean 'filters.gopher_quality'?" in text


def test_a_wrong_field_is_answered_with_the_nearest_field() -> None:
    text = refusal({"steps": [{"filters.gopher_quality": {"min_word": 3}}]})
    assert "no setting named 'min_word'; did you mean 'min_words'?" in text


def test_a_wrong_value_is_named_with_its_field() -> None:
    text = refusal({"steps": ["filters.gopher_quality"], "batch_documents": 0})
    assert "setting 'batch_documents'" in text
    assert "found 0" in text


def test_a_change_of_a_step_that_is_not_there_is_answered_with_the_nearest_step() -> None:
    from cluster.settings import assign

    for path in ("filters.gopher_qualty.min_words", "steps.filters.gopher_qualty.min_words"):
        with pytest.raises(RecipeError, match=r"no step named 'filters.gopher_qualty'; did you mean 'filters.goph"):
            assign({"steps": list(GOOD["steps"])}, f"{path}=80")
    sweep: dict = {"steps": [100, 200], "base": {}}
    assign(sweep, "predict.steps=300")
    assert sweep["predict"] == {"steps": 300}


def test_a_run_that_would_read_its_own_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "web" / "documents").mkdir(parents=True)
    (tmp_path / "runs" / "web" / "documents" / "a.jsonl").write_text('{"text": "a"}\n')
    out = str(tmp_path / "runs" / "all")
    for path in ("runs/*/documents/*", "runs", "."):
        made = from_mapping({"steps": [{"crawl.corpus": {"path": str(tmp_path / path)}}]})
        assert plan(made)
        with pytest.raises(RecipeError, match="would read its own documents"):
            plan(made, out)
    made = from_mapping({"steps": [{"crawl.corpus": {"path": str(tmp_path / "runs/{web,code}/documents/*")}}]})
    assert plan(made, out)
    with pytest.raises(RecipeError, match=r"matches folders alone; '.*/documents/\*\*' takes the files below"):
        plan(from_mapping({"steps": [{"crawl.corpus": {"path": str(tmp_path / "runs/*/documents")}}]}))


def test_every_setting_of_a_step_says_what_it_is() -> None:
    silent = [
        f"{name}.{field}"
        for name in recipes.step_docs()
        for field, about in recipes.step_class(name).model_fields.items()
        if not about.description
    ]
    assert not silent


def test_all_problems_are_told_at_once() -> None:
    text = refusal({"steps": ["filters.nothing", {"filters.gopher_quality": {"x": 1}}], "sead": 1})
    assert text.count("\n") == 2


def test_a_step_in_the_wrong_place_is_told_what_belongs_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"")
    text = refusal({"steps": [{"crawl.warc": {"path": str(tmp_path / "a.warc")}}, "filters.gopher_quality"]})
    assert "takes DOCUMENT rows, but the steps before it give RECORD rows; put extract.main_content before it" in text


def test_a_recipe_begins_with_its_source(tmp_path: Path) -> None:
    assert "a recipe begins with a source" in refusal({"steps": ["filters.gopher_quality"]})
    with pytest.raises(RecipeError, match="a source can only be the first step"):
        plan(Recipe(steps=(Numbers(), Numbers())))


def test_tokens_need_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    text = refusal({"steps": [{"crawl.corpus": {"path": str(tmp_path / "a.jsonl")}}, "tokens.encode"]})
    assert "needs a tokenizer: name one in its settings, or put tokens.train_bpe before it" in text


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    assert "nowhere" in refusal({"steps": [{"crawl.corpus": {"path": str(tmp_path / "nowhere/*.jsonl")}}]})


def test_per_document_steps_are_fused_and_corpus_steps_begin_stages() -> None:
    stages = plan(Recipe(steps=(Numbers(), Short(), Short(min_chars=50), Total(), Short())))
    assert [[s.step_name() for s in stage.all_steps] for stage in stages] == [
        ["steps.numbers", "steps.short", "steps.short"],
        ["steps.total", "steps.short"],
    ]


def test_a_fingerprint_follows_settings_that_decide_the_output_and_no_others() -> None:
    def prints(**settings: object) -> list[str]:
        made = Recipe(steps=(Numbers(), Total(), Short(min_chars=settings.pop("min_chars", 40))), **settings)
        return [stage.fingerprint for stage in plan(made)]

    assert prints() == prints(workers=3) == prints(memory_per_worker="1GB") == prints(batch_documents=5)
    assert prints()[0] == prints(min_chars=50)[0]
    assert prints()[1] != prints(min_chars=50)[1]
    assert prints()[0] != prints(seed=1)[0]


def test_set_reaches_into_a_named_step() -> None:
    from cluster.settings import assign

    raw = {"steps": ["filters.gopher_quality", {"dedup.exact": {}}, "filters.gopher_quality"]}
    assign(raw, "filters.gopher_quality#2.min_words=80")
    assign(raw, "workers=4")
    assert raw["steps"][0] == "filters.gopher_quality"
    assert raw["steps"][2] == {"filters.gopher_quality": {"min_words": 80}}
    assert raw["workers"] == 4
    with pytest.raises(RecipeError, match="occurs 2 times"):
        assign(raw, "filters.gopher_quality#3.min_words=80")


def test_a_recipe_dumps_to_what_it_loads_from() -> None:
    made = Recipe(steps=(recipes.step_class("filters.gopher_quality")(min_words=80),), seed=7)
    assert from_mapping(made.dump()) == made


@pytest.mark.parametrize(("text", "value"), [("2GB", 2_000_000_000), ("1.5GiB", 1_610_612_736), ("512", 512)])
def test_sizes_are_read_with_their_units(text: str, value: int) -> None:
    assert parse_bytes(text) == value


def test_a_size_without_sense_is_refused() -> None:
    with pytest.raises(RecipeError, match="'lots' is no size"):
        parse_bytes("lots")


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["run", "--help"], ["steps"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, corpusmill\n"
        "try: corpusmill.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'numba', 'deepspeed', 'transformers', 'boto3', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_bad_recipe_exits_with_2_before_ray_is_imported(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("steps:\n  - crawl.wark: {path: x}\n")
    script = (
        "import sys, corpusmill\n"
        "code = corpusmill.main(sys.argv[1:])\n"
        "sys.exit(9 if {'ray', 'numba', 'torch'} & set(sys.modules) else code)\n"
    )
    started = time.monotonic()
    arguments = ["run", str(bad), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'crawl.warc'?" in done.stderr
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - started < 20  # a guard against hanging; the figure is in benchmarks/
