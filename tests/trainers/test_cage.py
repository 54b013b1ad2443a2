"""Programs that a model wrote, run with bounds."""

import ctypes
import socket
import time

import pytest

from trainers import cage


def test_a_program_cannot_hang_eat_memory_or_fill_the_disk():
    started = time.monotonic()
    assert cage.run("while True: pass", seconds=1).why == "timeout"
    assert time.monotonic() - started < 20
    assert "MemoryError" in cage.run("x = bytearray(8 << 30)").why
    assert not cage.run("open('big', 'wb').write(b'0' * (64 << 20))").passed
    assert cage.run("import os; assert not os.environ.get('HOME') and not os.listdir('.')").passed


@pytest.mark.parametrize(
    "harm",
    [
        "import os\nif os.fork() == 0:\n    os.setsid()\n    open({outside!r} + '2', 'w')",
        "import subprocess\nsubprocess.run(['touch', {outside!r} + '2'])",
        "open({outside!r} + '2', 'w')",
        "import os\nos.remove({outside!r})",
        "import os\nos.truncate({outside!r}, 0)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGUSR1)",
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
    ],
)
@pytest.mark.skipif(ctypes.CDLL(None).syscall(444, None, 0, 1) < 6, reason="this kernel has no Landlock, or an old one")
def test_a_program_harms_nothing_outside_its_folder(harm, tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ran = cage.run(harm.format(outside=str(outside), port=server.getsockname()[1]), seconds=5)
    assert not ran.passed
    assert ran.why.startswith(("PermissionError", "OSError: [Errno 101]")), ran.why
    time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert outside.read_text() == "x"
    assert cage.run("open('own', 'w').write('x'); import os; os.mkdir('a'); os.rename('own', 'a/own')").passed


def test_what_a_program_leaves_for_its_exit_neither_passes_nor_fails_it():
    assert cage.run("import atexit; atexit.register(lambda: print('bye'))") == cage.Ran(True, "")
    assert cage.run("print('said')").said == "said\n"
    for broken in ("x = ''''", "def f():\n    '''", "x = 1 \\", "if True:"):
        assert "SyntaxError" in cage.run(broken).why or "IndentationError" in cage.run(broken).why


@pytest.mark.parametrize("leaves", ["import sys; sys.exit(0)", "raise SystemExit", "import os; os._exit(0)"])
def test_leaving_early_with_status_0_is_not_passing(leaves):
    assert cage.run(f"{leaves}\nassert False") == cage.Ran(False, "left before its end")


def test_what_went_wrong_is_the_last_line_of_the_error():
    assert cage.run("assert 1 == 2, 'one is not two'").why == "AssertionError: one is not two"
