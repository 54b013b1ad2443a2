"""The text of PDF files, read by PDFium in a process of its own, which a bomb may break and nothing else.

PDFium unpacks a stream whole and makes an object of every operator, so a small file can ask for any time and memory.
The reading process may have MEMORY_BYTES of address space and CPU_SECONDS for one file; past either, or if PDFium
crashes, the kernel ends it, the file is `Unreadable`, and the next file has a fresh process.

This file is also the program of that process: it imports nothing of the pipeline.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO, Any

MAX_PAGES = 5000
MAX_CHARACTERS = 16 << 20
CPU_SECONDS = 30
MEMORY_BYTES = 2 << 30
_LENGTH = 8


class Broken(Exception):
    """The reader says that the file is no PDF, or was ended over it."""


class Reader:
    """A process that reads one PDF after another; started at the first, and again after it was ended."""

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._cpu_seconds, self._memory_bytes = cpu_seconds, memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, data: bytes) -> tuple[list[str], str | None]:
        """(text of each page, title). Raises Broken."""
        with self._lock:
            process = self._started()
            try:
                _send(process.stdin, data)
                answer = _receive(process.stdout)
            except BrokenPipeError:
                answer = None
            if answer is None:
                status = self._end()
        if answer is None:
            raise Broken(self._why(status))
        found = json.loads(answer)
        if "error" in found:
            raise Broken(found["error"])
        return found["pages"], found["title"]

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        # a fork of this process must not talk to the reader of its parent
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner = os.getpid()
            command = [sys.executable, "-P", __file__, str(self._cpu_seconds), str(self._memory_bytes)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            atexit.register(self._end)
        return self._process

    def _end(self) -> int:
        process, self._process = self._process, None
        atexit.unregister(self._end)
        if process is None or self._owner != os.getpid():
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            return process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _why(self, status: int) -> str:
        if status == -signal.SIGPROF:
            return f"takes more than {self._cpu_seconds} CPU seconds"
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"ended its reader ({name}), which may have {self._memory_bytes >> 20} MiB"


def _send(stream: IO[bytes] | None, data: bytes) -> None:
    assert stream is not None
    stream.write(len(data).to_bytes(_LENGTH, "little"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes] | None) -> bytes | None:
    """The next message, None at the end of the stream."""
    assert stream is not None
    head = stream.read(_LENGTH)
    size = int.from_bytes(head, "little")
    data = stream.read(size) if len(head) == _LENGTH else b""
    return data if len(head) == _LENGTH and len(data) == size else None


READER = Reader()
"""The reader of this process."""


# -- the reading process --


def _read(pdfium: Any, data: bytes) -> dict[str, Any]:
    pages: list[str] = []
    size = 0
    try:
        pdf = pdfium.PdfDocument(data)
        try:
            for number in range(min(len(pdf), MAX_PAGES)):
                page = pdf[number]
                text = page.get_textpage()
                pages.append(text.get_text_bounded().replace("\r\n", "\n").replace("\ufffe", ""))
                size += len(pages[-1])
                text.close()
                page.close()
                if size > MAX_CHARACTERS:
                    break
            return {"pages": pages, "title": str(pdf.get_metadata_value("Title") or "").strip() or None}
        finally:
            pdf.close()
    except (pdfium.PdfiumError, ValueError, KeyError, RuntimeError, OSError) as error:
        return {"error": f"page {len(pages) + 1}: {error}" if pages else str(error)}


def _serve() -> None:
    import resource

    import pypdfium2

    seconds, memory = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (data := _receive(sys.stdin.buffer)) is not None:
        # SIGPROF, which nobody handles, ends the process; an orphan ends so too, or at the end of its input
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = json.dumps(_read(pypdfium2, data)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(sys.stdout.buffer, answer)


if __name__ == "__main__":
    _serve()
