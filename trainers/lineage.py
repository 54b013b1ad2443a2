"""Which rows of which packed folders a checkpoint has read; `pipeline.pack.lineage` knows the documents in them."""

from __future__ import annotations

from cluster import storage
from trainers import checkpoint
from trainers.batch import PackedRows
from trainers.checkpoint import Place
from trainers.mixture import Mixture, Part


def rows_read(place: Place) -> list[tuple[str, int, int]]:
    """(packed folder, first row, row after the last) for each data set of a mixture; rows beyond the folder's are
    further epochs. Rows of a run that this one continues are not its own."""
    mixture = Mixture([Part(PackedRows(folder), share, start) for folder, share, start in place.data["parts"]])
    ends = mixture.next_rows(place.cursor)
    return [(part.data.folder, part.start, end) for part, end in zip(mixture.parts, ends, strict=True)]


def readings(path: str) -> list[tuple[str, int, list[tuple[str, int, int]]]]:
    """(checkpoint, step, what it has read) of one checkpoint, or of all of a run, oldest first.

    Raises DataError where there is none.
    """
    path = storage.absolute(path)
    found = checkpoint.published(storage.join(path, "checkpoints")) or [(checkpoint.read_place(path), path)]
    return [(one, place.step, rows_read(place)) for place, one in found]
