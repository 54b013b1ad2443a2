"""N-gram language models by interpolated modified Kneser-Ney smoothing, as ARPA text that KenLM opens.

The n-gram at each place of the corpus has a number; that of n words is made of the number of its first n - 1 words
and of its last word, so that one sort of 64-bit integers per order finds all n-grams.
Source: Chen & Goodman 1998, section 3; Heafield et al. 2013 (lmplz), ACL P13-2121.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


@dataclass
class Order:
    """The n-grams of one length; all arrays have one entry for each, but `backoff` is added by the next order.

    at        int64: a place of the corpus where it stands
    prefix    int64: number of its first n - 1 words among the n-grams of that length; 0 for single words
    suffix    int64: the same of its last n - 1 words
    count     int64: how often it occurs
    p         float64: its probability
    backoff   float64: what a word that was never seen behind it keeps of its probability after the last n - 1 words
    """

    at: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    count: np.ndarray
    p: np.ndarray
    backoff: np.ndarray
    kept: np.ndarray


class NgramModel:
    """A trained model: `orders[n - 1]` has the n-grams of n words, `words` the vocabulary by number."""

    def __init__(self, words: list[str], flat: np.ndarray, orders: list[Order]):
        self.words, self.flat, self.orders = words, flat, orders

    def arpa(self) -> Iterator[str]:
        """The lines of the model as ARPA text, base 10 logarithms."""
        yield "\\data\\"
        for n, order in enumerate(self.orders, 1):
            yield f"ngram {n}={int(order.kept.sum())}"
        for n, order in enumerate(self.orders, 1):
            yield f"\n\\{n}-grams:"
            rows = np.flatnonzero(order.kept)
            with np.errstate(divide="ignore"):
                p = np.maximum(np.log10(order.p[rows]), -99.0).tolist()
                backoff = np.log10(order.backoff[rows]).tolist()
            grams = (rows[:, None] if n == 1 else self.flat[order.at[rows][:, None] + np.arange(n)]).tolist()
            for probability, gram, rest in zip(p, grams, backoff, strict=True):
                line = f"{probability:.7g}\t{' '.join([self.words[word] for word in gram])}"
                yield line if n == len(self.orders) else f"{line}\t{rest:.7g}"
        yield "\n\\end\\\n"


def train(sentences: Iterable[Sequence[str]], order: int = 5, prune: int = 0) -> NgramModel:
    """A model of `order` words from sentences of tokens; the same for the same sentences in the same order.

    With `prune`, n-grams of three words and more that occur that often or less are left out, and their probability
    goes to the words behind the shorter context. Raises ValueError for order < 2 and where there is no token.
    Memory: about 60 bytes per token of the corpus.
    """
    if order < 2:
        raise ValueError(f"an n-gram model needs an order of 2 at least, found {order}")
    words, flat, line = _number(sentences)
    orders = [_words_alone(flat, len(words))]
    numbers = flat
    for n in range(2, order + 1):
        if len(line) < n:
            raise ValueError(f"no sentence is long enough for {n}-grams; lower `order`")
        places = np.flatnonzero(line[n - 1 :] == line[: len(line) - n + 1])
        if not len(places):
            raise ValueError(f"no sentence is long enough for {n}-grams; lower `order`")
        keys = numbers[places] << 32 | flat[places + n - 1]
        _, first, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        at = places[first]
        blank = np.zeros(len(at))
        kept = count > (prune if n > 2 else 0)
        orders.append(Order(at, numbers[at], numbers[at + 1], count, blank, np.ones(len(at)), kept))
        numbers = np.full(len(flat), -1, np.int64)
        numbers[places] = inverse.ravel()
    _estimate(orders, flat)
    return NgramModel(words, flat, orders)


def _number(sentences: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(words by number, numbers of all words with the marks of sentences, number of each one's sentence)."""
    number = {UNKNOWN: 0, BEGIN: 1, END: 2}
    flat: list[np.ndarray] = []
    sizes: list[int] = []
    for sentence in sentences:
        ids = [1, *(number.setdefault(word, len(number)) for word in sentence if word not in (BEGIN, END, UNKNOWN)), 2]
        flat.append(np.array(ids, np.int64))
        sizes.append(len(ids))
    if sum(sizes) <= 2 * len(sizes):
        raise ValueError("there is no token to train on")
    return list(number), np.concatenate(flat), np.repeat(np.arange(len(sizes)), sizes)


def _words_alone(flat: np.ndarray, size: int) -> Order:
    count = np.bincount(flat, minlength=size)
    at = np.zeros(size, np.int64)
    at[flat[::-1]] = np.arange(len(flat))[::-1]
    nothing = np.zeros(size, np.int64)
    return Order(at, nothing, nothing, count, np.zeros(size), np.ones(size), np.ones(size, np.bool_))


def _estimate(orders: list[Order], flat: np.ndarray) -> None:
    """Fill in probabilities and backoffs, from single words up."""
    for n, here in enumerate(orders, 1):
        counts = here.count.astype(np.float64)
        if n < len(orders):
            # Shorter n-grams count the different words before them; at the start of a sentence there are none.
            inside = np.bincount(orders[n].suffix, minlength=len(counts)).astype(np.float64)
            counts = np.where(flat[here.at] == 1, counts, inside)
        if n == 1:
            counts[:2] = 0  # the mark of the beginning is never predicted, and the unknown word never seen
        taken = counts - _discounts(counts)[np.minimum(counts, 3).astype(np.int64)]
        contexts = 1 if n == 1 else len(orders[n - 2].count)
        total = np.bincount(here.prefix, weights=counts, minlength=contexts)
        used = np.bincount(here.prefix, weights=np.where(here.kept, taken, 0.0), minlength=contexts)
        left = np.ones(contexts)
        np.divide(total - used, total, out=left, where=total > 0)
        share = taken / total[here.prefix]
        if n == 1:
            here.p = share + left[0] / (len(counts) - 1)
            here.p[1] = 0.0
        else:
            here.p = share + left[here.prefix] * orders[n - 2].p[here.suffix]
            orders[n - 2].backoff = np.maximum(left, 1e-99)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from n-grams that occur 0, 1, 2 and 3 or more times."""
    one, two, three, four = (float((counts == k).sum()) for k in (1, 2, 3, 4))
    if not one or not two or not three or not four:
        return np.array([0.0, 0.5, 1.0, 1.5])  # too small a corpus to tell: lmplz's fallback
    y = one / (one + 2 * two)
    found = np.array([0.0, 1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three])
    return found if (found[1:] >= 0).all() else np.array([0.0, 0.5, 1.0, 1.5])
