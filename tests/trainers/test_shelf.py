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
