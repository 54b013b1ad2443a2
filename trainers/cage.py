"""Runs a program that a model wrote, in a process of its own with bounds, and tells whether it came to its end.

That keeps accidents away from an evaluation or a training run; it is no jail for a hostile program. Where programs may
be hostile, run in a container without a network.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

_INSIDE = """
import ctypes, os, resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
limits = [(resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 1 << 20),
          (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0)]
if os.geteuid() != 0:  # root is not bound by it
    limits.append((resource.RLIMIT_NPROC, 0))
try:  # namespaces of its own: no network, where the kernel lets us
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)
except OSError:
    pass
for kind, value in limits:
    resource.setrlimit(kind, (value, value))
source = sys.stdin.read()
sys.argv = ["answer"]
exec(compile(source, "answer", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Ran:
    """What became of a program: passed, or why not (its error's last line, or 'timeout'); and what it printed."""

    passed: bool
    why: str
    said: str = ""


def run(program: str, *, seconds: float = 10.0, memory_bytes: int = 1 << 30) -> Ran:
    """Whether a Python program runs to its last line without an error; leaving early with status 0 is not passing.

    Isolated interpreter, empty environment, a folder that is deleted, limits on CPU time, memory (bytes), open files,
    and files and output (1 MiB), no other processes unless root, no network where the kernel allows a namespace; ended
    with all its children after `seconds`.
    """
    word = secrets.token_hex(16)
    source = f"{program}\n\nimport sys as _sys\n_sys.__stdout__.write({word!r})\n"
    command = [sys.executable, "-I", "-S", "-c", _INSIDE, str(max(1, round(seconds))), str(memory_bytes)]
    # files, not pipes: the bound on file sizes holds for what is printed too
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as wrong,
    ):
        process = subprocess.Popen(
            command, cwd=folder, env={}, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.PIPE, stdout=printed, stderr=wrong,
        )  # fmt: skip
        late = False
        try:
            process.communicate(source, timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out, errors = _text(printed), _text(wrong)
    if late:
        return Ran(False, "timeout", out)
    if process.returncode == 0 and out.endswith(word):
        return Ran(True, "", out.removesuffix(word))
    lines = errors.strip().splitlines()
    if lines:
        return Ran(False, lines[-1][:200], out)
    return Ran(False, f"exit status {process.returncode}" if process.returncode else "left before its end", out)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
