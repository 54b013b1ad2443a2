"""A second process that runs the steps of a task which has killed its worker: its death costs one document.

The worker sends batches to the child, and the documents of one that it does not survive each by itself (see
process.guarded), so that a crash in native code, or a document that never ends, becomes one failed row that names the
step and the signal.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from pipeline.process import Applied, ChildDied, apply_step
from pipeline.step import Documents, Step

if TYPE_CHECKING:
    from pipeline.workers import Job


class Child:
    """The calling side; a context manager whose value is a `Call` for process.Chain."""

    def __init__(self, job: Job, progress: Callable[[int], None]):
        self._job = job
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        return self._call

    def __exit__(self, *_: object) -> None:
        self._end()

    def _call(self, step: Step, docs: Documents) -> Applied:
        number = next(i for i, mine in enumerate(self._job.steps) if mine is step)
        if self._process is None:
            self._start()
        # each answer, or death, is progress: isolating one document may take longer than the stall limit
        self._progress(0)
        child = self._process
        assert child is not None and child.stdin is not None and child.stdout is not None
        try:
            _send(child.stdin, (number, docs.batch))
            ready, _, _ = select.select([child.stdout], [], [], self._job.document_timeout_s)
            if not ready:
                self._end()
                raise ChildDied(
                    f"{step.step_name()} took longer than document_timeout_s={self._job.document_timeout_s:g}"
                )
            outcome, value = _receive(child.stdout)
        except (EOFError, BrokenPipeError):
            code = child.wait()
            self._end()
            died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ChildDied(f"{step.step_name()} ended its process: {died}") from None
        if outcome == "error":
            raise value
        result: Applied = value
        return result

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.careful"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(self._process.stdin, self._job)
        _receive(self._process.stdout)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


def _send(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value, protocol=5)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    header = _exactly(pipe, 8)
    # Our own process on the other end of a private pipe: this is not data from outside.
    return pickle.loads(_exactly(pipe, struct.unpack("<Q", header)[0]))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        block = pipe.read(size - len(data))
        if not block:
            raise EOFError
        data += block
    return bytes(data)


def main() -> None:
    """The child: a job first, then (step number, batch) until the pipe closes."""
    from pipeline.workers import warm

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    requests = sys.stdin.buffer
    job: Job = _receive(requests)
    warm(job)
    _send(answers, "ready")
    while True:
        try:
            number, batch = _receive(requests)
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("ok", apply_step(job.steps[number], Documents(batch)))
        except Exception as error:
            answer = ("error", _portable(error))
        _send(answers, answer)


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
