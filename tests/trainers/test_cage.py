"""Programs that a model wrote, run with bounds."""

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


@pytest.mark.parametrize("leaves", ["import sys; sys.exit(0)", "raise SystemExit", "import os; os._exit(0)"])
def test_leaving_early_with_status_0_is_not_passing(leaves):
    assert cage.run(f"{leaves}\nassert False") == cage.Ran(False, "left before its end")


def test_what_went_wrong_is_the_last_line_of_the_error():
    assert cage.run("assert 1 == 2, 'one is not two'").why == "AssertionError: one is not two"
