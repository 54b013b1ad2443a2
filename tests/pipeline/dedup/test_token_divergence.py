"""Near-duplicates by token divergence: moved sentences are a copy, other words are not, and there is one answer."""

from __future__ import annotations

import random
from collections import Counter
from math import log

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from pipeline import exchange
from pipeline.dedup import choose, connect
from pipeline.dedup.minhash import Minhash
from pipeline.dedup.token_divergence import TokenDivergence
from pipeline.step import Work

WORDS = [f"w{i}" for i in range(3000)]
SIGNS = [chr(0x4E00 + i) for i in range(3000)]


def sentences(chance, language="en", count=12):
    if language == "en":
        return [" ".join(chance.choices(WORDS, k=12)) + "." for _ in range(count)]
    return ["".join(chance.choices(SIGNS, k=20)) + "。" for _ in range(count)]


def moved(chance, parts):
    return chance.sample(parts, len(parts))


def joined(parts):
    return ("" if parts[0].endswith("。") else " ").join(parts)


def plain(x, y, smoothing=0.1):
    """Symmetric divergence by the formula, in Python."""
    a, b = Counter(x.replace(".", "").split()), Counter(y.replace(".", "").split())
    union = a.keys() | b.keys()
    n, m = (sum(c.values()) + smoothing * len(union) for c in (a, b))
    p, q = ({t: (c[t] + smoothing) / size for t in union} for c, size in ((a, n), (b, m)))
    return sum(p[t] * log(p[t] / q[t]) + q[t] * log(q[t] / p[t]) for t in union) / 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_copies_with_their_sentences_moved_go_and_shingles_alone_would_keep_them(dedup, docs, language):
    chance = random.Random(1)
    originals = [sentences(chance, language) for _ in range(60)]
    texts = [joined(parts) for parts in originals] + [joined(moved(chance, parts)) for parts in originals]
    dates = [1] * 60 + [0] * 60
    result = dedup(TokenDivergence(), docs(texts, date=dates))
    pairs = {int.from_bytes(gone, "big"): int.from_bytes(m, "big") for gone, (_, m, _) in result["removed"].items()}
    assert len(pairs) >= 59
    assert all(gone == kept + 60 for gone, kept in pairs.items())
    assert {(reason, score) for reason, _, score in result["removed"].values()} == {("token_duplicate", 0.0)}
    assert len(dedup(Minhash(), docs(texts, date=dates))["removed"]) < 30


def test_the_score_is_the_symmetric_divergence_by_the_formula(dedup, docs):
    chance = random.Random(2)
    texts = []
    for _ in range(20):
        words = chance.choices(WORDS, k=150)
        near = list(words)
        for place in chance.sample(range(150), 3):
            near[place] = "changed"
        texts += [" ".join(words), " ".join(near)]
    result = dedup(TokenDivergence(), docs(texts, date=[1, 0] * 20))
    assert len(result["removed"]) == 20
    for gone, (_, match, score) in result["removed"].items():
        x, y = (texts[int.from_bytes(key, "big")] for key in (gone, match))
        assert 0 < score <= 0.1
        assert score == pytest.approx(plain(x, y), rel=1e-6)
    assert sum(result["kept"].column("cluster_size").to_pylist()) == 40


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize(
    ("old", "new"), [(WORDS[:100], ["changed", *WORDS[1:100]]), (SIGNS[:100], ["变", *SIGNS[1:100]])]
)
def test_the_limit_is_a_limit(dedup, docs, old, new, side):
    texts = [" ".join(old), " ".join(new)]
    limit = plain(*texts) * (1 + side * 1e-9)
    result = dedup(TokenDivergence(max_divergence=limit if side else plain(*texts) * (1 + 1e-13)), docs(texts))
    assert len(result["removed"]) == (side >= 0)


def test_documents_of_one_group_with_other_words_stay(dedup, docs):
    chance = random.Random(3)
    texts = [joined(sentences(chance)) for _ in range(6)]
    urls = ["http://example.org/page"] * 6
    result = dedup(TokenDivergence(group="url"), docs(texts, url=urls))
    assert result["removed"] == {}


def test_pages_of_one_url_are_compared_and_those_of_others_are_not(dedup, docs):
    chance = random.Random(4)
    parts = sentences(chance)
    texts = [joined(parts), joined(moved(chance, parts)), joined(moved(chance, parts)), joined(parts)]
    urls = ["http://example.org/a", "https://www.example.org/a#x", "http://example.org/b", None]
    result = dedup(TokenDivergence(group="url"), docs(texts, url=urls, date=[3, 2, 1, 0]))
    assert [int.from_bytes(gone, "big") for gone in result["removed"]] == [1]
    assert result["removed"][(1).to_bytes(16, "big")][:2] == ("token_duplicate", (0).to_bytes(16, "big"))


def test_what_goes_is_that_near_to_one_that_stays(dedup, docs):
    chance = random.Random(5)
    chain = [chance.choices(WORDS, k=100)]
    for _ in range(20):
        words = list(chain[-1])
        words[chance.randrange(100)] = chance.choice(WORDS)
        chain.append(words)
    texts = [" ".join(words) for words in chain]
    result = dedup(TokenDivergence(max_divergence=0.08), docs(texts, date=list(range(21, 0, -1))))
    kept = set(result["kept"].column("doc_id").to_pylist())
    assert 2 <= len(kept) < 15
    assert all(match in kept and score <= 0.08 for _, match, score in result["removed"].values())


def test_partitions_workers_memory_and_order_change_nothing(dedup, docs):
    chance = random.Random(6)
    texts = []
    for _ in range(40):
        parts = sentences(chance)
        texts += [joined(parts), joined(moved(chance, parts)), joined([*parts[:-1], "one more here."])]
    texts += ["", "", " ", "one", "one", "字"]
    step, rows = TokenDivergence(), docs(texts)
    one = dedup(step, rows, partitions=1, workers=1)
    many = dedup(step, rows, partitions=5, workers=3, memory=1 << 18, batch=7, seed=3)
    assert one["removed"] == many["removed"]
    assert len(one["removed"]) >= 40
    shuffled = rows.take(pa.array(chance.sample(range(len(texts)), len(texts))))
    assert dedup(step, shuffled)["removed"] == one["removed"]
    assert sum(text.strip() == "" for text in one["kept"].column("text").to_pylist()) == 3


def test_tokens_of_the_recipe_tokenizer_are_counted(tmp_path, docs):
    from pipeline.tokens.train_bpe import train_bpe

    (tmp_path / "tokenizer").mkdir()
    train_bpe(iter(["the cat sat on the mat"] * 20), vocab_size=300).save(str(tmp_path / "tokenizer/tokenizer.json"))
    assert TokenDivergence(tokens="tokenizer").needs() == ("tokenizer",)
    assert TokenDivergence().needs() == ()
    table = docs(["the cat the", "mat"])
    pq.write_table(table, tmp_path / "part.parquet")
    work = Work(str(tmp_path), "0", 1 << 24, 0, 10, artifacts={"tokenizer": str(tmp_path / "tokenizer")})
    with exchange.Spread(work.path("labels.arrow"), connect.LABELS, 1, memory_bytes=1 << 20) as spread:
        rows = pa.table([pa.array([0, 1], pa.uint64()), pa.array([0, 0], pa.uint64())], schema=connect.LABELS)
        spread.add(rows, [0, 0])
    partition = {"index": 0, "file": str(tmp_path / "part.parquet"), "rows": 2, "bytes": table.nbytes}
    task = {"partition": partition, "labels": [spread.index], "buckets": 1}
    step = TokenDivergence(tokens="tokenizer")
    found = exchange.collect([step.members(task, work)["members"]], 0, choose.member_schema(step.keep))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
    for text, payload in zip(["the cat the", "mat"], found.column("payload").to_pylist(), strict=True):
        counts = sorted(Counter(tokenizer.encode(text).ids).values())
        assert sorted(payload[len(payload) // 2 :]) == counts
