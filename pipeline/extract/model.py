"""The extractor's model: boosted trees shipped as plain numbers in `main_content.npz`.

Two models of trees: the first looks at each block, the second also at what the first thought of the blocks around
it and of those that look like it. Then the set of blocks is chosen that makes the expected F1 of the page's words
largest. Trained by `benchmarks/train_extract.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.kernels.html_features import boosted, bridged, choose, features, smoothed
from pipeline.kernels.html_groups import group_features, groups, opinions
from pipeline.kernels.html_scan import Page

FILE = Path(__file__).with_name("main_content.npz")


class Trees(NamedTuple):
    """feature int16, threshold float32, child int32, value float32 [nodes]; roots, depths int32 [trees]."""

    feature: np.ndarray
    threshold: np.ndarray
    child: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    depths: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(boosted(x, *self))


def first_columns(
    page: Page, meta: np.ndarray, weights: np.ndarray, topics: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """float32 [blocks, columns]: what the first model sees; `group` is `groups_of(page)`."""
    alone = features(
        page.tag, page.parent, page.flags, page.shape, page.cue_start, page.cues, page.block_element, page.stats,
        page.digest, weights, topics, meta,
    )  # fmt: skip
    return np.hstack([alone, group_features(group, page.stats)])


def second_columns(page: Page, x: np.ndarray, p: np.ndarray, group: np.ndarray) -> np.ndarray:
    """float32 [blocks, columns]: what the second model sees, from the first's columns `x` and probabilities `p`."""
    around = smoothed(page.parent, page.block_element, page.stats, p)
    return np.hstack([x, around, opinions(group, page.parent, page.block_element, page.stats, p)])


def groups_of(page: Page) -> np.ndarray:
    return np.asarray(groups(page.tag, page.parent, page.shape, page.block_element, page.digest))


def picked(page: Page, p: np.ndarray) -> np.ndarray:
    """bool [blocks]: the main content, by the probability float32 [blocks] of each."""
    return np.asarray(bridged(page.flags, page.block_element, page.stats, p, choose(page.stats, p)))


class Model(NamedTuple):
    """`weights` float32 and `topics` uint8 [CUE_BUCKETS] of class words, and both models."""

    weights: np.ndarray
    topics: np.ndarray
    first: Trees
    second: Trees

    def probabilities(self, page: Page, meta: np.ndarray) -> np.ndarray:
        """float32 [blocks]: how likely each block is main content."""
        group = groups_of(page)
        x = first_columns(page, meta, self.weights, self.topics, group)
        return self.second(second_columns(page, x, self.first(x), group))

    def chosen(self, page: Page, meta: np.ndarray) -> np.ndarray:
        """bool [blocks]: the main content."""
        return picked(page, self.probabilities(page, meta))


@functools.cache
def load() -> Model:
    """The model that is shipped beside this file."""
    with np.load(FILE, allow_pickle=False) as file:
        first, second = (Trees(*(file[f"{which}_{name}"] for name in Trees._fields)) for which in ("first", "second"))
        return Model(file["weights"].astype(np.float32), file["topics"], first, second)
