"""Source trees: language, licence and path of every file."""

from __future__ import annotations

import pytest

from pipeline.crawl.code import Code, language_of, licence_of

MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\nof this software"
BSD = "Redistribution and use in source and binary forms, with or without\nmodification, are permitted"


def rows_of(folder, **fields):
    source = Code(path=str(folder), **fields)
    source.check()
    found = {}
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            for i, row in enumerate(batch.to_pylist()):
                found[row["path"]] = row | {"reason": verdict.reason[i] if verdict else None}
    return found


def fill(root):
    for name, data in {
        "LICENSE": MIT,
        "src/a.py": "def f():\n    return 1\n",
        "src/run": "#!/usr/bin/env python3\nprint(1)\n",
        "src/x.bin": "\x00\x01",
        "src/y.c": "\x00\x01",
        "src/z.rs": " \n",
        "vendor/lib/COPYING": BSD,
        "vendor/lib/deep/b.c": "int main(void) { return 0; }\n",
        "vendor/lib/c.c": "/* SPDX-License-Identifier: GPL-2.0-only */\nint x;\n",
        "big.js": "x" * 5000,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(data)


def test_each_file_has_its_language_its_licence_and_its_path(tmp_path):
    fill(tmp_path)
    rows = rows_of(tmp_path, max_file_bytes=4000)
    facts = {path: (row["programming_language"], row["licence"], row["reason"]) for path, row in rows.items()}
    assert facts == {
        "LICENSE": (None, "MIT", "language"),
        "src/a.py": ("Python", "MIT", None),
        "src/run": ("Python", "MIT", None),
        "src/x.bin": (None, "MIT", "language"),
        "src/y.c": ("C", "MIT", "binary"),
        "src/z.rs": ("Rust", "MIT", "empty"),
        "vendor/lib/COPYING": (None, "BSD-2-Clause", "language"),
        "vendor/lib/deep/b.c": ("C", "BSD-2-Clause", None),
        "vendor/lib/c.c": ("C", "GPL-2.0-only", None),
        "big.js": ("JavaScript", "MIT", "too_large"),
    }
    assert rows["src/a.py"]["text"] == "def f():\n    return 1\n"


def test_only_wanted_licences_and_languages_stay(tmp_path):
    fill(tmp_path)
    rows = rows_of(tmp_path, licences=("MIT",), languages=("Python", "C"))
    assert [path for path, row in rows.items() if row["reason"] is None] == ["src/a.py", "src/run"]
    assert rows["vendor/lib/deep/b.c"]["reason"] == "licence"


@pytest.mark.parametrize(
    ("name", "head", "language"),
    [
        ("a/Makefile", b"", "Makefile"),
        ("CMakeLists.txt", b"", "CMake"),
        ("x.tsx", b"", "TypeScript"),
        ("run", b"#!/bin/bash\n", "Shell"),
        ("run", b"#! /usr/bin/env -S node --x\n", "JavaScript"),
        (".py", b"", None),
        ("photo.jpg", b"\xff\xd8", None),
    ],
)
def test_languages_are_told_by_name_ending_or_first_line(name, head, language):
    assert language_of(name, head) == language


def test_licences_are_told_by_their_own_sentences():
    assert licence_of(MIT.encode()) == "MIT"
    assert (
        licence_of((BSD + " Neither the name … may be used to endorse or promote products").encode()) == "BSD-3-Clause"
    )
    assert licence_of(b"  Apache License\n  Version 2.0, January 2004") == "Apache-2.0"
    assert licence_of(
        b"GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007 ... GNU Affero General Public License"
    ) == ("GPL-3.0")
    assert licence_of(b"All rights reserved.") is None
