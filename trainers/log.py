"""What a run writes down per step: metrics.jsonl, TensorBoard, and the lines that the driver shows."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any


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
    """Tells a loss that jumps out of its recent past: a bad row, or a run about to diverge."""

    def __init__(self, window: int = 50, deviations: float = 6.0):
        self.deviations = deviations
        self._recent: deque[float] = deque(maxlen=window)

    def check(self, loss: float) -> str | None:
        """Why this loss is a spike against the last steps, or None. Spikes do not enter the window."""
        past = list(self._recent)
        if len(past) >= 20:
            mean = sum(past) / len(past)
            spread = max((sum((x - mean) ** 2 for x in past) / len(past)) ** 0.5, 0.01 * abs(mean))
            if loss > mean + self.deviations * spread:
                return f"loss {loss:.4f} is {(loss - mean) / spread:.1f} deviations above its last {len(past)} steps"
        self._recent.append(loss)
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
    """A Weights & Biases run when it is installed and asked for by WANDB_PROJECT or WANDB_MODE, else None."""
    if not (os.environ.get("WANDB_PROJECT") or os.environ.get("WANDB_MODE")):
        return None
    try:
        import wandb
    except ImportError:
        return None
    return wandb.init(dir=out, name=Path(out).name, resume="allow")


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
