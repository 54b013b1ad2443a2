import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.crawl.message import parse_response

LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Type: text/html; charset=x",
            b"content-type : a/b",
            b"CONTENT-TYPE:",
            b"Content-Typed: no",
            b"Content-Encoding: gzip",
            b"Transfer-Encoding: chunked",
            b"X: Content-Encoding: br",
            b"no colon, content-encoding",
            b"\xff\xfe: \x00",
        ]
    ),
    max_size=6,
)


def plainly(message):
    """The twin: a regular expression finds the end of the head, and every header is read."""
    end = re.search(rb"\r?\n\r?\n", message)
    head, body = (message[: end.start()], message[end.end() :]) if end else (message, b"")
    headers = {}
    for line in head.decode("utf-8", "replace").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() in ("content-type", "content-encoding", "transfer-encoding"):
            headers.setdefault(name.strip().lower(), value.strip())
    return headers, body


@settings(deadline=None)
@given(
    LINES,
    st.sampled_from([b"\r\n", b"\n"]),
    st.sampled_from([b"\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n", b"\r\n", b""]),
    st.sampled_from([b"", b"body", b"<p>a\n\nb", b"\r\n\r\nx", b"a\n\r\nb", b"\nContent-Type: x/y\r\n\r\n"]),
)
@example([], b"\r\n", b"\r\n\r\n", b"\n\n")
def test_a_head_is_read_as_a_plain_parser_reads_it(lines, newline, gap, body):
    message = newline.join([b"HTTP/1.1 200 OK", *lines]) + gap + body
    found = parse_response(message)
    headers, rest = plainly(message)
    assert (found.status, found.headers, bytes(found.body)) == (200, headers, rest)


def test_what_has_no_status_line_is_no_response():
    assert parse_response(b"<html>\r\n\r\n") is None
    assert parse_response(b"") is None
