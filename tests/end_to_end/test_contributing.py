"""What CONTRIBUTING.md shows works in a checkout as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_filter_and_a_trainer_are_one_file_and_one_test_each(tmp_path: Path) -> None:
    for folder in ("pipeline", "trainers", "cluster", "recipes", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("corpusmill.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    names = [name for name, _ in shown]
    assert [Path(name).stem for name in names] == ["shouting", "test_shouting", "focal", "test_focal"]
    for name, code in shown:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(code, "utf-8")

    def told(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    told("ruff", "check", *names)
    told("ruff", "format", "--check", *names)
    assert "3 passed" in told("pytest", "-q", "-p", "no:cacheprovider", *(n for n in names if n.startswith("tests/")))
    assert "max_upper              0.5" in told("corpusmill", "steps", "filters.shouting")
    assert "gamma                  2.0" in told("corpusmill", "steps", "trainer.focal")
