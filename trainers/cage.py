"""Runs a program that a model wrote, in a process of its own with bounds, and tells whether it came to its end.

That keeps accidents away from an evaluation or a training run; it is no jail for a hostile program, which can read what
its user can, and could claim to have come to its end. Where programs may be hostile, run in a container.
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
import ctypes, os, resource, struct, sys
system = ctypes.CDLL(None)
system.unshare(0x10000000 | 0x40000000)  # namespaces of its own: no network
system.prctl(38, 1, 0, 0, 0)  # no new privileges, without which the kernel takes no rules from an ordinary user
version = system.syscall(444, None, 0, 1)  # Landlock: no writing outside this folder, no signals to others
if version > 0:
    writing = 0b1_1111_1111_0010 | (version > 1) << 13 | (version > 2) << 14
    scopes = (0, 2) if version > 5 else ()
    rules = system.syscall(444, struct.pack(f"{1 + len(scopes)}Q", writing, *scopes), 8 + 8 * len(scopes), 0)
    here = os.open(".", os.O_PATH)
    system.syscall(445, rules, 1, struct.pack("=Qi", writing, here), 0)
    system.syscall(446, rules, 0)
    os.close(here)
    os.close(rules)
machine, starts = {"x86_64": (0xC000003E, (56, 57, 58, 59, 322, 435)),
                   "aarch64": (0xC00000B7, (220, 221, 281, 435))}.get(os.uname().machine, (0, ()))
if machine:  # seccomp: no clone, fork, vfork, execve, execveat, clone3, which a limit does not keep root from
    deny = [(0x15, len(starts) - n, 0, number) for n, number in enumerate(starts)]
    steps = [(0x20, 0, 0, 4), (0x15, 0, len(starts) + 3, machine), (0x20, 0, 0, 0), (0x35, len(starts) + 1, 0, 1 << 30),
             *deny, (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50001)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    system.prctl(22, 2, struct.pack("HP", len(steps), ctypes.addressof(code)), 0, 0)
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
limits = [(resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 1 << 20),
          (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0)]
for kind, value in limits:
    resource.setrlimit(kind, (value, value))
leave, say, word = os._exit, os.write, sys.stdin.buffer.readline().strip()
sys.argv = ["answer"]
exec(compile(sys.stdin.buffer.read(), "answer", "exec"), {"__name__": "__main__"})
sys.__stdout__.flush()
say(1, word)
leave(0)  # what is left to run at the exit is not the answer's
"""


@dataclass(frozen=True)
class Ran:
    """What became of a program: passed, or why not (its error's last line, or 'timeout'); and what it printed."""

    passed: bool
    why: str
    said: str = ""


def run(program: str, *, seconds: float = 10.0, memory_bytes: int = 1 << 30) -> Ran:
    """Whether a Python program runs to its last line without an error; leaving early with status 0 is not passing.

    Isolated interpreter, empty environment, limits on CPU time, memory (bytes), open files, and the size of each file
    and of the output (1 MiB); ended after `seconds`. Where the kernel allows: no other process or thread (seccomp), no
    network (a namespace), no writing outside a folder that is deleted and no signals to other processes (Landlock).
    """
    word = secrets.token_hex(16)
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
            process.communicate(f"{word}\n{program}", timeout=seconds)
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
