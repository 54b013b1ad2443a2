"""What a checkpoint has read, against the rows that the loader gives; whole runs are in test_train.py."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pack.lineage import documents_seen, times_seen
from trainers.batch import PackedRows
from trainers.checkpoint import Place
from trainers.lineage import rows_read
from trainers.mixture import Mixture, Part


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 700), st.sampled_from([0.2, 0.5, 0.7]), st.integers(0, 250))
def test_the_documents_of_a_mixture_are_those_of_the_rows_it_gave(packed, cursor, share, start):
    parts = [[str(packed), share, start], [str(packed), 1 - share, 7]]
    place = Place(step=1, cursor=cursor, tokens=0, data={"parts": parts})
    mixture = Mixture([Part(PackedRows(folder), *rest) for folder, *rest in parts])
    read = Counter(mixture.origin(row)[0] for row in range(cursor))
    expected = Counter(doc for row in mixture.documents(0, cursor) for doc in row)
    rows = rows_read(place)
    assert [end - first for _, first, end in rows] == [read[0], read[1]]
    found = Counter()
    for row in documents_seen(rows).to_pylist():
        found[row["doc_id"]] += row["times"]
    assert found == expected
    for doc in list(expected)[:5]:
        assert sum(times for _, _, times in times_seen(rows, doc)) == expected[doc]
