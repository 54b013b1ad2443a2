"""The front door: what a mistaken command gets told."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

import corpusmill

LINES = '{"a": 1}\nnot json\n'


@pytest.fixture
def wrong(tmp_path):
    """A folder of things that are not what a command wants."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "broken.yaml").write_text("steps: [\n")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "nothing.yaml").write_text("")
    (tmp_path / "noise.parquet").write_bytes(bytes(range(256)))
    (tmp_path / "lines.jsonl").write_text(LINES)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text("{")
    (tmp_path / "corpus.yaml").write_text("steps:\n  - crawl.corpus: {path: lines.jsonl}\n")
    with contextlib.chdir(tmp_path):
        yield tmp_path


RECIPES = [
    ("noise.yaml", "not valid YAML"),
    ("broken.yaml", "not valid YAML"),
    ("list.yaml", "expected a mapping at the top, found list"),
    ("nothing.yaml", "expected a mapping"),
    ("empty", "no recipe at 'empty'"),
    ("corpus.yml", "did you mean 'corpus.yaml'"),
]


@pytest.mark.parametrize("verb", ["plan", "run", "train", "feedback spin", "scale sweep"])
@pytest.mark.parametrize(("recipe", "told"), RECIPES)
def test_what_is_no_recipe_is_named_by_every_verb(wrong, capsys, verb, recipe, told):
    out = [] if verb == "plan" else ["--out", "made"]
    assert corpusmill.main([*verb.split(), recipe, *out]) == 2
    assert told in capsys.readouterr().err
    assert not os.path.exists("made")


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("plan corpus.yaml --set workers=[", 2, "--set workers=[: the value is not valid YAML"),
        ("run corpus.yaml --out made --workers -3", 2, "or equal to 0, or: Input should be 'auto'; found -3"),
        ("run corpus.yaml --out broken.yaml --workers 0", 1, "broken.yaml"),
        ("why empty http://a", 1, "no run.json"),
        ("why lines.jsonl http://a", 1, "no run.json"),
        ("whatif empty --set a.b=1", 1, "empty/recipe.yaml: No such file"),
        ("seen lines.jsonl", 1, "checkpoint.json: Not a directory"),
        ("seen empty", 1, "no checkpoint.json"),
        ("grow absent made --set layers=4", 2, "no config.json in absent; expected a folder that"),
        ("grow half made --set layers=4", 1, "half: no model that transformers opens: "),
        ("prune torn made --set layers=1", 2, "torn/config.json: not JSON: "),
        ("teach empty half --out made", 1, "empty/dataset.json: not there"),
        ("answers lines.jsonl --tokenizer absent --out made", 1, "absent: no such folder"),
        ("answers lines.jsonl --tokenizer empty --out made", 1, "empty: no tokenizer that transformers opens: "),
        ("scale fit absent", 1, "absent: No such file"),
        ("scale fit lines.jsonl", 1, "lines.jsonl: neither CSV with a header nor JSONL"),
        ("scale fit noise.parquet", 1, "noise.parquet: neither CSV"),
        ("scale plan lines.jsonl", 1, "lines.jsonl: not a law"),
        ("steps dedup.minhsh", 2, "did you mean 'dedup.minhash'"),
    ],
)  # fmt: skip
def test_a_wrong_path_or_value_is_named_without_a_traceback(wrong, capsys, command, code, told):
    assert corpusmill.main(command.split()) == code
    assert told in capsys.readouterr().err


def test_answers_that_are_no_lines_are_named_with_their_line(wrong, chat_folder, capsys):
    assert corpusmill.main(["answers", "lines.jsonl", "--tokenizer", chat_folder, "--out", "made"]) == 1
    assert "lines.jsonl, line 2: not JSON" in capsys.readouterr().err
    assert corpusmill.main(["answers", "noise.parquet", "--tokenizer", chat_folder, "--out", "made"]) == 1
    assert "noise.parquet: not a whole Parquet file" in capsys.readouterr().err


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory) -> str:
    """A byte-level tokenizer's folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Tokenizer(models.BPE(vocab=alphabet, merges=[])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_says_so_and_the_same_command_goes_on(tmp_path, number, code):
    (tmp_path / "rules.py").write_text(
        "import pathlib, time\n\ndef slow(doc):\n    pathlib.Path('began').touch()\n"
        "    while not pathlib.Path('go').exists():\n        time.sleep(0.05)\n"
    )
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "slow.yaml").write_text(
        "steps:\n  - crawl.corpus: {path: in.jsonl}\n  - filters.python: {function: rules:slow}\nworkers: 2\n"
    )
    command = [sys.executable, corpusmill.__file__, "run", "slow.yaml", "--out", "out"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background ignore it
    run = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heard
    )
    while run.poll() is None and not (tmp_path / "began").exists():
        time.sleep(0.1)
    run.send_signal(number)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == code, said
    assert said.strip() == "corpusmill: interrupted; the same command goes on where it was"
    assert json.loads((tmp_path / "out/run.json").read_text())["error"] == "interrupted"
    (tmp_path / "go").touch()
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "done"


def test_a_disk_that_takes_no_more_is_told_with_the_folder(tmp_path):
    lines = (json.dumps({"text": os.urandom(3000).hex()}) + "\n" for _ in range(200))
    (tmp_path / "in.jsonl").write_text("".join(lines))
    (tmp_path / "corpus.yaml").write_text("steps:\n  - crawl.corpus: {path: in.jsonl}\nworkers: 0\n")
    code = "import resource, corpusmill; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
    code += "raise SystemExit(corpusmill.main(['run', 'corpus.yaml', '--out', 'out', '--quiet']))"
    path = {**os.environ, "PYTHONPATH": os.path.dirname(corpusmill.__file__)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "corpusmill: out: File too large"


@pytest.mark.parametrize(
    "command", ["plan {tiny}", "train {tiny} --out out", "steps trainer.sft", "grow a b --set layers=3"]
)
def test_without_the_training_packages_the_extra_is_named(tmp_path, command):
    root = os.path.dirname(os.path.abspath(corpusmill.__file__))
    command = command.format(tiny=f"{root}/recipes/tiny_pretrain.yaml")
    # an interpreter that finds no torch
    code = (
        "import sys, importlib.util as u; real = u.find_spec; sys.modules['torch'] = None\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        f"import corpusmill; raise SystemExit(corpusmill.main({command.split()!r}))"
    )
    path = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().endswith("package torch, which is not installed: pip install 'corpusmill[train]'")


def test_a_command_prints_no_bars_and_warnings_of_libraries(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2)).save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "corpusmill", "prune", "model", "half", "--set", "layers=1"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"parameters ")
    assert done.stdout.endswith(b"model      half\n")
