"""From a checkpoint to the documents it has seen, and from a document to the checkpoints that saw it."""

from __future__ import annotations

from collections.abc import Iterator

from cluster import storage
from trainers import checkpoint
from trainers.batch import PackedRows
from trainers.checkpoint import Place
from trainers.mixture import Mixture, Part


def _data(place: Place) -> Mixture:
    return Mixture([Part(PackedRows(folder), share, start) for folder, share, start in place.data["parts"]])


def documents_seen(path: str, *, batch: int = 1000) -> Iterator[tuple[int, str, bytes]]:
    """(global row, packed folder, doc_id) of every document that a checkpoint was trained on, in order.

    A document that came in several rows or epochs comes several times. Reads the doc_ids column alone.
    """
    place = checkpoint.read_place(path)
    data = _data(place)
    for first in range(0, place.cursor, batch):
        count = min(batch, place.cursor - first)
        for row, ids in enumerate(data.documents(first, count), first):
            folder = data.parts[data.origin(row)[0]].data.folder
            yield from ((row, folder, doc_id) for doc_id in ids)


def checkpoints_that_saw(run: str, doc_id: bytes) -> list[str]:
    """The checkpoints of a run, or of a folder of them, whose training had reached the first row with a document."""
    found = checkpoint.published(storage.join(run, "checkpoints")) or checkpoint.published(run)
    if not found:
        return []
    newest = max(found, key=lambda entry: entry[0].cursor)[1]
    first = next((row for row, _, seen in documents_seen(newest) if seen == doc_id), None)
    return [] if first is None else [path for place, path in found if place.cursor > first]
