"""Deduplication steps whose every task takes a moment longer, so that a test can interfere with each phase."""

from __future__ import annotations

import time
from typing import Any

from pipeline.dedup.exact import Exact
from pipeline.dedup.lines import Lines
from pipeline.dedup.minhash import Minhash
from pipeline.dedup.substring import Substring
from pipeline.dedup.url import Url
from pipeline.step import Work

DELAY_S = 0.1


def _slow(step: type, phase: str) -> Any:
    def slowly(self: Any, task: dict[str, Any], work: Work) -> dict[str, Any]:
        time.sleep(DELAY_S)
        return vars(step)[phase].__get__(self, step)(task, work)

    return slowly


class SlowExact(Exact):
    """Exact, slowly."""

    hashes = _slow(Exact, "hashes")
    choose = _slow(Exact, "choose")


class SlowUrl(Url):
    """Url, slowly."""

    hashes = _slow(Url, "hashes")
    choose = _slow(Url, "choose")


class SlowMinhash(Minhash):
    """Minhash, slowly."""

    signatures = _slow(Minhash, "signatures")
    edges = _slow(Minhash, "edges")
    large_star = _slow(Minhash, "large_star")
    small_star = _slow(Minhash, "small_star")
    label = _slow(Minhash, "label")
    members = _slow(Minhash, "members")
    choose = _slow(Minhash, "choose")


class SlowLines(Lines):
    """Lines, slowly."""

    lines = _slow(Lines, "lines")
    count = _slow(Lines, "count")


class SlowSubstring(Substring):
    """Substring, slowly."""

    windows = _slow(Substring, "windows")
    repeats = _slow(Substring, "repeats")
