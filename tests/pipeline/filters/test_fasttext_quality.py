import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import CHINESE, DAMAGED, ENGLISH, ODD, batch_of

from cluster.errors import DataError, RecipeError
from pipeline.filters.fasttext_quality import CELLS, FastTextQuality, threshold_for
from pipeline.kernels.fasttext import Classifier
from pipeline.kernels.fasttext_model import parse_model
from pipeline.kernels.fasttext_train import model_bytes, train
from pipeline.step import Documents, string_buffers
from tests.pipeline.pack.local_stage import LocalStage

GOOD = {
    "en": "The theorem explains why {} follows from the definition of the field.",
    "zh": "定理 说明 了 {} 为什么 由 定义 得出 。",
}
POOR = {"en": "Click here to buy {} cheap now, best deal!", "zh": "点击 这里 购买 {} 最 便宜 优惠 ！"}


def write(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path)


def some(template, language, count, start=0):
    return [template[language].format(f"x{i * 7 % 97}") + f" {i + start}" for i in range(count)]


@pytest.fixture
def files(tmp_path):
    good = [text for language in ("en", "zh") for text in some(GOOD, language, 150)]
    poor = [text for language in ("en", "zh") for text in some(POOR, language, 150)]
    return write(tmp_path / "good.jsonl", good), write(tmp_path / "poor.jsonl", poor)


def decide(folder, step, texts, partitions=2, batch=1000):
    stage = LocalStage(
        folder, step, pa.Table.from_batches([batch_of(texts)]), partitions=partitions, batch_documents=batch
    )
    decided = step.decide(stage)
    rows, reasons = [], []
    for partition in stage.partitions:
        part = pq.read_table(partition["file"]).combine_chunks().to_batches()[0]
        decisions = step.decisions(decided, partition["index"])
        changed, verdict = step.apply(Documents(part), 0, decisions)
        rows.append(changed)
        reasons += verdict.reason.tolist()
    return pa.Table.from_batches(rows), reasons, decided


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_like_the_good_texts_stays(tmp_path, files, language):
    good, poor = files
    texts = some(GOOD, language, 20, 1000) + some(POOR, language, 20, 1000)
    step = FastTextQuality(positives=(good,), negatives=(poor,), keep_share=0.5, dim=16, learning_rate=0.5)
    rows, reasons, decided = decide(tmp_path / "run", step, texts)
    assert reasons == [None] * 20 + ["low_quality"] * 20
    assert decided["report"]["precision"] > 0.95
    assert decided["report"]["recall"] > 0.95
    quality = rows.column("quality").to_numpy()
    assert quality[:20].min() > 0.9 > 0.1 > quality[20:].max()


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize("row", [0, 1], ids=["en", "zh"])
def test_the_threshold_is_the_least_probability(tmp_path, files, side, row):
    step = FastTextQuality(positives=(files[0],), negatives=(files[1],), threshold=0.5, dim=8)
    rows, _, decided = decide(tmp_path / "a", step, [ENGLISH, CHINESE])
    value = rows.column("quality")[row].as_py()
    again = FastTextQuality(model=decided["path"], threshold=value + side * 1e-6)
    assert decide(tmp_path / "b", again, [ENGLISH, CHINESE])[1][row] == ("low_quality" if side > 0 else None)


def test_partitions_and_batches_change_nothing_also_with_a_sample_of_the_corpus(tmp_path, files):
    texts = some(GOOD, "en", 30, 5000) + some(POOR, "en", 60, 5000) + some(POOR, "zh", 30, 5000)
    texts += [*ODD, *DAMAGED]
    step = FastTextQuality(positives=(files[0],), keep_share=0.25, dim=8)
    one = decide(tmp_path / "one", step, texts, partitions=1)
    four = decide(tmp_path / "four", step, texts, partitions=4, batch=11)
    assert one[1] == four[1]
    assert one[0].column("quality").equals(four[0].column("quality"))
    assert one[2]["threshold"] == four[2]["threshold"]
    assert one[1].count(None) >= 30


def test_the_written_model_reads_back_and_fasttext_opens_it(tmp_path):
    texts, labels = some(GOOD, "en", 50) + some(POOR, "zh", 50), [0] * 50 + [1] * 50
    model = train(texts, labels, ["good", "ordinary"], dim=10, buckets=1 << 12, min_count=2)
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes(model))
    offsets, data = string_buffers(pa.array([ENGLISH, *texts], pa.large_string()))
    table = Classifier.of(model).probabilities(offsets, data, 10_000)
    again = Classifier.of(parse_model(str(path), path.read_bytes())).probabilities(offsets, data, 10_000)
    assert np.array_equal(table, again)
    fasttext = pytest.importorskip("fasttext")
    binding = fasttext.load_model(str(path))
    for text, row in zip([ENGLISH, *texts], table, strict=True):
        (label,), (probability,) = binding.predict(text.replace("\n", " "))
        assert label == f"__label__{model.labels[int(row.argmax())]}"
        assert probability == pytest.approx(row.max(), abs=2e-4)


def test_the_share_that_stays_is_at_least_the_one_asked_for():
    cells = np.zeros(CELLS + 1, np.int64)
    cells[[100, 5000, 9000]] = 80, 15, 5
    assert threshold_for(cells, 0.05) == 0.9
    assert threshold_for(cells, 0.1) == 0.5
    assert threshold_for(cells, 1.0) == 0.01


def test_what_cannot_work_is_refused(tmp_path, files):
    with pytest.raises(RecipeError, match="name `positives`"):
        FastTextQuality().check()
    with pytest.raises(RecipeError, match="no file matches"):
        FastTextQuality(positives=("/nowhere/*.jsonl",)).check()
    bad = write(tmp_path / "bad.jsonl", ["x"]).replace("bad", "bad")
    with pytest.raises(DataError, match="at least 2"):
        decide(tmp_path / "run", FastTextQuality(positives=(bad,), negatives=(files[1],)), [ENGLISH])
