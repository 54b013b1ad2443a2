"""How every page that a run leaves looks: static HTML without scripts, readable on a phone and in the dark."""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fff; --dim: #5d6370; --line: #d9dce3; --soft: #f5f6f8;
  --c0: #2f7d5b; --c1: #c0392b; --c2: #2b5fa8; --c3: #c47a14; --c4: #7a4fa3; --c5: #5d6c7c; --gone: #d9b44a }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --paper: #16181c; --dim: #9aa1ad; --line: #363a42;
  --soft: #20232a; --c0: #4fb386; --c1: #e2695c; --c2: #6ea3ea; --c3: #e3a23f; --c4: #b18ad6; --c5: #94a3b3;
  --gone: #b8923a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1040px;
  margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; overflow-wrap: anywhere } h2 { font-size: 1.15em; margin: 2em 0 .5em }
a { color: var(--c2) } small, .dim { color: var(--dim) } p.dim { overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse }
td, th { padding: .25em .8em; text-align: left; vertical-align: top }
th { font-weight: 600; border-bottom: 1px solid var(--line); white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr:nth-child(even) td { background: var(--soft) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7em; margin: .3em 0 1em }
pre b { font-weight: 400; color: var(--c0) } code { background: var(--soft); padding: 0 .25em; overflow-wrap: anywhere }
figure { display: inline-block; vertical-align: top; width: 470px; max-width: 100%; margin: 0 2em 1em 0 }
figcaption { font-weight: 600 } figcaption small { font-weight: 400 } svg { max-width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim) } svg .grid { stroke: var(--line) }
@media (max-width: 600px) { td, th { padding: .25em .4em } figure { margin-right: 0 } }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; `title` is escaped here, `body` by its writer, `style` are further rules."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    )
    return f'<!doctype html><html lang="en">{head}<body>{body}'


def table(head: str, rows: list[str]) -> str:
    """A table that scrolls by itself where the window is narrow; cells are HTML already: <th>, <td>."""
    return f"<div class=wide><table><tr>{head}{''.join(rows)}</table></div>"
