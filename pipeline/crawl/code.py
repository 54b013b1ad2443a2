"""`crawl.code`: source-code trees, a document a file, with programming language, licence and path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import pyarrow as pa
from pydantic import Field

from cluster import storage
from pipeline.crawl import inputs
from pipeline.crawl.rows import Rows
from pipeline.schema import DOCUMENT, Row, document_id
from pipeline.step import Source, Verdict

if TYPE_CHECKING:
    from pipeline.run import StageRun

_ENDINGS = {
    "Ada": "adb ads", "Assembly": "asm s", "C": "c h", "C#": "cs", "C++": "cc cpp cxx hh hpp hxx inl", "CMake": "cmake",
    "CSS": "css scss sass less", "Clojure": "clj cljs cljc", "Common Lisp": "lisp cl", "CUDA": "cu cuh", "D": "d",
    "Dart": "dart", "Elixir": "ex exs", "Elm": "elm", "Emacs Lisp": "el", "Erlang": "erl hrl", "F#": "fs fsi fsx",
    "Fortran": "f f77 f90 f95 f03 for", "Go": "go", "Groovy": "groovy gradle", "Haskell": "hs lhs", "HTML": "html htm",
    "Java": "java", "JavaScript": "js mjs cjs jsx", "JSON": "json", "Julia": "jl", "Kotlin": "kt kts", "Lean": "lean",
    "Lua": "lua", "Markdown": "md markdown", "MATLAB": "m", "Nim": "nim", "Nix": "nix", "OCaml": "ml mli",
    "Pascal": "pas pp", "Perl": "pl pm t", "PHP": "php", "PowerShell": "ps1 psm1", "Prolog": "pro", "Protocol Buffer":
    "proto", "Python": "py pyi pyx", "R": "r", "Racket": "rkt", "reStructuredText": "rst", "Ruby": "rb rake gemspec",
    "Rust": "rs", "Scala": "scala sc", "Scheme": "scm ss", "Shell": "sh bash zsh ksh", "Solidity": "sol", "SQL": "sql",
    "Swift": "swift", "SystemVerilog": "sv svh", "Tcl": "tcl", "TeX": "tex sty cls", "TOML": "toml",
    "TypeScript": "ts tsx mts cts", "Verilog": "v vh", "VHDL": "vhd vhdl", "Vim Script": "vim", "XML": "xml xsd xsl",
    "YAML": "yaml yml", "Zig": "zig",
}  # fmt: skip
LANGUAGES = {ending: name for name, endings in _ENDINGS.items() for ending in endings.split()}
"""Programming languages by the ending of a file's name."""
_NAMES = {
    "makefile": "Makefile", "gnumakefile": "Makefile", "dockerfile": "Dockerfile", "containerfile": "Dockerfile",
    "cmakelists.txt": "CMake", "rakefile": "Ruby", "gemfile": "Ruby", "jenkinsfile": "Groovy", "build": "Starlark",
    "build.bazel": "Starlark", "workspace": "Starlark", "meson.build": "Meson", "sconstruct": "Python",
}  # fmt: skip
_INTERPRETERS = {
    "python": "Python", "sh": "Shell", "bash": "Shell", "zsh": "Shell", "dash": "Shell", "ksh": "Shell",
    "perl": "Perl", "ruby": "Ruby", "node": "JavaScript", "php": "PHP", "lua": "Lua", "rscript": "R", "tclsh": "Tcl",
}  # fmt: skip
_SHEBANG = re.compile(rb"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*(?:\S*/)?)?([A-Za-z]+)")

_LICENCE_NAME = re.compile(r"(?i)^(?:li[cs]en[cs]e|copying|copyright|unlicense)(?:[.\-_].*)?$")
_SPDX = re.compile(rb"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]+?)\s*(?:\*/|-->|[\"'#;,]|\r|\n|$)")
_PHRASES = (
    ("AGPL-3.0", "gnu affero general public license"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license version 2.1"),
    ("LGPL-2.0", "gnu library general public license"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license version 2"),
    ("MPL-2.0", "mozilla public license version 2.0"),
    ("EPL-2.0", "eclipse public license - v 2.0"),
    ("Apache-2.0", "apache license version 2.0"),
    ("BSL-1.0", "boost software license - version 1.0"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("PSF-2.0", "python software foundation license version 2"),
    ("Artistic-2.0", "artistic license 2.0"),
    ("Zlib", "this software is provided 'as-is', without any express or implied warranty"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("ISC", "permission to use, copy, modify, and distribute this software for any purpose"),
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"),
)
_BSD = "redistribution and use in source and binary forms"
_ENDORSE = "may be used to endorse or promote"
_FILES_PER_TASK, _BYTES_PER_TASK = 500, 256 << 20

SCHEMA = pa.schema(
    [
        *DOCUMENT,
        pa.field("path", pa.string()),  # below the root that the recipe names
        pa.field("programming_language", pa.string()),
        pa.field("licence", pa.string()),  # SPDX identifier, null when none was recognised
    ]
)
"""DOCUMENT, and what is known of a source file."""


class Code(Source):
    """Every file of a tree as a document, its path as title, with columns `path`, `programming_language`, `licence`.

    The language is told by the name, the ending or the `#!` line. The licence is the file's own SPDX line, else that
    of the nearest LICENSE or COPYING file in its folder or above. Removed: `language` (not known, or not wanted),
    `licence` (not among `licences`), `binary`, `empty`, `too_large`.
    """

    gives: ClassVar[Row] = Row.DOCUMENT

    path: str | tuple[str, ...] = Field(description="folder, glob or a list of these; local or s3://")
    source: str = Field("code", description="name of the corpus, for mixing")
    url_prefix: str = Field("file:///", description="what stands before a file's path in its URL")
    languages: tuple[str, ...] = Field(
        (), description="only these programming languages (Python, C++, …); all if empty"
    )
    licences: tuple[str, ...] = Field((), description="only files under these licences (SPDX: MIT, …); all if empty")
    max_file_bytes: int = Field(1 << 20, gt=0, description="larger files are removed as too_large")

    def check(self) -> None:
        inputs.check(self.step_name(), self.path, self._files())

    def _files(self) -> list[inputs.File]:
        return inputs.find(self.path)

    def input_identity(self) -> list[Any]:
        return inputs.identity(self._files())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        files = self._files()
        licences = {
            key.rpartition("/")[0]: name
            for key, entry in reversed(files)
            if _LICENCE_NAME.match(key.rpartition("/")[2]) and entry.size <= 1 << 18
            if (name := licence_of(storage.read_bytes(entry.path)))
        }
        tasks: list[dict[str, Any]] = []
        for key, entry in files:
            full = not tasks or len(tasks[-1]["files"]) >= _FILES_PER_TASK
            if full or tasks[-1]["bytes"] + entry.size > _BYTES_PER_TASK:
                tasks.append({"files": [], "bytes": 0})
            tasks[-1]["files"].append([key, entry.path, entry.size, entry.version, _nearest(licences, key)])
            tasks[-1]["bytes"] += entry.size
        return tasks

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        from pipeline.extract.encoding import decode

        rows = Rows(SCHEMA, self.source)
        for key, path, size, version, around in task["files"]:
            data = storage.read_bytes(path) if size <= self.max_file_bytes else b""
            language = language_of(key, data[:256])
            own = _SPDX.search(data[:4096])
            licence = own[1].decode().strip() if own else around
            if size > self.max_file_bytes:
                reason: str | None = "too_large"
            elif language is None or (self.languages and language not in self.languages):
                reason = "language"
            elif self.licences and licence not in self.licences:
                reason = "licence"
            elif b"\x00" in data[:8192] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                reason = "binary"
            else:
                reason = None if data.strip() else "empty"
            row = {
                "doc_id": document_id(key, 0, "", data),
                "url": self.url_prefix + quote(key),
                "date": datetime.fromtimestamp(int(version) // 10**9, UTC) if version.isdigit() else None,
                "title": key,
                "text": decode(data)[0] if reason is None else "",
                "path": key,
                "programming_language": language,
                "licence": licence,
            }
            rows.add(row, reason=reason)
            yield from rows.full()
        yield from rows.rest()


def _nearest(licences: dict[str, str], key: str) -> str | None:
    folder = key.rpartition("/")[0]
    while True:
        if folder in licences:
            return licences[folder]
        if not folder:
            return None
        folder = folder.rpartition("/")[0]


def language_of(name: str, head: bytes) -> str | None:
    """The programming language of a file by its name, else by its `#!` line; None when neither tells."""
    base = name.rpartition("/")[2].lower()
    if base in _NAMES:
        return _NAMES[base]
    stem, dot, ending = base.rpartition(".")
    if stem and dot and ending in LANGUAGES:
        return LANGUAGES[ending]
    found = _SHEBANG.match(head)
    return _INTERPRETERS.get(found[1].decode().lower()) if found else None


def licence_of(text: bytes) -> str | None:
    """SPDX identifier of a licence's text, by the sentences that only it has; None when it is none of those known."""
    own = _SPDX.search(text[:4096])
    if own:
        return own[1].decode().strip()
    words = " ".join(text.decode("utf-8", "replace").lower().replace(",", " ").replace("‘", "'").split())
    found = [
        (at, name) for name, phrase in _PHRASES if (at := words.find(" ".join(phrase.replace(",", " ").split()))) >= 0
    ]
    if _BSD in words:
        clauses = "BSD-3-Clause" if _ENDORSE in words else "BSD-2-Clause"
        found.append((words.find(_BSD), clauses))
    return min(found)[1] if found else None
