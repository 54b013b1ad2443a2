"""A tiny instruction-tuned model: it has learned a little of how the better answers of the tests look."""

import json
from pathlib import Path

import pytest

from trainers.answers import write_answers

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64}
SHORT = {"batch_rows": 8, "micro_rows": 4, "workers": 2, "device": "cpu", "schedule": {"rate": 1e-2, "warmup": 2}}


@pytest.fixture(scope="session")
def tuned(chat_tokenizer, preference_writer, tmp_path_factory, crew):
    """(folder of the model, JSONL of prompts with answers that it has begun to learn)"""
    from trainers.train import train

    out = tmp_path_factory.mktemp("tuned")
    raw = Path(preference_writer(out / "raw.jsonl", 48)).read_text()
    rows = [json.loads(line) for line in raw.splitlines()]
    source = out / "real.jsonl"
    source.write_text("".join(json.dumps({"prompt": r["prompt"], "answers": [r["chosen"]]}) + "\n" for r in rows))
    write_answers(str(source), chat_tokenizer, str(out / "packed"), seq_len=128, validation=0)
    objective = {"train_on": "responses"}
    recipe = {**SHORT, "trainer": "sft", "data": str(out / "packed"), "steps": 30, "model": SHAPE}
    report = train({**recipe, "objective": objective}, str(out / "run"), crew=crew)
    asked = out / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": r["prompt"], "answer": r["chosen"]}) + "\n" for r in rows))
    return report.export, str(asked)
