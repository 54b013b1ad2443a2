"""Trains the model of `extract.main_content` and writes `pipeline/extract/main_content.npz`.

    pip install lightgbm; python benchmarks/train_extract.py [--rounds 130] [--write]
    python benchmarks/train_extract.py --without 3 --out model.npz   # for bench_extract.py --fold 3 --model model.npz

Data: the open halves of WCXB, article-extraction-benchmark and trafilatura's set (`../shared/data`). The label of a
block is the share of its words that a longest common subsequence of page and gold text matches; where only snippets
are known, 1 or 0 for the blocks that hold one. Four folds by domain: class words are weighed, the first model is
trained, and its opinion of the held-back pages is what the second model learns from; the scores printed are those of
pages whose domain no part of the model has seen, but for the list of TOPICS (64 class words without weights) and the
first models whose opinions the second one is trained on; --without with bench_extract.py has no such exception.
The columns of groups and of opinions were chosen on folds 0 to 2 alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extraction_sets import FOLDS, Item, fold_of, items, scores, words

from pipeline.extract.encoding import decode
from pipeline.extract.main_content import _plain
from pipeline.extract.model import first_columns, groups_of, picked, second_columns
from pipeline.extract.page_meta import meta_columns
from pipeline.kernels.html_bytes import CUE_BUCKETS
from pipeline.kernels.html_features import TOPICS
from pipeline.kernels.html_scan import Page, scan
from pipeline.kernels.html_text import text_of

TARGET = Path(__file__).parents[1] / "pipeline/extract/main_content.npz"
ROWS_PER_PAGE = 120
SEEDS = 2  # of the second model
SET_WEIGHT = {"wcxb": 1.0, "aeb": 1.5, "trafilatura": 1.0}
PARAMETERS = {
    "objective": "cross_entropy", "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 30, "max_bin": 63,
    "feature_fraction": 0.4, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5, "verbose": -1,
}  # fmt: skip


@numba.njit
def matched(a: Any, b: Any) -> Any:
    """bool [len(a)]: the tokens of `a` that are in one longest common subsequence with `b`."""
    n, m = len(a), len(b)
    same = np.zeros((n + 1, m // 8 + 1), np.uint8)
    up = np.zeros((n + 1, m // 8 + 1), np.uint8)
    before, here = np.zeros(m + 1, np.int32), np.zeros(m + 1, np.int32)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            if a[i - 1] == b[j - 1]:
                here[j] = before[j - 1] + 1
                same[i, j >> 3] |= 1 << (j & 7)
            elif before[j] >= here[j - 1]:
                here[j] = before[j]
                up[i, j >> 3] |= 1 << (j & 7)
            else:
                here[j] = here[j - 1]
        before[:] = here
    out = np.zeros(n, np.bool_)
    i, j = n, m
    while i > 0 and j > 0:
        if same[i, j >> 3] >> (j & 7) & 1:
            out[i - 1] = True
            i, j = i - 1, j - 1
        elif up[i, j >> 3] >> (j & 7) & 1:
            i -= 1
        else:
            j -= 1
    return out


class Example:
    """A page read and labelled: `labels` float32 [blocks], -1 where nothing is known; `counts` words per block."""

    def __init__(self, item: Item):
        self.item = item
        self.data = decode(item.html)[0].encode("utf-8", "replace")
        self.page: Page = scan(self.data)
        n = len(self.page.block_element)
        one = np.eye(n, dtype=bool) if n < 5000 else np.zeros((0, n), bool)
        texts = [_plain(text_of(self.data, self.page, one[b])) for b in range(len(one))]
        tokens = [words(text) for text in texts] or [[] for _ in range(n)]
        self.counts = np.array([len(t) for t in tokens], np.float32)
        self.labels = np.full(n, -1, np.float32)
        self.meta = meta_columns(self.data, item.url)
        self.group = groups_of(self.page)
        if item.gold is not None:
            self._label_by_gold(tokens, words(item.gold))
        else:
            for b, text in enumerate(texts):
                flat = " ".join(text.split())
                if any(" ".join(s.split()) in flat for s in item.must if s.strip()):
                    self.labels[b] = 1
                elif any(" ".join(s.split()) in flat for s in item.must_not if s.strip()):
                    self.labels[b] = 0

    def _label_by_gold(self, tokens: list[list[str]], gold: list[str]) -> None:
        numbers: dict[str, int] = {}
        b = np.array([numbers.setdefault(word, len(numbers)) for word in gold], np.int32)
        a = np.array([numbers.get(word, -1) for block in tokens for word in block], np.int32)
        known = a >= 0
        if not len(a) or len(b) * int(known.sum()) > 2_500_000_000:
            return
        hit = np.zeros(len(a), bool)
        # from the end, so that of text that a page holds twice the first copy is the content
        hit[known] = matched(a[known][::-1], b[::-1])[::-1] if len(b) else False
        edges = np.r_[0, np.cumsum([len(block) for block in tokens])]
        for i in range(len(tokens)):
            if edges[i + 1] > edges[i]:
                self.labels[i] = hit[edges[i] : edges[i + 1]].mean()

    @property
    def fold(self) -> int:
        return fold_of(self.item)


def cue_weights(examples: list[Example], *, least_pages: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(log odds float32 [CUE_BUCKETS] that text below a class word is content, each page counting once; pages)."""
    share, pages = np.zeros(CUE_BUCKETS), np.zeros(CUE_BUCKETS)
    base = []
    for example in examples:
        known = example.labels >= 0
        page, m = example.page, len(example.page.tag)
        weight = np.minimum(example.counts, 50) * known
        total = np.bincount(page.block_element, weight, m)
        content = np.bincount(page.block_element, weight * np.clip(example.labels, 0, 1), m)
        for e in range(m - 1, 0, -1):
            total[page.parent[e]] += total[e]
            content[page.parent[e]] += content[e]
        if total[0] == 0:
            continue
        base.append(content[0] / total[0])
        element = np.repeat(np.arange(m), np.diff(page.cue_start))
        some = total[element] > 0
        bucket = page.cues[some]
        t = np.bincount(bucket, total[element[some]], CUE_BUCKETS)
        c = np.bincount(bucket, content[element[some]], CUE_BUCKETS)
        share[t > 0] += c[t > 0] / t[t > 0]
        pages += t > 0
    prior = float(np.mean(base))
    rate = (share + 2 * prior) / (pages + 2)
    weights = np.log(rate / (1 - rate)) - np.log(prior / (1 - prior))
    weights[pages < least_pages] = 0
    return np.clip(weights, -4, 4).astype(np.float16).astype(np.float32), pages


def topics_of(weights: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """uint8 [CUE_BUCKETS]: 1 … TOPICS for the class words that are both frequent and telling."""
    out = np.zeros(CUE_BUCKETS, np.uint8)
    out[np.argsort(-np.abs(weights) * pages * (pages >= 15))[:TOPICS]] = np.arange(1, TOPICS + 1)
    return out


class Forest:
    """Boosted trees of several seeds, whose log odds are averaged."""

    def __init__(self, boosters: list[Any]):
        self.boosters = boosters

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Probabilities float32 [rows]."""
        odds = sum(booster.predict(x, raw_score=True) for booster in self.boosters) / len(self.boosters)
        return np.asarray(1 / (1 + np.exp(-odds)), np.float32)


def fit(examples: list[Example], x: dict[int, np.ndarray], rounds: int, *, seeds: int = 1) -> Forest:
    """Boosted trees on at most ROWS_PER_PAGE blocks a page; every page weighs the same, longer blocks more."""
    return Forest([_boosted(examples, x, rounds, seed) for seed in range(seeds)])


def _boosted(examples: list[Example], x: dict[int, np.ndarray], rounds: int, seed: int) -> Any:
    import lightgbm

    rng = np.random.default_rng(seed)
    rows, labels, weights = [], [], []
    for example in examples:
        picked = np.flatnonzero(example.labels >= 0)
        if not len(picked):
            continue
        weight = np.sqrt(example.counts[picked] + 1)
        if len(picked) > ROWS_PER_PAGE:
            picked = np.sort(rng.choice(picked, ROWS_PER_PAGE, False, weight / weight.sum()))
            weight = np.ones(ROWS_PER_PAGE)
        weight = weight / weight.sum() if example.item.gold is not None else np.full(len(picked), 1 / 40)
        rows.append(x[id(example)][picked])
        labels.append(np.clip(example.labels[picked], 0, 1))
        weights.append(weight * SET_WEIGHT[example.item.set])
    w = np.concatenate(weights)
    data = lightgbm.Dataset(np.vstack(rows), np.concatenate(labels), weight=w * len(w) / w.sum())
    return lightgbm.train(PARAMETERS | {"seed": seed + 1}, data, rounds)


def numbers_of(forest: Forest) -> dict[str, np.ndarray]:
    """LightGBM models as the arrays of `pipeline.extract.model.Trees`."""
    feature, threshold, child, value, roots, depths = [], [], [], [], [], []

    def add() -> int:
        feature.append(0)
        threshold.append(np.float32(np.inf))
        child.append(len(child))
        value.append(0.0)
        return len(feature) - 1

    def fill(at: int, node: dict[str, Any]) -> int:
        if "split_feature" not in node:
            value[at] = node["leaf_value"] / len(forest.boosters)
            return 0
        limit = np.float32(node["threshold"])
        if float(limit) > node["threshold"]:
            limit = np.nextafter(limit, np.float32(-np.inf))
        left, right = add(), add()
        feature[at], threshold[at], child[at] = node["split_feature"], limit, left
        return 1 + max(fill(left, node["left_child"]), fill(right, node["right_child"]))

    for tree in (tree for booster in forest.boosters for tree in booster.dump_model()["tree_info"]):
        roots.append(add())
        depths.append(fill(roots[-1], tree["tree_structure"]))
    return {
        "feature": np.array(feature, np.int16), "threshold": np.array(threshold, np.float32),
        "child": np.array(child, np.int32), "value": np.array(value, np.float32),
        "roots": np.array(roots, np.int32), "depths": np.array(depths, np.int32),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=130)
    parser.add_argument("--write", action="store_true", help="also train on everything and write the model")
    parser.add_argument("--without", type=int, metavar="FOLD", help="train without these domains, and write --out")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    pages = [item for item in items() if fold_of(item) != options.without]
    folds = [k for k in range(FOLDS) if k != options.without]
    examples = [e for e in map(Example, pages) if len(e.page.block_element)]
    everything = cue_weights(examples)
    topics = topics_of(*everything)
    x: dict[int, np.ndarray] = {}
    for k in folds:
        weights, _ = cue_weights([e for e in examples if e.fold != k])
        x |= {id(e): first_columns(e.page, e.meta, weights, topics, e.group) for e in examples if e.fold == k}
    both: dict[int, np.ndarray] = {}
    for k in folds:
        model = fit([e for e in examples if e.fold != k], x, options.rounds)
        for e in examples:
            if e.fold == k:
                both[id(e)] = second_columns(e.page, x[id(e)], model.predict(x[id(e)]), e.group)
    if options.without is None:
        report(pages, examples, both, options.rounds)
    if options.write or options.without is not None:
        out = {"weights": everything[0].astype(np.float16), "topics": topics}
        for which, inputs, seeds in (("first", x, 1), ("second", both, SEEDS)):
            forest = fit(examples, inputs, options.rounds, seeds=seeds)
            out |= {f"{which}_{name}": array for name, array in numbers_of(forest).items()}
        np.savez_compressed(options.out, **out)
        print(f"wrote {options.out} ({options.out.stat().st_size} bytes)")


def report(pages: list[Item], examples: list[Example], both: dict[int, np.ndarray], rounds: int) -> None:
    """Print the scores of pages whose domain the second model has not seen."""
    texts = {(item.set, item.id): "" for item in pages}
    for k in range(FOLDS):
        model = fit([e for e in examples if e.fold != k], both, rounds, seeds=SEEDS)
        for e in examples:
            if e.fold == k:
                chosen = picked(e.page, model.predict(both[id(e)]))
                texts[e.item.set, e.item.id] = _plain(text_of(e.data, e.page, chosen))
    for name, value in scores(texts, pages).items():
        print(f"held back by domain: {name} {value:.4f}")
    for k in range(FOLDS):
        part = [item for item in pages if fold_of(item) == k]
        print(f"fold {k}:", " ".join(f"{name} {value:.4f}" for name, value in scores(texts, part).items()), flush=True)


if __name__ == "__main__":
    main()
