"""Whole runs on CPU workers: what a user is promised."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from cluster.errors import DataError, RecipeError, RunError
from trainers.log import read_metrics
from trainers.train import train

ROOT = Path(__file__).parents[2]


def _losses(out):
    return {line["step"]: line["loss"] for line in read_metrics(str(out)) if "loss" in line}


@pytest.fixture(scope="module")
def undisturbed(crew, packed, tmp_path_factory):
    """One run per number of workers, with all its checkpoints; made when first asked for."""
    made = {}

    def run(recipe, workers):
        if workers not in made:
            out = tmp_path_factory.mktemp("runs") / f"whole-{workers}"
            made[workers] = (
                out,
                train(recipe(workers=workers, checkpoint_every=3, validate_every=3, keep=9), str(out), crew=crew),
            )
        return made[workers]

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_has_bit_equal_losses(undisturbed, recipe, tmp_path, crew, workers):
    whole, report = undisturbed(recipe, workers)
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(whole / "checkpoints/step-00000003", tmp_path / "checkpoints/step-00000003")
    resumed = train(recipe(workers=workers, checkpoint_every=3, validate_every=3, keep=9), str(tmp_path), crew=crew)
    assert resumed.steps_done == 5
    assert _losses(tmp_path) == {step: loss for step, loss in report.losses.items() if step > 3}
    assert resumed.validation == {step: loss for step, loss in report.validation.items() if step > 3}


def _resume(recipe, checkpoint, out, crew):
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(checkpoint, out / "checkpoints" / Path(checkpoint).name)
    train(recipe, str(out), crew=crew)
    return [line for line in read_metrics(str(out)) if "loss" in line]


def test_a_run_moves_between_numbers_of_workers_and_zero_stages(undisturbed, recipe, tmp_path, crew):
    whole, _ = undisturbed(recipe, 2)
    expected = {line["step"]: line for line in read_metrics(str(whole)) if "loss" in line}
    one = _resume(recipe(workers=1, checkpoint_every=3), whole / "checkpoints/step-00000003", tmp_path / "1", crew)
    back = recipe(workers=2, engine={"zero": 2}, checkpoint_every=3, export=False)
    two = _resume(back, tmp_path / "1/checkpoints/step-00000006", tmp_path / "2", crew)
    three = recipe(workers=3, engine={"zero": 3}, export=False)
    three = _resume(three, whole / "checkpoints/step-00000003", tmp_path / "3", crew)
    for line in [*one, *two, *three]:
        before = expected[line["step"]]
        assert (line["row"], line["tokens"]) == (before["row"], before["tokens"])
        assert line["loss"] == pytest.approx(before["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-3)


def test_the_corner_is_saved_and_continued_with_new_rows_and_a_replay_of_old_ones(
    undisturbed, recipe, tmp_path, packed, packed_writer, crew
):
    whole, report = undisturbed(recipe, 2)
    (tmp_path / "cats.jsonl").write_text('{"prompt": "the cat", "choices": ["sat", "was"], "answer": 0}\n')
    new = packed_writer(tmp_path / "new", 60, seed=5)
    go_on = recipe(
        workers=1, data=str(new), steps=1, schedule={"rate": 1e-12, "warmup": 0}, export=False,
        objective={"held_out": {"old": str(packed)}, "tasks": [str(tmp_path / "cats.jsonl")]},
        **{"continue": {"run": str(whole), "replay": 0.25}},
    )  # fmt: skip
    del go_on["model"]
    train(go_on, str(tmp_path / "on"), crew=crew)
    about = json.loads((tmp_path / "on/checkpoints/step-00000001/checkpoint.json").read_text())
    assert about["optimizer_steps"] == {"policy": 7}  # six before the corner
    old_part = about["data"]["parts"][1]
    assert old_part == [str(packed), pytest.approx(1 / 3), 72]  # a quarter of all rows, from the first unseen one on
    (line,) = [line for line in read_metrics(str(tmp_path / "on")) if "validation" in line]
    assert line["validation_old"] == pytest.approx(report.validation[6], abs=1e-6)
    assert line["validation"] != line["validation_old"]
    assert line["cats_accuracy"] in (0.0, 1.0)
    assert line["cats_log_likelihood"] < 0


def test_a_run_without_a_corner_says_what_it_has(undisturbed, recipe, tmp_path, crew):
    whole, _ = undisturbed(recipe, 2)
    shutil.copytree(whole / "checkpoints/step-00000008", tmp_path / "old/checkpoints/step-00000008")
    go_on = {**recipe(), "continue": {"run": str(tmp_path / "old")}}
    del go_on["model"]
    with pytest.raises(DataError, match=r"has no 'corner' checkpoint, only \['final'\]"):
        train(go_on, str(tmp_path / "on"), crew=crew)
    go_on["continue"] = {"run": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"continue: no checkpoint in .*nowhere; run: names a training run"):
        train(go_on, str(tmp_path / "nothing"), crew=crew)


def test_a_pass_over_the_new_data_is_one_whatever_is_replayed(undisturbed, recipe, tmp_path, packed_writer, crew):
    whole, _ = undisturbed(recipe, 2)  # of 200 rows
    new = packed_writer(tmp_path / "new", 54, seed=5)
    go_on = recipe(data=str(new), schedule={}, export=False, **{"continue": {"run": str(whole), "replay": 0.25}})
    del go_on["model"], go_on["steps"]
    assert train(go_on, str(tmp_path / "on"), crew=crew).steps == 6  # 54 new rows and 18 old ones, 12 a step


def test_a_run_goes_on_from_its_corner_at_its_rate_and_a_kept_step_is_none(recipe, tmp_path, crew):
    """And both stay, whatever `keep` says."""
    out = tmp_path / "run"
    schedule = {"rate": 1e-3, "warmup": 0, "decay": 3}
    train(recipe(save_at=(6,), checkpoint_every=1, keep=1, schedule=schedule, export=False), str(out), crew=crew)
    abouts = [json.loads(path.read_text()) for path in sorted(out.glob("checkpoints/*/checkpoint.json"))]
    assert [(about["step"], about["kind"]) for about in abouts] == [
        (5, "corner"), (6, "kept"), (7, "regular"), (8, "final"),
    ]  # fmt: skip
    go_on = recipe(steps=10, schedule={}, export=False, **{"continue": {"run": os.path.relpath(out)}})
    del go_on["model"]
    train(go_on, str(tmp_path / "on"), crew=crew)
    rates = [line["rate"] for line in read_metrics(str(tmp_path / "on")) if "rate" in line]
    assert rates == pytest.approx([1e-3] * 8 + [5e-4, 0])  # the old run's, without a warmup
    about = json.loads((tmp_path / "on/checkpoints/step-00000010/checkpoint.json").read_text())
    assert about["optimizer_steps"] == {"policy": 15}
    assert about["recipe"]["continue"]["run"] == str(out)


def test_the_loss_falls_and_the_run_leaves_what_it_says(undisturbed, recipe):
    out, report = undisturbed(recipe, 1)
    assert report.last_loss < report.first_loss - 0.3
    assert report.steps == report.steps_done == 8
    assert set(report.validation) == {3, 6, 8}
    assert (out / "recipe.yaml").is_file()
    assert not (out / "workers.json").exists()
    about = json.loads(Path(report.checkpoint, "checkpoint.json").read_text())
    assert (about["kind"], about["step"], about["cursor"]) == ("final", 8, 96)
    assert list((out / "tensorboard").iterdir())


def test_the_export_is_the_trained_model(undisturbed, recipe, packed):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, report = undisturbed(recipe, 2)
    lm = AutoModelForCausalLM.from_pretrained(report.export)
    AutoTokenizer.from_pretrained(report.export)
    for file in Path(report.checkpoint).glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key.startswith("policy/weight/"):
                    assert torch.equal(lm.get_parameter(key.removeprefix("policy/weight/")), tensors.get_tensor(key))
    # and its held-out loss, computed here by transformers alone document by document, is the one reported
    from trainers.batch import PackedRows

    rows = PackedRows(str(packed), "validation").read(0, 24)
    total, count = 0.0, 0
    for ids, lengths in zip(rows.input_ids, rows.doc_lengths, strict=True):
        start = 0
        for size in lengths:
            document = torch.from_numpy(ids[start : start + size])[None]
            start += size
            with torch.no_grad():
                logits = lm(input_ids=document).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, document[0, 1:], reduction="sum"))
            count += int(size) - 1
    assert total / count == pytest.approx(report.validation[8], rel=1e-5)


def test_a_checkpoint_knows_its_documents_and_a_document_its_checkpoints(undisturbed, recipe, packed, tmp_path, capsys):
    import corpusmill
    from trainers.batch import PackedRows

    whole, report = undisturbed(recipe, 2)
    data = PackedRows(str(packed))
    expected = Counter(doc for row in data.documents(0, 96) for doc in row)
    written = str(tmp_path / "seen.parquet")
    assert corpusmill.main(["seen", report.checkpoint, "--out", written]) == 0
    assert "step 8: 96 rows" in capsys.readouterr().out
    assert Counter({row["doc_id"]: row["times"] for row in pq.read_table(written).to_pylist()}) == expected
    (in_row_40, *_) = data.documents(40, 1)[0]
    assert corpusmill.main(["seen", str(whole), in_row_40.hex()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "row 40 (train-" in lines[0] and "seen 1 times by step 8" in lines[0]
    # 12 rows a step: step 3 ended before row 36
    assert [line.rpartition("/")[2] for line in lines[1:]] == ["step-00000006", "step-00000008"]
    assert corpusmill.main(["seen", report.checkpoint, "78" * 16]) == 0
    assert "is not in" in capsys.readouterr().out
    assert corpusmill.main(["seen", report.checkpoint, "xyz"]) == 1


def test_text_can_be_sampled_from_the_export(undisturbed, recipe):
    from trainers.sample import sample

    _, report = undisturbed(recipe, 1)
    text = sample(report.export, "the cat", tokens=8, seed=1)
    assert text.startswith("the cat")
    assert text == sample(report.export, "the cat", tokens=8, seed=1)


def test_bf16_weights_resume_from_their_float32_masters(recipe, tmp_path, crew):
    low = recipe(workers=2, engine={"zero": 2, "precision": "bf16"}, checkpoint_every=3, keep=9, export=False)
    whole = train(low, str(tmp_path / "whole"), crew=crew)
    lines = _resume(low, tmp_path / "whole/checkpoints/step-00000003", tmp_path / "resumed", crew)
    assert {line["step"]: line["loss"] for line in lines} == {s: x for s, x in whole.losses.items() if s > 3}
    assert whole.last_loss < whole.first_loss - 0.3


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_agree_on_every_loss(undisturbed, recipe, tmp_path, crew, stage):
    _, expected = undisturbed(recipe, 2)  # ZeRO 1
    report = train(recipe(workers=2, engine={"zero": stage}, export=False), str(tmp_path), crew=crew)
    for step, loss in report.losses.items():
        assert loss == pytest.approx(expected.losses[step], abs=1e-5)


@pytest.mark.parametrize(
    "engine",
    [
        {"zero": 1, "offload_optimizer": True},
        {"zero": 2, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True, "offload_weights": True},
    ],
    ids=lambda engine: "-".join(map(str, engine.values())),
)
def test_offloading_changes_no_loss_and_resumes(undisturbed, recipe, tmp_path, crew, engine):
    _, expected = undisturbed(recipe, 2)
    changed = recipe(workers=2, engine=engine, checkpoint_every=3, keep=9)
    report = train(changed, str(tmp_path / "whole"), crew=crew)
    for step, loss in report.losses.items():
        assert loss == pytest.approx(expected.losses[step], abs=1e-5)
    lines = _resume(changed, tmp_path / "whole/checkpoints/step-00000003", tmp_path / "resumed", crew)
    assert {line["step"]: line["loss"] for line in lines} == {s: x for s, x in report.losses.items() if s > 3}


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_killed_or_frozen_worker_changes_no_loss(crew, recipe, tmp_path, how):
    long = recipe(workers=2, steps=60, checkpoint_every=5, export=False, stall_seconds=900 if how == "SIGKILL" else 8)
    whole = train(long, str(tmp_path / "whole"), crew=crew)
    out = tmp_path / "struck"
    struck: list[int] = []
    finished = threading.Event()

    def strike():
        while not struck and not finished.is_set():
            if len(read_metrics(str(out))) >= 12:
                struck.append(json.loads((out / "workers.json").read_text())["pids"][1])
                os.kill(struck[0], getattr(signal, how))
            time.sleep(0.005)

    striker = threading.Thread(target=strike)
    striker.start()
    said = []
    console = Console(file=Lines(said))
    report = train(long, str(out), crew=crew, console=console)
    finished.set()
    striker.join()
    assert report.restarts == 1
    assert _losses(out) == whole.losses
    expected = (
        "rank 1 died" if how == "SIGKILL" else r"rank 1 has not answered for \d+ s; it was last in '\w+' at step \d+"
    )
    assert re.search(f"{expected}.*restart 1 of 3|lost its peers.*restart 1 of 3", "".join(said), re.DOTALL)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(struck[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(struck[0])  # a frozen process is not left behind


class Lines:
    """A file that is no terminal and keeps what is written."""

    def __init__(self, into: list[str]):
        self.into = into

    def write(self, text: str) -> int:
        self.into.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def test_a_killed_driver_goes_on_with_the_same_command(recipe, tmp_path, crew):
    out = tmp_path / "run"
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(steps=40, batch_rows=48, checkpoint_every=5, export=False)))
    code = (
        "import json, sys; from trainers.train import train\n"
        "r = train(json.load(open(sys.argv[1])), sys.argv[2]); print(r.steps_done)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe.json"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(read_metrics(str(out))) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.wait()
    until_then = _losses(out)
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert 0 < int(second.stdout.split()[-1]) < 40
    whole = train(recipe(steps=40, batch_rows=48, checkpoint_every=5, export=False), str(tmp_path / "whole"), crew=crew)
    assert _losses(out) == whole.losses
    assert until_then.items() <= whole.losses.items()


@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_an_interrupted_run_says_one_line_leaves_nothing_behind_and_goes_on(recipe, tmp_path, crew, number, everybody):
    """Ctrl-C, and SIGTERM as systemd sends it: to Ray's processes too."""
    job = recipe(steps=40, batch_rows=48, checkpoint_every=5, export=False)
    (tmp_path / "recipe.yaml").write_text(json.dumps(job))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "corpusmill", "train", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ears = "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command[1:3] = ["-c", ears + "sys.argv.pop(0); runpy.run_module('corpusmill', run_name='__main__')", "corpusmill"]
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while len(read_metrics(str(out))) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    pids = json.loads((out / "workers.json").read_text())["pids"]
    (os.killpg if everybody else os.kill)(first.pid, number)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 128 + number
    assert said == "corpusmill: interrupted; the same command goes on where it was\n"
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode == 0
    whole = train(job, str(tmp_path / "whole"), crew=crew)
    assert _losses(out) == whole.losses


def test_an_error_in_a_worker_names_rank_and_stage(crew, recipe, tmp_path, packed):
    broken = tmp_path / "packed"
    shutil.copytree(packed, broken)
    shard = broken / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(RunError, match=r"rank 0 failed in 'data' at step \d+: .*[\s\S]*Traceback"):
        train(recipe(data=str(broken)), str(tmp_path / "out"), crew=crew)


def failed(summary, told=False):
    return {"summary": summary, "stage": "forward", "step": 3, "exit_code": 1, "told": told, "error": "Traceback …"}


def test_the_first_cause_is_told_not_what_other_ranks_made_of_it():
    from trainers.workers import Lost, _explain, _memory_kills

    gone = failed("RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    with pytest.raises(Lost, match="rank 0 lost its peers in 'forward' at step 3"):
        _explain({0: gone}, {})
    with pytest.raises(RunError, match=r"rank 1 failed in 'forward' at step 3: KeyError: 'x'\n\nTraceback"):
        _explain({0: gone, 1: failed("KeyError: 'x'")}, {})
    with pytest.raises(RunError, match=r"rank 1 failed in 'forward' at step 3: /socket/data: no rows$"):
        _explain({0: gone, 1: failed("DataError: /socket/data: no rows", told=True)}, {})
    full = failed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RunError, match=r"rank 0 failed in 'forward' .* 2.00 GiB\nlower micro_rows.*goes on$"):
        _explain({0: full}, {})
    assert _memory_kills() >= 0
    assert _memory_kills("/nowhere") == 0


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(recipe, tmp_path, crew, packed):
    """Rows 60 to 65 of step 5 are in the first shard, some of rank 1's in the second, which nobody ever fills."""
    shutil.copytree(packed, tmp_path / "packed")
    shard = tmp_path / "packed/train-00001.parquet"
    shard.unlink()
    os.mkfifo(shard)
    job = recipe(data=str(tmp_path / "packed"), workers=2, stall_seconds=4, max_restarts=0)
    with pytest.raises(RunError, match=r"rank 1 has been in 'data' at step 5 for \d+ s\. Gave up after 0 restarts"):
        train(job, str(tmp_path / "run"), crew=crew)


def test_a_file_that_the_recipe_names_and_is_not_there_is_told_without_a_traceback(crew, recipe, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such task file$"):
        train(recipe(objective={"tasks": [str(tmp_path / "none.jsonl")]}), str(tmp_path / "out"), crew=crew)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(undisturbed, recipe, tmp_path, crew):
    whole, report = undisturbed(recipe, 2)
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    for step, place in ((8, slice(None, 3000)), (6, slice(None))):
        file = tmp_path / f"checkpoints/step-0000000{step}/state-00001-of-00002.safetensors"
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data[place])
    said = []
    train(recipe(workers=2, export=False), str(tmp_path), crew=crew, console=Console(file=Lines(said)))
    assert re.search(r"step-00000008 is damaged \(state-00001.* has 3,000 bytes", "".join(said))
    assert re.search(r"step-00000006 is damaged \(the content .*going on from step-00000003", "".join(said))
    assert _losses(tmp_path) == {step: loss for step, loss in report.losses.items() if step > 3}


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once(recipe, tmp_path, crew):
    (tmp_path / "checkpoints").write_text("no folder")
    long = recipe(steps=300, checkpoint_every=3, workers=2)
    with pytest.raises(
        RunError, match=r"rank \d failed in .*a checkpoint below .* could not be written: .*checkpoints"
    ):
        train(long, str(tmp_path), crew=crew)
    assert max(_losses(tmp_path)) < 30


def test_data_that_were_packed_anew_are_not_taken_for_the_old_ones(undisturbed, recipe, tmp_path, packed):
    whole, _ = undisturbed(recipe, 1)
    shutil.copytree(whole / "checkpoints", tmp_path / "run/checkpoints")
    data = tmp_path / "packed"
    shutil.copytree(packed, data)
    for path in (tmp_path / "run/checkpoints").glob("*/checkpoint.json"):
        path.write_text(path.read_text().replace(str(packed), str(data)))
    (data / "dataset.json").write_text((data / "dataset.json").read_text().replace("test-0", "test-1"))
    with pytest.raises(RecipeError, match=r"packed was packed anew: its fingerprint is 'test-1', .* 'test-0'"):
        train(recipe(data=str(data)), str(tmp_path / "run"))


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path, monkeypatch):
    from trainers import train as driver
    from trainers.workers import outlived

    began = psutil.Process().create_time()
    (tmp_path / "workers.json").write_text(json.dumps({"pids": [os.getpid(), 1], "began": [began, began]}))
    monkeypatch.setattr(driver, "outlived", lambda out: outlived(out, seconds=0.1))
    with pytest.raises(RunError, match=rf"another run is at work in this folder .*\[{os.getpid()}\]"):
        train(recipe(), str(tmp_path))


def test_steps_that_are_kept_are_no_corners(recipe, tmp_path, crew):
    """`continue: corner` goes on before the decay, also where a later step was kept."""
    job = recipe(save_at=[2, 7], keep=1, checkpoint_every=1, export=False)
    train(job, str(tmp_path), crew=crew)
    found = [json.loads(Path(path, "checkpoint.json").read_text()) for path in sorted(tmp_path.glob("checkpoints/*"))]
    kinds = [(one["step"], one["kind"]) for one in found]
    assert kinds == [(2, "kept"), (5, "regular"), (6, "corner"), (7, "kept"), (8, "final")]


def test_a_gradient_that_is_not_finite_is_never_saved():
    """The loss of its step is finite still: the next one's would come after a checkpoint of lost weights."""
    from trainers.batch import StepRows
    from trainers.fit import _line
    from trainers.ranks import Ranks

    ranks, rows = Ranks(0, 1, torch.device("cpu")), StepRows(24, 36, [])
    told = {"loss": torch.tensor(5.0)}, {"policy": 2.0}
    assert _line(3, *told, {"policy": 0.1}, 1e-3, ranks, rows)["loss"] == 2.5
    with pytest.raises(RunError, match=r"step 3: a loss or gradient is not finite .* of this step, 24 to 35"):
        _line(3, *told, {"policy": float("nan")}, 1e-3, ranks, rows)


def test_a_checkpoint_of_another_model_is_not_continued(undisturbed, recipe, tmp_path):
    whole, _ = undisturbed(recipe, 1)
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(RecipeError, match="holds checkpoints of a run with batch_rows: 12, the recipe has 24"):
        train(recipe(batch_rows=24), str(tmp_path / "run"))


def test_what_cannot_run_is_refused_before_anything_starts(recipe, tmp_path):
    with pytest.raises(RecipeError, match="no setting named 'bach_rows'; did you mean 'batch_rows'"):
        train({**recipe(), "bach_rows": 3}, str(tmp_path))
    with pytest.raises(RecipeError, match=r"no dataset\.json in"):
        train(recipe(data=str(tmp_path)), str(tmp_path))
    with pytest.raises(RecipeError, match="give one of steps, tokens, epochs; found steps and epochs"):
        train({**recipe(), "epochs": 2}, str(tmp_path))
    with pytest.raises(RecipeError, match="warmup of 9 steps in a run of 8"):
        train(recipe(schedule={"warmup": 9}), str(tmp_path))
    for rate in (-1, float("inf")):
        with pytest.raises(RecipeError, match="schedule: setting 'rate'"):
            train(recipe(schedule={"rate": rate}), str(tmp_path))
    assert not list(tmp_path.iterdir())
