"""What the user sees while a run works: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_PLAIN_EVERY_S = 10.0


def kernels_compiled() -> bool:
    """Whether numba has stored compiled kernels here: without them the first batches take about a minute longer."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(own) if own else Path(__file__).parent / "kernels" / "__pycache__"
    return next(folder.rglob("*.nbi"), None) is not None if folder.is_dir() else False


class Console:
    """Prints progress and stage results to a stream; `quiet` prints nothing."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self._bars = not quiet and self.stream.isatty()

    def line(self, text: str) -> None:
        """One line of text."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def task(self, label: str, tasks: int) -> Iterator[Callable[[int, int, int], None]]:
        """Shows a phase; gives the function to call with (tasks done, tasks, rows done)."""
        if self._bars:
            with self._bar(label, tasks) as update_bar:
                yield update_bar
            return
        started = last = time.monotonic()

        def update(done: int, total: int, rows: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PLAIN_EVERY_S:
                last = now
                self.line(f"  {label}: {done}/{total} partitions, {rows:,} rows, {rows / (now - started):,.0f} rows/s")

        yield update

    @contextmanager
    def _bar(self, label: str, tasks: int) -> Iterator[Callable[[int, int, int], None]]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} partitions"),
            TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=RichConsole(file=self.stream), transient=True) as bars:
            bar = bars.add_task(label, total=tasks, rows=0)
            yield lambda done, total, rows: bars.update(bar, completed=done, total=total, rows=rows)

    def stage(self, summary: dict[str, Any]) -> None:
        """The result of a stage: one line per step that removed something."""
        again = "  (unchanged, found finished)" if summary.get("resumed") else f"  {summary['seconds']:.1f} s"
        self.line(f"{summary['name']:<28} {summary['documents_in']:>9,} in {summary['kept']:>9,} kept{again}")
        for step in summary["steps"]:
            if step["removed"] or step["failed"]:
                reasons = sorted(step["removed"].items(), key=lambda item: (-item[1], item[0]))
                shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:6])
                more = f", {len(reasons) - 6} more reasons" if len(reasons) > 6 else ""
                failed = f"{'; ' if shown else ''}{step['failed']:,} failed" if step["failed"] else ""
                self.line(f"  {step['name']:<26} - {shown}{more}{failed}")
