"""Checkpoints become visible whole or not at all, on a disk and in a bucket, and runs resume from both."""

from pathlib import Path

import pytest

from cluster import storage
from trainers import shelf
from trainers.log import read_metrics
from trainers.train import train


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return str(tmp_path / "checkpoints") if request.param == "disk" else request.getfixturevalue("bucket") + "/run"


def written(folder, step, whole=True):
    path = shelf.place_of(folder, step)
    storage.write_bytes(storage.join(shelf.aside_of(path), "state"), b"tensors")
    if whole:
        shelf.publish(path, {"step": step})
    return path


def test_only_what_is_whole_is_seen_and_the_rest_is_cleared(folder):
    assert shelf.published(folder) == []
    paths = [written(folder, step) for step in (2, 10)]
    lost = written(folder, 11, whole=False)
    assert shelf.published(folder) == paths
    shelf.clear_unfinished(folder)
    assert list(storage.list_files(shelf.aside_of(lost))) == []
    assert [shelf.about(path)["step"] for path in shelf.published(folder)] == [2, 10]
    shelf.remove(paths[0])
    assert shelf.published(folder) == paths[1:]
    assert len(list(storage.list_files(folder))) == 2


def test_a_half_removed_checkpoint_is_none(bucket):
    path = written(f"{bucket}/run", 3)
    storage.delete(f"{path}/{shelf.ABOUT}")  # where a removal was killed
    assert shelf.published(f"{bucket}/run") == []


def test_a_run_whose_checkpoints_lie_in_a_bucket_resumes_there_and_keeps_what_it_should(
    recipe, packed, tmp_path, bucket, crew
):
    base = recipe(workers=2, checkpoint_every=1, keep=2, export=False)
    kept = f"{bucket}/run"

    def run(job, out):
        train(job, str(tmp_path / out), crew=crew)
        return {x["step"]: x["loss"] for x in read_metrics(str(tmp_path / out)) if "loss" in x}

    disk = run(base, "disk")
    assert run({**base, "checkpoints": kept}, "s3") == disk
    names = [f"step-{step:08d}" for step in (5, 6, 7, 8)]  # 6 is the corner, 8 the final one
    assert [path.rpartition("/")[2] for path in shelf.published(kept)] == names
    assert [Path(path).name for path in shelf.published(str(tmp_path / "disk/checkpoints"))] == names
    assert not (tmp_path / "s3/checkpoints").exists()
    # as if nodes and driver had died while step 7 was on its way: only the whole checkpoint counts
    shelf.remove(f"{kept}/step-00000008")
    storage.delete(f"{kept}/step-00000007/{shelf.ABOUT}")
    branch = {**base, "steps": 2, "schedule": {"rate": 1e-2}, "continue": {"run": kept, "at": "corner"}}
    del branch["model"]
    again = run({**base, "checkpoints": kept}, "again")
    assert again == {step: loss for step, loss in disk.items() if step > 6}
    assert len(run(branch, "branch")) == 2
    assert [path.rpartition("/")[2] for path in shelf.published(kept)] == names


def sound(folder, step, own):
    """A whole checkpoint of two ranks, with sums."""
    path = shelf.place_of(folder, step)
    for name in shelf.files(2):
        target = storage.join(shelf.aside_of(path), name)
        own.write_bytes(name.encode() * 1000)
        shelf.seal(str(own), target)
        storage.write_bytes(target, own.read_bytes())
    shelf.publish(path, {"step": step, "world": 2})
    return path


@pytest.mark.parametrize("how", ["cut short", "changed", "lost", "description"])
def test_a_damaged_checkpoint_is_told_and_makes_room_for_the_one_before(folder, tmp_path, how):
    paths = [sound(folder, step, tmp_path / "own") for step in (1, 2, 3)]
    assert [shelf.damage(path) for path in paths] == [None] * 3
    for path in paths[1:]:
        file, about = f"{path}/{shelf.files(2)[1]}", f"{path}/{shelf.ABOUT}"
        before = storage.read_bytes(file)
        if how == "lost":
            storage.delete(file)
        elif how == "description":
            storage.write_bytes(about, storage.read_bytes(about)[:9])
        elif how == "cut short":
            storage.write_bytes(file, before[:-1])
        elif storage.is_s3(file):
            return  # a bucket keeps sums of its own
        else:
            storage.write_bytes(file, before[:5000] + b"?" + before[5001:])
    said = list(shelf.set_damaged_aside(folder))
    what = {
        "cut short": "state-00001-of-00002.safetensors has 31,999 bytes, 32,000 were written",
        "changed": "the content of state-00001-of-00002.safetensors is not what was written",
        "lost": "state-00001-of-00002.safetensors is not there",
        "description": "checkpoint.json is damaged",
    }[how]
    assert [what in line for line in said] == [True, True]
    assert said[0].startswith(f"{paths[2]} is damaged") and said[1].endswith("going on from step-00000001")
    assert shelf.published(folder) == paths[:1]
    shelf.clear_unfinished(folder)
    assert list(shelf.set_damaged_aside(folder)) == []
    if not storage.is_s3(folder):
        assert {path.name for path in Path(folder).iterdir()} == {
            "step-00000001", "step-00000002.damaged", "step-00000003.damaged",
        }  # fmt: skip


def test_a_removal_that_is_killed_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    path = sound(str(tmp_path), 1, tmp_path / "own")

    def killed(path, **_):
        if shelf.os.path.exists(path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shelf.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            shelf.remove(path)
    assert shelf.published(str(tmp_path)) == []
    shelf.clear_unfinished(str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["own"]
