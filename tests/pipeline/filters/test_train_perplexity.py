import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import CHINESE, DAMAGED, ENGLISH, ODD, batch_of, real_texts

from cluster.errors import DataError, RecipeError
from pipeline.filters.perplexity import Perplexity
from pipeline.filters.train_perplexity import CELLS, TrainPerplexity, cell_of, percentiles_of
from pipeline.plan import plan
from pipeline.progress import Console
from pipeline.recipe import from_mapping
from pipeline.run import run
from pipeline.step import Documents
from tests.pipeline.pack.local_stage import LocalStage

pytest.importorskip("kenlm")


def write(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    return str(path)


def train(folder, step, texts, **how):
    stage = LocalStage(folder, step, pa.Table.from_batches([batch_of(texts)]), **how)
    return step.decide(stage)


def scored(decided, texts, **settings):
    step = Perplexity(**settings)
    step.check()
    step.warm({"perplexity_model": decided["path"]})
    docs = Documents(batch_of(texts))
    scores = step.scores(docs)
    return scores, step.verdict(docs, scores).reason.tolist(), step.columns(docs)


def shuffled(text, words, seed=0):
    parts = text.split() if words else list(text)
    return (" " if words else "").join(np.random.default_rng(seed).permutation(parts))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_unlike_the_reference_is_more_surprising_and_falls_in_the_tail(tmp_path, language):
    prose = ENGLISH if language == "en" else CHINESE
    reference = write(tmp_path / "good.jsonl", [prose] * 3)
    texts = [prose] * 6 + [shuffled(prose, language == "en", k) for k in range(4)]
    step = TrainPerplexity(reference=(reference,), order=3, tokens="words" if language == "en" else "characters")
    decided = train(tmp_path / "run", step, texts)
    scores, reasons, columns = scored(decided, texts, max_percentile=60, head_share=0.6, middle_share=0.8)
    assert scores["perplexity"][:6].max() < scores["perplexity"][6:].min() / 2
    assert reasons == [None] * 6 + ["too_surprising"] * 4
    assert columns["perplexity_bucket"].to_pylist()[:6] == ["head"] * 6
    assert columns["perplexity_bucket"].to_pylist().count("tail") == 2


def test_percentiles_are_those_of_the_corpus_however_it_is_cut(tmp_path):
    texts = [*real_texts(150), *ODD, *DAMAGED]
    reference = write(tmp_path / "good.jsonl", real_texts(60)[40:])
    step = TrainPerplexity(reference=(reference,), order=3, prune=1)
    one = train(tmp_path / "one", step, texts)
    many = train(tmp_path / "many", step, texts, partitions=4, batch_documents=7)
    folders = [one["path"], many["path"]]
    for name in ("perplexity.json", "model.arpa"):
        first, second = (Path(folder, name).read_bytes() for folder in folders)
        assert first == second
    scores, *_ = scored(one, texts)
    values, ranks = scores["perplexity"], scores["perplexity_percentile"]
    judged = ~np.isnan(values)
    assert np.array_equal(judged, ~np.isnan(ranks))
    for percentile in (10, 50, 90):
        assert np.mean(ranks[judged] <= percentile) == pytest.approx(percentile / 100, abs=0.03)
    assert np.all(np.diff(ranks[judged][np.argsort(values[judged])]) >= 0)


@pytest.mark.parametrize("side", [-1, 0, 1])
def test_a_percentile_is_a_bound(tmp_path, side):
    texts = [ENGLISH, CHINESE, shuffled(ENGLISH, True)]
    decided = train(tmp_path, TrainPerplexity(reference=(write(tmp_path / "r", [ENGLISH, CHINESE]),), order=2), texts)
    scores, *_ = scored(decided, texts)
    value = scores["perplexity_percentile"][0]
    assert scored(decided, texts, max_percentile=value + side)[1][0] == ("too_surprising" if side < 0 else None)


def test_a_histogram_knows_percentiles_to_a_cell():
    values = np.geomspace(2, 50_000, 10_000)
    found = percentiles_of(np.bincount(cell_of(values), minlength=CELLS))
    exact = np.quantile(values, np.arange(101) / 100, method="inverted_cdf")
    assert len(found) == 101
    assert np.all((found >= exact) & (found <= exact * 2 ** (2 / 64)))
    assert percentiles_of(np.zeros(CELLS, np.int64)) == []


def test_a_recipe_trains_and_applies_a_model(tmp_path):
    texts = real_texts(60) + [shuffled(ENGLISH, True, k) for k in range(10)]
    write(tmp_path / "corpus.jsonl", texts)
    steps = [
        {"crawl.corpus": {"path": str(tmp_path / "corpus.jsonl")}},
        {"filters.train_perplexity": {"reference": [write(tmp_path / "good.jsonl", real_texts(80))], "order": 3}},
        {"filters.perplexity": {"max_percentile": 80, "head_share": 0.3, "middle_share": 0.6}},
    ]
    out = tmp_path / "out"
    report = run(from_mapping({"steps": steps, "workers": 0}), str(out), console=Console(quiet=True))
    removed = {reason: n for stage in report.stages for reason, n in stage["removed"].items()}
    assert removed["too_surprising"] == pytest.approx(14, abs=3)
    rows = [row for path in (out / "documents").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["perplexity_bucket"] for row in rows} >= {"head", "middle", "tail"}


def test_what_cannot_work_is_refused(tmp_path):
    good = write(tmp_path / "good.jsonl", [ENGLISH])
    with pytest.raises(RecipeError, match="no file matches"):
        TrainPerplexity(reference=("/nowhere/*.jsonl",)).check()
    with pytest.raises(RecipeError, match="go together"):
        TrainPerplexity(reference=(good,), tokens="sentencepiece").check()
    with pytest.raises(RecipeError, match="shares and percentiles are those"):
        Perplexity(model=good, max_percentile=60).check()
    with pytest.raises(RecipeError, match="head_share and middle_share go together"):
        Perplexity(head_share=0.3).check()
    with pytest.raises(RecipeError, match=r"needs a perplexity_model: .* put filters\.train_perplexity before it"):
        plan(from_mapping({"steps": [{"crawl.corpus": {"path": good}}, {"filters.perplexity": {}}]}))
    empty = write(tmp_path / "empty.jsonl", ["", " "])
    with pytest.raises(DataError, match=r"empty.jsonl: there is no token"):
        train(tmp_path / "run", TrainPerplexity(reference=(empty,)), [ENGLISH])
