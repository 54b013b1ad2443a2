"""Checkpoints are written behind the training: one at a time, as the weights were when they were asked for."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import DataError
from trainers import checkpoint, shelf
from trainers.checkpoint import Place, Writer
from trainers.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


class Weights:
    """What a writer asks of an engine."""

    def __init__(self):
        self.value = torch.zeros(1000)

    def state(self):
        yield "weight", "table", self.value


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk that is done when it is told to."""
    done = threading.Event()
    sync = shelf.sync
    monkeypatch.setattr(shelf, "sync", lambda path: done.wait(30) and sync(path))
    return done


def test_training_goes_on_while_a_checkpoint_is_on_its_way_to_the_disk(tmp_path, slow_disk):
    engine, writer = Weights(), Writer(str(tmp_path), ALONE, keep=2)
    path = writer.save({"policy": engine}, Place(1, 0, 0))
    assert checkpoint.published(str(tmp_path)) == []  # save has returned, the disk has not
    engine.value += 1  # the next step
    second = threading.Thread(target=writer.save, args=({"policy": engine}, Place(2, 0, 0)))
    second.start()
    time.sleep(0.3)
    assert second.is_alive()  # one is in flight at most
    slow_disk.set()
    second.join(10)
    writer.wait()
    assert [place.step for place, _ in checkpoint.published(str(tmp_path))] == [1, 2]
    for step, name in ((0, path), (1, path.replace("01", "02"))):
        saved = load_file(f"{name}/state-00000-of-00001.safetensors")["policy/weight/table"]
        assert (saved == step).all()
        assert shelf.damage(name) is None


def test_a_damaged_checkpoint_is_not_loaded(tmp_path):
    writer = Writer(str(tmp_path), ALONE, keep=2)
    path = writer.save({"policy": Weights()}, Place(1, 0, 0))
    writer.wait()
    file = tmp_path / "step-00000001/state-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"step-00000001 is damaged: state-00000.* bytes, .* were written"):
        checkpoint.load(path, {}, ALONE)


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [4, 6, 8, 9]), (2, 3, [3, 4, 6, 7, 8, 9]), (9, 0, [*range(1, 10)])]
)
def test_what_is_kept(tmp_path, keep, every, left):
    """The last regular ones, those of every so many steps, and all of another kind."""
    writer = Writer(str(tmp_path), ALONE, keep=keep, keep_every=every)
    kinds = {4: checkpoint.KEPT, 6: checkpoint.CORNER, 9: checkpoint.FINAL}
    for step in range(1, 10):
        writer.save({"policy": Weights()}, Place(step, 0, 0, kind=kinds.get(step, checkpoint.REGULAR)))
    writer.wait()
    assert [place.step for place, _ in checkpoint.published(str(tmp_path))] == left
    assert len(list(tmp_path.iterdir())) == len(left)
