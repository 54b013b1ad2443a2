"""PDF, DOCX, ODT and EPUB: what they say, and what hostile ones cost."""

from __future__ import annotations

import contextlib
import io
import resource
import zipfile
import zlib

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.files import Files
from pipeline.extract.main_content import MainContent
from pipeline.extract.office import Unreadable, text_of
from pipeline.extract.pdf import Broken, Reader
from pipeline.step import Documents

FONT = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return out.getvalue()


def docx(body):
    return zipped(word__document_dot_xml=f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>')


def pdf_of(objects):
    """A PDF of numbered objects, the first of which is the catalogue."""
    out, places = b"%PDF-1.4\n", []
    for number, data in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + data + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size + table
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, start)


def pdf(*lines, image_only=False):
    """A PDF of one page, written by hand."""
    shown = "".join(f"BT /F1 12 Tf 72 {700 - 20 * i} Td ({line}) Tj ET\n" for i, line in enumerate(lines))
    content = "0 0 100 100 re f" if image_only else shown
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources {FONT} >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
    ]
    return pdf_of([text.encode() for text in objects])


def inflating(unit, mebibytes):
    """A PDF of one page whose content inflates to so many MiB of `unit`, compressed twice."""
    packer, block = zlib.compressobj(9), unit * ((1 << 20) // len(unit))
    once = b"".join([*(packer.compress(block) for _ in range(mebibytes)), packer.flush()])
    stream = zlib.compress(once, 9)
    head = b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n" % len(stream)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources %s >>" % FONT.encode()
    return pdf_of([CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page, head + stream + b"\nendstream"])


CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>"
NO_TABLE = b"%PDF-1.4\n1 0 obj\n" + CATALOG + b"\nendobj\nxref\n0 1\n0000000000 65535 f \n"
BOMBS = {
    "a stream of 2 GiB": inflating(b" ", 2048),
    "ten million operators of text": inflating(b"BT /F1 9 Tf (abc) Tj ET\n", 240),
    "a hundred million saved states": inflating(b"q ", 190),
    "a page tree 50,000 deep": pdf_of(
        [CATALOG, *(b"<< /Type /Pages /Kids [%d 0 R] /Count 1 >>" % (i + 3) for i in range(50_000)), PAGE]
    ),
    "a page tree that holds itself": pdf_of([CATALOG, b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2147483647 >>"]),
    "two thousand million pages": pdf_of([CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 2147483647 >>", PAGE]),
    "tables that refer to each other": NO_TABLE + b"trailer << /Size 2 /Root 1 0 R /Prev 58 >>\nstartxref\n58\n%%EOF",
}


def test_text_of_a_pdf_and_of_a_scanned_one():
    text = text_of(pdf("The river rose in spring.", "Nobody was hurt."), "pdf").text
    assert " ".join(text.split()) == "The river rose in spring. Nobody was hurt."
    assert text_of(pdf(image_only=True), "pdf").no_text_layer


def test_text_of_docx_keeps_paragraphs_and_leaves_deletions_out():
    body = "<w:p><w:r><w:t>One</w:t><w:tab/><w:t>two</w:t></w:r></w:p><w:p><w:r><w:delText>gone</w:delText></w:r></w:p>"
    assert text_of(docx(body + "<w:p><w:r><w:t>three</w:t></w:r></w:p>"), "docx").text == "One\ttwo\n\nthree"


def test_text_of_odt_and_epub():
    odt = zipped(content_dot_xml='<o xmlns:t="x"><t:h>Title</t:h><t:p>Body <t:span>text</t:span></t:p></o>')
    assert text_of(odt, "odt").text == "Title\n\nBody text"
    chapter = "<html><body><h1>Chapter</h1><p>" + "The story goes on and on, as stories do. " * 9 + "</p></body></html>"
    package = (
        "<package><metadata><dc:title>Book</dc:title></metadata><manifest><item id='x' href='c.xhtml'/></manifest>"
        "<spine><itemref idref='x'/></spine></package>"
    ).replace("'", '"')
    epub = zipped(
        **{
            "META-INF__container_dot_xml": '<rootfile full-path="OPS/p.opf"/>',
            "OPS__p_dot_opf": package,
            "OPS__c_dot_xhtml": chapter,
        }
    )
    found = text_of(epub, "epub")
    assert found.title == "Book"
    assert found.text.startswith("Chapter\n\nThe story goes on")


def test_bombs_are_refused():
    with pytest.raises(Unreadable, match="limit"):
        text_of(docx(" " * (80 << 20)), "docx")
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))
    bomb = f'<!DOCTYPE d [<!ENTITY l0 "ha">{laughs}]><d>&l8;</d>'
    with pytest.raises(Unreadable):
        text_of(zipped(word__document_dot_xml=bomb), "docx")


@pytest.mark.parametrize("name", BOMBS)
def test_a_pdf_bomb_ends_within_its_bounds_and_the_next_file_is_read(name):
    assert len(BOMBS[name]) < 5 << 20
    reader = Reader(cpu_seconds=4, memory_bytes=640 << 20)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(Broken):
        reader.read(BOMBS[name])
    assert "spring" in reader.read(pdf("The river rose in spring."))[0][0]
    reader.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4 + 4  # two starts and a good file


def test_the_kernel_bounds_the_memory_of_the_reader_of_pdf():
    reader, others = Reader(memory_bytes=640 << 20), set(psutil.Process().children())
    reader.read(pdf("hello"))
    (child,) = set(psutil.Process().children()) - others
    assert resource.prlimit(child.pid, resource.RLIMIT_AS) == (640 << 20, 640 << 20)
    with pytest.raises(Broken, match="MiB"):
        reader.read(BOMBS["a hundred million saved states"])
    assert not child.is_running()
    reader.close()


def test_a_file_that_takes_too_long_is_named_so():
    reader = Reader(cpu_seconds=1)
    with pytest.raises(Broken, match="1 CPU seconds"):
        reader.read(BOMBS["ten million operators of text"])
    reader.close()


def test_a_pdf_bomb_is_one_failed_row_and_the_next_file_is_read(tmp_path):
    (tmp_path / "a.pdf").write_bytes(BOMBS["a page tree that holds itself"])
    (tmp_path / "b.pdf").write_bytes(pdf("Hello from a PDF file."))
    source = Files(path=str(tmp_path))
    source.check()
    (task,) = source.tasks(None)
    ((batch, _),) = source.read(task)
    documents, verdict = MainContent().transform(Documents(batch))
    assert list(verdict.reason) == ["unreadable", None]
    assert verdict.error[0].startswith("pdf: ")
    assert documents.column("text").to_pylist()[1].startswith("Hello")


def test_documents_that_unpack_again_and_again_are_refused():
    chapter = "<p>" + "<b></b>" * 1_000_000
    package = '<item id="x" href="c"/>' + '<itemref idref="x"/>' * 1000
    files = {"META-INF__container_dot_xml": '<rootfile full-path="p"/>', "p": package, "c": chapter}
    with pytest.raises(Unreadable, match="chapters"):
        text_of(zipped(**files), "epub")
    # these took time that grew with the square of their length
    assert text_of(docx(f"<w:p><w:r><w:t>{' ' * 3_000_000}x</w:t></w:r></w:p>"), "docx").text == "x"
    with contextlib.suppress(Unreadable):
        files["p"] = "<item " * 2_000_000 + "<dc:title" * 1_000_000
        text_of(zipped(**files), "epub")


@given(st.binary(max_size=300), st.sampled_from(["pdf", "docx", "odt", "epub"]), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_unreadable_and_nothing_else(noise, kind, at):
    whole = pdf("hello") if kind == "pdf" else docx("<w:p><w:r><w:t>hello</w:t></w:r></w:p>")
    with contextlib.suppress(Unreadable):
        text_of(whole[:at] + noise + whole[at + len(noise) :], kind)


def test_a_tree_of_files_becomes_documents(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.pdf").write_bytes(pdf("Hello from a PDF file."))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 broken")
    (tmp_path / "scan.pdf").write_bytes(pdf(image_only=True))
    (tmp_path / "sub/c.docx").write_bytes(docx("<w:p><w:r><w:t>Hello from Word.</w:t></w:r></w:p>"))
    (tmp_path / "sub/d.py").write_text("def f():\n    return 1\n")
    (tmp_path / "e.png").write_bytes(b"\x89PNG")
    source = Files(path=str(tmp_path))
    source.check()
    found = {}
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            rows, after = MainContent().transform(Documents(batch))
            for i, row in enumerate(rows.to_pylist()):
                first = verdict.reason[i] if verdict else None
                found[row["url"].removeprefix("file:///")] = (
                    first or (after.reason[i] if after else None) or row["text"]
                )
    assert found == {
        "a.pdf": "Hello from a PDF file.",
        "b.pdf": "unreadable",
        "scan.pdf": "no_text_layer",
        "sub/c.docx": "Hello from Word.",
        "sub/d.py": "def f():\n    return 1",
        "e.png": "content_type",
    }
