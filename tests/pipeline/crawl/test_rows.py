from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.rows import Rows
from pipeline.schema import RECORD


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=40), max_size=30), st.integers(1, 64), st.integers(1, 12))
def test_payloads_come_back_as_they_were_given(payloads, size, count):
    rows = Rows(RECORD, "web", rows=count, size=size)
    got = []
    for number, payload in enumerate(payloads):
        rows.add({"doc_id": number.to_bytes(16, "big"), "payload": None if payload is None else memoryview(payload)})
        got += list(rows.full())
    got += list(rows.rest())
    for batch, verdict in got:
        batch.validate(full=True)
        assert verdict is None and batch.num_rows <= count
    assert [value for batch, _ in got for value in batch.column("payload").to_pylist()] == payloads


def test_a_batch_keeps_its_bytes_when_the_next_one_is_filled():
    rows = Rows(RECORD, "web", rows=2, size=1000)
    batches = []
    for number in range(40):
        rows.add({"doc_id": number.to_bytes(16, "big"), "payload": bytes([number]) * 450})
        batches += [batch for batch, _ in rows.full()]
    kept = [value for batch in batches for value in batch.column("payload").to_pylist()]
    assert kept == [bytes([number]) * 450 for number in range(40)]
