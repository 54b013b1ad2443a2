"""What a run writes down per step: metrics.jsonl, TensorBoard, and the lines that the driver shows."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np


class Beat:
    """What this rank does right now; the driver reads it to tell a slow rank from a dead one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stage, self._step, self._since = "start", 0, time.monotonic()
        self.turns = 0
        """Stages entered so far: ranks enter the same ones, so the one with the fewest is behind."""

    def at(self, stage: str, step: int) -> None:
        """Enter a stage: build, restore, data, count, forward, backward, step, evaluate, checkpoint, export."""
        with self._lock:
            self.turns += 1
            self._stage, self._step, self._since = stage, step, time.monotonic()

    def read(self) -> tuple[str, int, float]:
        """(stage, step, seconds in it)."""
        with self._lock:
            return self._stage, self._step, time.monotonic() - self._since


class Spikes:
    """Tells a loss that jumps out of its recent past: a bad row, or a run about to diverge.

    The past is a straight line through the last steps, so that a loss which still falls hides no jump; a deviation is
    the standard deviation from it, or 1 % of the loss where that is more.
    """

    def __init__(self, window: int = 50, deviations: float = 6.0):
        self.deviations, self.step, self.alarms = deviations, 0, 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=window)

    def check(self, loss: float) -> str | None:
        """Why this loss is a spike against the last steps, or None.

        Spikes do not become part of the past, until ten in a row are the new state of things.
        """
        self.step += 1
        if len(self._recent) >= 20:
            steps, past = np.array(self._recent).T
            line = np.polynomial.Polynomial.fit(steps, past, 1)
            expected = float(line(self.step))
            spread = max(float(np.std(past - line(steps))), 0.01 * abs(float(past.mean())))
            if loss > expected + self.deviations * spread:
                self.alarms += 1
                if self.alarms == 10:
                    self._recent.clear()
                return (
                    f"loss {loss:.4f} is {(loss - expected) / spread:.1f} deviations above the line of its last "
                    f"{len(past)} steps"
                )
        self.alarms = 0
        self._recent.append((self.step, loss))
        return None


class Log:
    """Rank 0's record. Lines of steps after `start` (from a run that was killed) are dropped when it opens."""

    def __init__(self, out: str, start: int):
        self.path = Path(out, "metrics.jsonl")
        kept = [line for line in read_metrics(out) if line["step"] <= start]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(aside, self.path)
        self._file = self.path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._recent: list[dict[str, Any]] = []
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(os.path.join(out, "tensorboard"), purge_step=start + 1)
        self._wandb = _wandb_run(out)

    def write(self, line: dict[str, Any]) -> None:
        """Add one line: {"step": n, …numbers}."""
        self._file.write(json.dumps(line) + "\n")
        with self._lock:
            self._recent.append(line)
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(name, value, line["step"])
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def since(self, number: int) -> list[dict[str, Any]]:
        """The lines written in this process from the `number`-th on."""
        with self._lock:
            return self._recent[number:]

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(out: str) -> Any:
    """A Weights & Biases run when it is installed and asked for by WANDB_PROJECT or WANDB_MODE, else None.

    OUT/wandb_id makes a resumed run go on in the same one.
    """
    if not (os.environ.get("WANDB_PROJECT") or os.environ.get("WANDB_MODE")):
        return None
    try:
        import wandb
    except ImportError:
        return None
    path = Path(out, "wandb_id")
    if not path.is_file():
        path.write_text(secrets.token_hex(4))
    return wandb.init(dir=out, name=Path(out).name, id=path.read_text(), resume="allow")


def read_metrics(out: str) -> list[dict[str, Any]]:
    """The lines of OUT/metrics.jsonl; a torn last line (from a kill) is left out."""
    path = Path(out, "metrics.jsonl")
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
