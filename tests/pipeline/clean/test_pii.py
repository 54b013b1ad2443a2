import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import CHINESE, ENGLISH, ODD, batch_of, real_texts

from cluster.errors import RecipeError
from pipeline.clean import pii_patterns
from pipeline.clean.pii import KINDS, PII
from pipeline.step import Documents

FOUND = {
    "email": ["jane.doe@example.com", "a@b.co", "first.last+tag@mail.example.co.uk"],
    "ip": ["8.8.8.8", "151.101.1.140", "2606:4700:4700::1111", "2a00:1450:4001:0830:0000:0000:0000:200e"],
    "phone": ["+1 415 555 2671", "+44 20 7946 0958", "(415) 555-2671", "415-555-2671", "415.555.2671", "010-62751234",
              "+4930123456", "(021) 58888888", "+14155552671", "(415)555-2671", "(0571)88157838", "01 23 45 67 89",
              "020 7946 0958", "+1 (415) 555-2671", "1-800-555-2671"],
    "cn_mobile": ["13912345678", "+86 139 1234 5678", "139-1234-5678", "18600000001", "+8613912345678",
                  "0086 139 1234 5678", "008613912345678"],
    "cn_id": ["11010519491231002X", "11010519491231002x", "110105 19491231 002X"],
    "iban": ["DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19", "FR1420041010050500013M02606", "NO9386011117947"],
    "credit_card": ["4111111111111111", "5500-0055-5555-5559", "3782 822463 10005", "6011 1111 1111 1117"],
    "api_key": ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "AIza" + "Sy1-_" * 7, "hf_" + "abCD" * 8 + "xy",
                "sk-proj-" + "abc123XYZ_" * 5, "sk_live_" + "a1B2" * 6, "LTAI" + "a1B2" * 5, "AKID" + "a1B2" * 8,
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmN" * 2],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + "IBAAKCAQEA\n" * 20 + "-----END RSA PRIVATE KEY-----",
                    "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBg\n" * 5 + "-----END PRIVATE KEY-----"],
}  # fmt: skip
TRICKY = [
    "version 10.2.3.4 of the tool", "v8.8.4.4 is out", "192.168.1.1", "10.0.0.1", "127.0.0.1", "::1", "fe80::1",
    "256.1.1.1",    "1.2.3.4.5", "see section 6.3.4.1, or 6.3.4.2.", "999.999.999.999",
    "12:30:45", "a::b in C++", "std::vector<int>", "ffff:ffff:ffff:ffff::", "224.0.0.251",
    "de:ad:be:ef:00:11",
    "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "9783161484100", "2024-01-02 10:20:30", "20240102103000",
    "d41d8cd98f00b204e9800998ecf8427e", "550e8400-e29b-41d4-a716-446655440000",
    "sha256:9f86d081884c7d659a2feaa0c55ad015",
    "4111111111111112", "1234567812345678", "0000000000000000", "110105194912310021", "11010519490231002X",
    "12345678901", "1700000000000", "10086", "3.14159265358979", "1,234,567,890", "100 000 000", "call 911",
    "DE89370400440532013001", "IT91 5562 4507 3750 7695 4046 573",
    "DE38 4378 3715 7213 0442 63", "XX89370400440532013000",
    "DE00", "icon@2x.png", "@decorator", "user@localhost", "a @ b",
    "foo@bar", "AKIA", "ghp_short", "sk-learn", "hf_hub", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----",
    "0123456789", "555-1234", "2.0.1-rc.1", "$1234567890123", "order #4155552671", "page 415-555", "x=4155552671",
    "git@github.com:user/repo.git", "+100 000 000", "Chrome/91.0.4472.124", "nginx/1.18.40.2", "512 768 1024",
    "5310 0410 4137 0100", "sk_learn",
    "RFC 2606:4700", "1 2 3 4 5 6 7 8 9 10", "2023 2024 2025 2026", "192.0.2.1", "编号1391234567",
]  # fmt: skip


def run(step, *texts):
    rows, verdict = step.transform(Documents(batch_of(texts)))
    return rows, verdict


def cleaned(step, *texts):
    return run(step, *texts)[0].column("text").to_pylist()


def found_in(*texts):
    rows, _ = run(PII(), *texts)
    return [{k: n for k, n in row.items() if n} for row in rows.column("pii").to_pylist()]


@pytest.mark.parametrize("around", ["{}", "Write to {} today.", "联系方式：{}，谢谢", "({})", "see {}; or not\nnext"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_replaced_wherever_it_stands(kind, around):
    texts = [around.format(value) for value in FOUND[kind]]
    assert found_in(*texts) == [{kind: 1}] * len(texts)
    assert cleaned(PII(), *texts) == [around.format(f"<{kind.upper()}>")] * len(texts)


@pytest.mark.parametrize("text", TRICKY)
def test_what_only_looks_like_it_stays(text):
    assert cleaned(PII(), text, f"这里 {text} 那里") == [text, f"这里 {text} 那里"]


def test_precision_and_recall_in_real_documents():
    rng = np.random.default_rng(0)
    planted, texts = [], []
    for text in real_texts(200):
        words = text.split(" ")
        kind = KINDS[int(rng.integers(len(KINDS)))]
        value = FOUND[kind][int(rng.integers(len(FOUND[kind])))]
        words.insert(int(rng.integers(len(words))), f"{value}")
        planted.append((kind, value))
        texts.append(" ".join(words))
    hits = [
        (kind, value)
        for (kind, value), after in zip(planted, cleaned(PII(), *texts), strict=True)
        if value not in after
    ]
    assert len(hits) >= 0.99 * len(planted)


def test_actions_and_replacements():
    text = "mail jane@example.com or call 415-555-2671"
    assert cleaned(PII(email="keep", phone="mask"), text) == ["mail jane@example.com or call ***-***-****"]
    assert cleaned(PII(replacements={"email": "email@example.org"}), text) == ["mail email@example.org or call <PHONE>"]
    rows, verdict = run(PII(email="drop"), text, ENGLISH, CHINESE)
    assert verdict.reason.tolist() == ["pii_email", None, None]
    assert verdict.score[0] == 1
    assert rows.num_rows == 3


def test_a_replacement_for_an_unknown_kind_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'email'"):
        PII(replacements={"emial": "x"}).check()


def test_the_values_are_nowhere_but_in_the_text():
    rows, verdict = run(PII(email="drop"), "jane.doe@example.com")
    rest = [rows.drop_columns(["text"]).to_pylist(), verdict.reason.tolist(), verdict.score.tolist()]
    assert "jane" not in repr(rest)


def test_documents_without_findings_are_not_touched():
    texts = [*ODD, ENGLISH, CHINESE, b"\xed\xa0\x80 x", b"cut \xe4"]
    batch = batch_of(texts)
    rows, _ = PII(count_column=None).transform(Documents(batch))
    assert rows.equals(batch)


def test_a_document_of_ten_megabytes_is_searched_to_its_end():
    lines = f"{ENGLISH}\n{CHINESE}\n"
    text = lines * (10_000_000 // len(lines.encode()) + 1)
    assert found_in(ENGLISH, text + FOUND["email"][0], CHINESE) == [{}, {"email": 1}, {}]


def test_slices_neighbours_and_columns_that_are_there_already_change_nothing():
    texts = [FOUND["email"][0], ENGLISH, "x " + FOUND["iban"][1], *ODD]
    batch = batch_of(texts)
    whole = PII().transform(Documents(batch))[0]
    parts = [PII().transform(Documents(batch.slice(k, 1)))[0] for k in range(len(texts))]
    assert [part.to_pylist()[0] for part in parts] == whole.to_pylist()
    assert PII().transform(Documents(whole))[0].schema == whole.schema


@given(
    st.lists(st.text(st.sampled_from("@.:-+() 0123456789abcXYZ_一"), max_size=40) | st.sampled_from(TRICKY), max_size=4)
)
@settings(max_examples=150, deadline=None)
def test_the_kernel_points_out_every_address_that_a_plain_search_finds(texts):
    """The plain way: the same patterns tried at every byte."""
    docs = Documents(batch_of(texts))
    emails = {}
    for row, text in enumerate(texts):
        raw = text.encode()
        places = [m.start() for m in re.finditer(rb"@", raw)]
        emails[row] = {f for at in places if (f := pii_patterns._email(raw, at))}
    got = dict(pii_patterns.find(*docs.text_buffers(), {"email"}))
    for row, expected in emails.items():
        mine = got.get(row, [])
        assert set(mine) <= expected
        covered = {b for start, end, _ in mine for b in range(start, end)}
        assert all(any(b in covered for b in range(start, end)) for start, end, _ in expected)


def test_check_digits():
    assert pii_patterns.valid_card(b"4111 1111 1111 1111")
    assert not pii_patterns.valid_card(b"4111 1111 1111 1112")
    assert pii_patterns.valid_cn_id(b"11010519491231002X")
    assert not pii_patterns.valid_cn_id(b"110105194912310020")
    assert not pii_patterns.valid_cn_id(b"11010519490231002X")
    assert pii_patterns.valid_iban(b"GB29NWBK60161331926819")
    assert not pii_patterns.valid_iban(b"GB29NWBK60161331926818")
