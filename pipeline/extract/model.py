"""The extractor's model: boosted trees shipped as plain numbers in `main_content.npz`.

Two models of trees: the first looks at each block, the second also at what the first thought of the blocks around
it. Then the set of blocks is chosen that makes the expected F1 of the page's words largest. Trained by
`benchmarks/train_extract.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.kernels.html_features import boosted, choose, features, smoothed
from pipeline.kernels.html_scan import Page


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


class Model(NamedTuple):
    """`weights` float32 and `topics` uint8 [CUE_BUCKETS] of class words, and both models."""

    weights: np.ndarray
    topics: np.ndarray
    first: Trees
    second: Trees

    def probabilities(self, page: Page, meta: np.ndarray) -> np.ndarray:
        """float32 [blocks]: how likely each block is main content."""
        x = features(
            page.tag, page.parent, page.flags, page.shape, page.cue_start, page.cues, page.block_element, page.stats,
            page.digest, self.weights, self.topics, meta,
        )  # fmt: skip
        around = smoothed(page.parent, page.block_element, page.stats, self.first(x))
        return self.second(np.hstack([x, around]))

    def chosen(self, page: Page, meta: np.ndarray) -> np.ndarray:
        """bool [blocks]: the main content."""
        return np.asarray(choose(page.stats, self.probabilities(page, meta)))


@functools.cache
def load() -> Model:
    """The model that is shipped beside this file."""
    with np.load(Path(__file__).with_name("main_content.npz"), allow_pickle=False) as file:
        first, second = (Trees(*(file[f"{which}_{name}"] for name in Trees._fields)) for which in ("first", "second"))
        return Model(file["weights"].astype(np.float32), file["topics"], first, second)
