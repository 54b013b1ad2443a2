import base64
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import CHINESE, DAMAGED, ENGLISH, ODD, batch_of, real_texts

from cluster.errors import RecipeError
from pipeline.filters.kl_divergence import KLDivergence, length_bin
from pipeline.step import Documents
from tests.pipeline.pack.local_stage import LocalStage

LENGTHS = (32, 64, 128, 256, 512, 1024)
PER_LENGTH = 1000


def decide(folder, step, texts, *, partitions=2, languages=None, batch=1000):
    table = pa.Table.from_batches([batch_of(texts, languages)])
    stage = LocalStage(folder, step, table, partitions=partitions, batch_documents=batch)
    decided = step.decide(stage)
    rows, reasons = [], []
    for partition in stage.partitions:
        part = pq.read_table(partition["file"]).combine_chunks().to_batches()[0]
        decisions = step.decisions(decided, partition["index"])
        for at in range(0, part.num_rows, 7):
            changed, verdict = step.apply(Documents(part.slice(at, 7)), at, decisions)
            rows.append(changed)
            reasons += verdict.reason.tolist()
    return pa.Table.from_batches(rows), reasons, decided


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Documents drawn from one Zipf distribution over 20,000 words, in six lengths, with four kinds of outliers."""
    rng = np.random.default_rng(7)
    vocabulary = np.array(
        [f"w{base64.b32encode(int(i).to_bytes(3, 'big')).decode().lower()[:5]}" for i in range(20_000)]
    )
    share = 1 / (np.arange(20_000) + 2.7)
    share /= share.sum()
    shuffled = rng.permutation(vocabulary)
    texts, kinds, lengths = [], [], []
    for length in LENGTHS:
        for i in range(PER_LENGTH):
            kind = "ordinary" if i % 20 else ("shuffled", "spam", "foreign", "base64")[i // 20 % 4]
            if kind == "ordinary":
                words = rng.choice(vocabulary, length, p=share)
            elif kind == "shuffled":  # the same shape of distribution over other words
                words = rng.choice(shuffled, length, p=share)
            elif kind == "spam":
                words = rng.choice(rng.choice(vocabulary[200:], 4), length)
            elif kind == "foreign":
                words = [f"mot{k}" for k in rng.zipf(1.3, length) % 5000]
            else:
                words = [base64.b64encode(rng.bytes(30)).decode() for _ in range(length)]
            texts.append(" ".join(words))
            kinds.append(kind)
            lengths.append(length)
    step = KLDivergence(percentile=94.0, min_documents=100)
    rows, reasons, decided = decide(tmp_path_factory.mktemp("kl"), step, texts)
    return np.array(rows.column("kl_divergence")), np.array(kinds), np.array(lengths), np.array(reasons), decided, step


def test_outliers_rank_above_ordinary_documents_in_every_length_bin(synthetic):
    scores, kinds, lengths, *_ = synthetic
    for length in LENGTHS:
        good, bad = (
            scores[(lengths == length) & (kinds == "ordinary")],
            scores[(lengths == length) & (kinds != "ordinary")],
        )
        auc = np.mean(bad[:, None] > good[None, :]) + np.mean(bad[:, None] == good[None, :]) / 2
        assert auc >= 0.99, (length, auc)


def test_short_documents_are_not_punished_for_being_short(synthetic):
    _, kinds, lengths, reasons, *_ = synthetic
    ordinary = kinds == "ordinary"
    removed = reasons == "token_divergence"
    overall = removed[ordinary].mean()
    assert 0 < overall < 0.02
    for length in LENGTHS:
        rate = removed[ordinary & (lengths == length)].mean()
        assert overall / 1.5 <= rate <= 1.5 * overall, (length, rate, overall)


def test_most_outliers_go_and_the_list_names_their_tokens(synthetic):
    _, kinds, _, reasons, decided, _ = synthetic
    assert (reasons[kinds != "ordinary"] == "token_divergence").mean() > 0.99
    listed = pa.concat_tables([pq.read_table(path) for path in decided["outliers"]])
    assert listed.num_rows == (reasons == "token_divergence").sum()
    assert any("mot" in top for top in listed.column("top").to_pylist())
    assert set(listed.schema.names) == {"doc_id", "url", "divergence", "limit", "top"}


def test_the_divergence_is_the_formula(tmp_path):
    texts = ["a b a c", "b c d", "a a a a", "好 好 a", ""]
    rows, _, _ = decide(tmp_path, KLDivergence(smoothing=0.5), texts)
    corpus = Counter(word for text in texts for word in text.split())
    total, types = sum(corpus.values()), len(corpus)
    for text, found in zip(texts, rows.column("kl_divergence").to_pylist(), strict=True):
        own = Counter(text.split())
        n = sum(own.values())
        rest = total - n + 0.5 * (types + 1)
        expected = sum(c / n * np.log(c / n * rest / (corpus[t] - c + 0.5)) for t, c in own.items()) if n else np.nan
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_partitions_batches_and_order_change_nothing(tmp_path):
    texts = [*real_texts(150), ENGLISH, CHINESE, "buy now " * 60, *ODD, *DAMAGED]
    step = KLDivergence(percentile=95, min_documents=30)
    one = decide(tmp_path / "one", step, texts, partitions=1)
    many = decide(tmp_path / "many", step, texts, partitions=5, batch=9)
    back = decide(tmp_path / "back", step, texts[::-1], partitions=3)
    scores = [found[0].column("kl_divergence").to_numpy() for found in (one, many)]
    assert np.array_equal(*scores, equal_nan=True)
    assert one[1] == many[1] == back[1][::-1]


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize("odd", ["zebra " * 40, "斑马" * 30])
def test_the_absolute_limit_is_a_limit(tmp_path, odd, side):
    texts = [ENGLISH + f" {i}" for i in range(30)] + [CHINESE] * 5 + [odd]
    value = (
        decide(tmp_path / "a", KLDivergence(percentile=100, max_divergence=99), texts)[0]
        .column("kl_divergence")[-1]
        .as_py()
    )
    step = KLDivergence(percentile=100, max_divergence=value + side * 1e-9)
    reasons = decide(tmp_path / "b", step, texts)[1]
    assert reasons[-1] == ("token_divergence" if side < 0 else None)


def test_robust_deviations_remove_outliers_however_many_there_are(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choice(words, 100)) for _ in range(160)] + [
        " ".join(rng.bytes(8).hex() for _ in range(100)) for _ in range(40)
    ]
    reasons = decide(tmp_path, KLDivergence(deviations=6, min_documents=50), texts)[1]
    assert reasons == [None] * 160 + ["token_divergence"] * 40


def test_each_language_has_its_own_distribution(tmp_path):
    texts = [f"{ENGLISH} {i}" for i in range(60)] + [f"{CHINESE}{i}" for i in range(6)]
    languages = ["en"] * 60 + ["zh"] * 6
    mixed = decide(tmp_path / "mixed", KLDivergence(), texts, languages=languages)[0].column("kl_divergence").to_numpy()
    apart = decide(tmp_path / "apart", KLDivergence(by="language"), texts, languages=languages)[0]
    apart = apart.column("kl_divergence").to_numpy()
    assert mixed[60:].mean() > mixed[:60].mean() + 1
    assert abs(apart[60:].mean() - apart[:60].mean()) < 0.5


def test_bins_with_few_documents_join_longer_ones():
    step = KLDivergence(min_documents=10, percentile=50)
    table = np.zeros((128, 5000), np.int64)
    table[3, 100], table[4, 200], table[5, 300], table[9, 400] = 4, 6, 20, 3
    limits = step.thresholds(table)
    assert limits[3] == limits[4] != limits[5]
    assert limits[9] == limits[5]


def test_length_bins_double_every_second_one():
    assert length_bin(np.array([0, 1, 2, 4, 1024])).tolist() == [0, 0, 2, 4, 20]


def test_settings_that_remove_nothing_are_refused():
    with pytest.raises(RecipeError, match="removes nothing"):
        KLDivergence(percentile=100).check()
    assert KLDivergence(tokens="tokenizer").needs() == ("tokenizer",)


def test_tokens_of_the_recipe_tokenizer_are_counted(tmp_path):
    from pipeline.tokens.train_bpe import train_bpe

    (tmp_path / "tokenizer").mkdir()
    train_bpe(iter([ENGLISH, CHINESE]), vocab_size=400).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    step = KLDivergence(tokens="tokenizer", percentile=90, min_documents=10)
    table = pa.Table.from_batches([batch_of([ENGLISH[k:] for k in range(20)] + ["%%$$ §§ zzqx " * 30])])
    stage = LocalStage(tmp_path / "stage", step, table, tokenizer=tmp_path / "tokenizer")
    decided = step.decide(stage)
    scores = step.decisions(decided, 0).column("divergence").to_numpy()
    assert scores.argmax() == 20


def test_the_tokenizer_is_given_readable_text(tmp_path):
    from pipeline.tokens.train_bpe import train_bpe

    (tmp_path / "tokenizer").mkdir()
    train_bpe(iter([ENGLISH, CHINESE]), vocab_size=400).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    step = KLDivergence(tokens="tokenizer", min_documents=1)
    table = pa.Table.from_batches([batch_of([ENGLISH, *ODD, *DAMAGED])])
    decided = step.decide(LocalStage(tmp_path / "stage", step, table, tokenizer=tmp_path / "tokenizer"))
    assert len(step.decisions(decided, 0)) == 1 + len(ODD) + len(DAMAGED)
