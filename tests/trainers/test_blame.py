import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.schema import packed_schema
from trainers.batch import IGNORE, PackedRows, shared_out
from trainers.blame import worst_rows
from trainers.log import read_metrics
from trainers.ranks import Ranks
from trainers.train import train


class FirstToken:
    """A role whose loss at every target is the row's first token."""

    trainable = False

    def __call__(self, batch, want="loss"):
        assert want == "token_losses"
        return batch.input_ids[:, :1].double() * (batch.targets != IGNORE)

    def eval(self):
        """Nothing to switch."""

    train = eval


@pytest.mark.parametrize("micro_rows", [1, 3, 8])
def test_the_worst_rows_are_those_with_the_highest_mean_whatever_the_cut(packed, micro_rows):
    data = PackedRows(str(packed))
    rows = shared_out(data, 5, 8, micro_rows)
    found = worst_rows(FirstToken(), rows, data, Ranks(0, 1, torch.device("cpu")), micro_rows)
    first = data.read(5, 8).input_ids[:, 0]
    expected = sorted(range(8), key=lambda row: -first[row])[:3]
    assert [one["row"] for one in found] == [5 + row for row in expected]
    assert [one["loss"] for one in found] == pytest.approx([float(first[row]) for row in expected])
    assert found[0]["documents"] == [one.hex() for one in data.documents(5 + expected[0], 1)[0]]


def test_a_spike_in_training_names_the_row_that_caused_it(packed_writer, recipe, crew, tmp_path):
    """Rows of one repeated token but one, which is noise: the alarm of its step names it and its documents."""
    folder, bad = packed_writer(tmp_path / "data", 360, shards=1), 4 * 84 + 2
    path = folder / "train-00000.parquet"
    table = pq.read_table(path)
    ids = np.full((360, 64), 7)
    ids[bad] = np.random.default_rng(0).integers(200, 300, 64)
    columns = {
        "input_ids": ids.tolist(),
        "doc_lengths": [[64]] * 360,
        "doc_ids": [one[:1] for one in table.column("doc_ids").to_pylist()],
    }
    pq.write_table(pa.table(columns, schema=packed_schema(64, 300, loss_mask=False)), path)
    changes = {"data": str(folder), "steps": 90, "batch_rows": 4, "micro_rows": 2, "export": False, "save": False}
    train(recipe(**changes, objective={"validation_rows": 1}), str(tmp_path / "run"), crew=crew)
    alarms = [line for line in read_metrics(str(tmp_path / "run")) if "alarm" in line]
    assert alarms[0]["step"] == 85
    assert alarms[0]["rows"] == [336, 340]
    assert alarms[0]["worst"][0]["row"] == bad
    assert alarms[0]["worst"][0]["documents"] == [columns["doc_ids"][bad][0].hex()]
    assert alarms[0]["worst"][0]["loss"] > 2 * alarms[0]["worst"][1]["loss"]
    assert f"row {bad}: loss" in (tmp_path / "run/report.html").read_text()
