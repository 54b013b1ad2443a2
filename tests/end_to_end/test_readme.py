"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.settings import make
from pipeline.progress import Console
from pipeline.recipe import from_mapping, step_class
from pipeline.run import run

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(containing: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if containing in block)


def test_packed_rows_train_with_transformers_alone(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    run(
        from_mapping(
            {
                "steps": [
                    {"crawl.corpus": {"path": str(Path(__file__).parent / "*.py"), "format": "text"}},
                    {"tokens.train_bpe": {"vocab_size": 500}},
                    "tokens.encode",
                    {"pack.best_fit": {"seq_len": 64}},
                ],
                "workers": 0,
            }
        ),
        str(tmp_path / "run"),
        console=Console(quiet=True),
    )
    script = tmp_path / "train.py"
    script.write_text(code("Trainer(LlamaForCausalLM"))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run" / "packed"), str(tmp_path / "out")],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0]


def test_the_page_for_other_pipelines_names_steps_and_settings_that_there_are() -> None:
    page = (ROOT / "docs/from_datatrove.md").read_text("utf-8")
    folders = "crawl|extract|clean|filters|dedup|tokens|pack"
    named = re.findall(rf"`((?:{folders})\.[a-z_0-9]+)(?:: (\{{.*?\}}))?`", page)
    assert len(named) > 30
    sets = re.findall(r"^\| .*\| `(\{.*\})` \|$", page, re.MULTILINE)
    assert len(sets) == 5
    for name, settings in [*named, *(("crawl.corpus", text) for text in sets)]:
        step = step_class(name)
        if settings:
            make(step, yaml.safe_load(settings), name)
