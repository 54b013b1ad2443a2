import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from pipeline.tokens.bpe_training import Words, learn
from pipeline.tokens.byte_bpe import DIGITS, rules_for, split_pattern
from pipeline.tokens.train_bpe import train_bpe
from pipeline.tokens.vocabulary import SPECIAL_TOKENS
from tests.pipeline.tokens.real_text import documents


def trained_by_tokenizers(texts, vocab_size, digits="thousands", min_frequency=2):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def vocabulary_and_merges(tokenizer):
    import json

    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize("digits", list(DIGITS))
def test_real_text_gives_the_vocabulary_and_merges_of_tokenizers(digits):
    texts = [text for _, text in documents(limit_per_source=15)]
    ours = train_bpe(iter(texts), vocab_size=8000, digits=digits)
    assert vocabulary_and_merges(ours) == vocabulary_and_merges(trained_by_tokenizers(texts, 8000, digits))


@given(st.lists(st.text("ab c", max_size=30), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_texts_full_of_ties_and_repeats_give_the_merges_of_tokenizers(texts, min_frequency):
    ours = train_bpe(iter(texts), vocab_size=300, min_frequency=min_frequency)
    theirs = trained_by_tokenizers(texts, 300, min_frequency=min_frequency)
    assert vocabulary_and_merges(ours) == vocabulary_and_merges(theirs)


@given(st.lists(st.text(max_size=80), max_size=20))
@settings(max_examples=80, deadline=None)
def test_words_are_counted_as_the_regular_expression_splits_them(texts):
    words = Words(rules_for("thousands"))
    assert words.add(texts) == sum(len(text.encode()) for text in texts)
    bounds, pool = words.starts.tolist(), words.pool.tobytes()
    found = {pool[a:b].decode(): n for a, b, n in zip(bounds[:-1], bounds[1:], words.counts.tolist(), strict=True)}
    splitter = pre_tokenizers.Split(Regex(split_pattern("thousands")), "isolated")
    assert found == Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))


def test_counting_outgrows_its_first_room():
    words = Words(rules_for("thousands"))
    words.add([" ".join(f"w{i:x}" for i in range(90_000)), "y" * 3_000_000])
    assert int(words.counts.sum()) > 90_000
    assert int(np.diff(words.starts).max()) == 3_000_000


def slow_merges(words, wanted):
    """BPE by counting all pairs anew for each merge: {word as tuple of tokens: count} in, list of pairs out."""
    words = dict(words)
    found = []
    for _ in range(wanted):
        pairs = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        if pairs[best] < 2:
            break
        new = 256 + len(found)
        merged = Counter()
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(new)
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += n
        words = merged
        found.append(best)
    return found


def test_merges_equal_the_slow_twin():
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdé"), rng.integers(1, 9))) for _ in range(40)) for _ in range(8)]
    words = Words(rules_for("thousands"))
    words.add(texts)
    tokens = [bytes([i]) for i in range(256)]
    found = learn(words, words.pool.astype(np.int32), words.starts, tokens, 40, 2)
    bounds, pool = words.starts.tolist(), words.pool.tolist()
    counted = {tuple(pool[a:b]): n for a, b, n in zip(bounds[:-1], bounds[1:], words.counts.tolist(), strict=True)}
    assert len(set(found.tokens)) == 256 + 40  # no token was found in two ways, which the twin does not know of
    assert found.pairs == slow_merges(counted, 40)


def test_a_word_of_a_million_letters_is_merged_in_passes_over_it():
    """Each merge in it used to move all that follows: a stretch without a space took the time of its square."""
    doublings = train_bpe(iter(["a" * (1 << 20), "b"]), vocab_size=256 + 20 + len(SPECIAL_TOKENS))
    assert vocabulary_and_merges(doublings)[1] == [("a" * (1 << k),) * 2 for k in range(19)]


def test_the_longest_word_costs_a_few_bytes_per_byte():
    """It took 450: room for as many different pairs as a word has letters."""
    code = (
        "import numpy as np, resource, sys; from pipeline.tokens.train_bpe import train_bpe\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "train_bpe(iter(['some words and more of them']), vocab_size=300); before = peak()\n"
        "letters = np.random.default_rng(0).integers(97, 123, 8 << 20).astype(np.uint8).tobytes().decode()\n"
        "train_bpe(iter([letters]), vocab_size=400); print((peak() - before) / (8 << 10))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60
