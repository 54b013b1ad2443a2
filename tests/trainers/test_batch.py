import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.errors import DataError
from trainers.batch import IGNORE, Loader, PackedRows, Rows, collate, filled_up, share_of, shared_out


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 7))
def test_ranks_share_a_step_without_gap_or_overlap(world, rows, micro):
    parts = [share_of(rank, world, rows, micro) for rank in range(world)]
    assert sorted(row for rank in parts for part in rank for row in part) == list(range(rows))
    assert len({len(part) for part in parts}) == 1
    assert all(len(piece) <= micro for part in parts for piece in part)


def _tokens(data, first, rows, micro, world):
    """What all ranks together get for one step, in the order of the rows."""
    got = []
    for rank in range(world):
        for batch in shared_out(data, first, rows, micro, rank=rank, world=world).micro_batches:
            real = (batch.targets != IGNORE).any(1)
            got += [row.tolist() for row in batch.input_ids[real]]
    return got


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=8))
def test_any_number_of_ranks_and_stops_reads_the_very_same_rows(packed, stretches):
    data = PackedRows(str(packed))
    cursor, got = 150, []
    for world, steps, micro in stretches:
        for _ in range(steps):
            got += _tokens(data, cursor, 12, micro, world)
            cursor += 12
    assert got == data.read(150, cursor - 150).input_ids.tolist()


def test_an_epoch_ends_at_the_last_row_and_the_next_begins_at_row_0(packed):
    data = PackedRows(str(packed))
    across = data.read(data.rows - 2, 4).input_ids
    assert np.array_equal(across, np.r_[data.read(data.rows - 2, 2).input_ids, data.read(0, 2).input_ids])
    assert np.array_equal(data.read(7 * data.rows + 3, 5).input_ids, data.read(3, 5).input_ids)


def test_the_loader_goes_on_from_its_cursor(packed):
    data = PackedRows(str(packed))
    first = Loader(data, rows_per_step=8, micro_rows=4)
    steps = [next(first) for _ in range(6)]
    first.close()
    second = Loader(data, rows_per_step=8, micro_rows=4, cursor=steps[2].next_row)
    for expected in steps[3:]:
        got = next(second)
        assert got.first_row == expected.first_row
        for a, b in zip(got.micro_batches, expected.micro_batches, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.targets, b.targets)
    second.close()


def test_threads_may_share_a_data_set(tmp_path, packed_writer):
    """Without the lock Arrow raises, or ends the process."""
    (path,) = packed_writer(tmp_path / "data", 400, seq_len=1024, shards=1, validation=1).glob("train-*.parquet")
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=40)
    data, whole = PackedRows(str(tmp_path / "data")), table.column("input_ids").to_pylist()

    def read(seed):
        rows = np.random.default_rng(seed).integers(0, data.rows, 60).tolist()
        return all(data.read(row, 1).input_ids[0].tolist() == whole[row] for row in rows)

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))


def test_rows_on_s3_are_the_rows_on_disk(packed, bucket):
    for file in sorted(packed.rglob("*")):
        if file.is_file():
            storage.write_bytes(storage.join(bucket, "packed", file.relative_to(packed).as_posix()), file.read_bytes())
    here, there = PackedRows(str(packed)), PackedRows(storage.join(bucket, "packed"))
    loader = Loader(there, rows_per_step=8, micro_rows=8, cursor=190)
    step = next(loader)
    loader.close()
    assert np.array_equal(step.micro_batches[0].input_ids.numpy(), here.read(190, 8).input_ids)


def _slow_row(ids, lengths, mask):
    """Positions, document numbers and targets of one row, by the definition."""
    position, document, target = [], [], [IGNORE] * len(ids)
    pieces = [*lengths, len(ids) - sum(lengths)]
    start = 0
    for number, size in enumerate(piece for piece in pieces if piece):
        position += range(size)
        document += [number] * size
        if start < sum(lengths):
            for t in range(start, start + size - 1):
                if mask is None or mask[t + 1]:
                    target[t] = int(ids[t + 1])
        start += size
    return position, document, target


@given(st.data())
def test_collate_is_its_definition(data):
    width = data.draw(st.integers(1, 20))
    rows, masks = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        lengths, left = [], width
        while (left and data.draw(st.booleans())) or not lengths:
            lengths.append(data.draw(st.integers(1, left)))
            left -= lengths[-1]
        rows.append(lengths)
    ids = np.arange(len(rows) * width).reshape(-1, width) % 50
    masked = data.draw(st.booleans())
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size))).reshape(ids.shape)
    masks = mask if masked else None
    batch = collate(Rows(ids, [np.array(row) for row in rows], masks))
    for i, lengths in enumerate(rows):
        position, document, target = _slow_row(ids[i], lengths, mask[i] if masked else None)
        assert batch.position_ids[i].tolist() == position
        assert batch.doc_index[i].tolist() == document
        assert batch.targets[i].tolist() == target


def test_rows_that_fill_up_a_batch_have_no_target(packed):
    batch = collate(PackedRows(str(packed)).read(0, 2))
    full = filled_up(batch, 5, 64)
    assert full.rows == 5
    assert full.target_count() == batch.target_count()


def test_a_folder_that_is_no_packed_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json: not there; `data` must be the packed/ folder"):
        PackedRows(str(tmp_path))


def test_rows_that_contradict_their_file_are_refused(packed, tmp_path):
    import json
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    about = json.loads((broken / "dataset.json").read_text())
    about["shards"][0]["rows"] += 1
    about["rows"] += 1
    (broken / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"train-00000\.parquet: \[67\] rows, dataset\.json says 68"):
        PackedRows(str(broken)).read(0, 1)


def test_the_documents_behind_rows_are_known(packed):
    data = PackedRows(str(packed))
    documents = data.documents(15, 30)
    assert len(documents) == 30
    assert [len(row) for row in documents] == [len(row) for row in data.read(15, 30).doc_lengths]


def test_a_data_set_may_have_more_shards_than_a_process_opens(packed_writer, tmp_path):
    folder = packed_writer(tmp_path / "many", 120, shards=60)
    data = PackedRows(str(folder))
    before = len(os.listdir("/proc/self/fd"))
    expected = [data.read(row, 1).input_ids[0].tolist() for row in range(120)]
    assert len(os.listdir("/proc/self/fd")) - before < 20
    assert [row.tolist() for row in PackedRows(str(folder)).read(0, 120).input_ids] == expected
    assert [data.read(row, 1).input_ids[0].tolist() for row in (3, 119, 0, 60)] == [
        expected[row] for row in (3, 119, 0, 60)
    ]
