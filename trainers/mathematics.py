"""Whether two answers are mathematically equal, by the package math-verify, in a process of its own.

An answer such as 9^{9^{9^9}} or a hundred open brackets keeps a computer algebra system busy for ever. The process is
ended when it takes too long over one answer, and another goes on with the next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import select
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cluster.errors import RecipeError, RunError

_INSIDE = """
import json, logging, resource, sys
logging.disable(logging.CRITICAL)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
out, sys.stdout = sys.stdout, sys.stderr
from math_verify import parse, verify
print("ready", file=out, flush=True)
for line in sys.stdin:
    expected, answer = json.loads(line)
    try:
        equal = verify(parse(expected, parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)
    except (Exception, MemoryError, RecursionError):
        equal = False
    print(int(bool(equal)), file=out, flush=True)
"""
STARTING = 120.0
"""Seconds that the process may take to import its packages."""


def needed() -> None:
    """Raises RecipeError where the package is missing."""
    if find_spec("math_verify") is None:
        raise RecipeError("mathematics needs the package math-verify: pip install 'corpusmill[math]'")


def equal(pairs: Sequence[tuple[str, str]], seconds: float) -> list[bool]:
    """For each (expected, answer) whether they are equal; False for what takes longer than `seconds`, or cannot be
    read."""
    needed()
    found = []
    for pair in pairs:
        said = _process().ask(json.dumps(pair), seconds)
        if said is None:
            _process.cache_clear()
        found.append(said == "1")
    return found


class _Process:
    """A process that is asked line by line."""

    def __init__(self) -> None:
        self.child: Any = subprocess.Popen(
            [sys.executable, "-c", _INSIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace",
        )  # fmt: skip
        if self._line(STARTING) != "ready":
            raise RunError("rewards: mathematics: its process did not start; try `python -c 'import math_verify'`")

    def ask(self, line: str, seconds: float) -> str | None:
        """Its reply, or None when there is none in time: it is then ended."""
        with contextlib.suppress(OSError):
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        return self._line(seconds)

    def _line(self, seconds: float) -> str | None:
        ready, _, _ = select.select([self.child.stdout], [], [], seconds)
        said = self.child.stdout.readline() if ready else ""
        if not said:
            self.child.kill()
            self.child.wait()
            return None
        return str(said.strip())


@functools.lru_cache(maxsize=1)
def _process() -> _Process:
    return _Process()
