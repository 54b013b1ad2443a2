"""Plain text of wikitext: templates, tables, references and files go; links, headings, lists and formulas stay."""

from __future__ import annotations

import html
import re

_MOST_DEPTH = 40
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_VERBATIM = re.compile(
    r"<(nowiki|pre|math|chem|code|source|syntaxhighlight)\b[^<>]*?(?:/>|>(.*?)(?:</\1\s*>|\Z))", re.S | re.I
)
_GONE = re.compile(
    r"<(ref|gallery|timeline|imagemap|score|templatestyles|hiero|graph|mapframe|maplink|section)\b"
    r"(?:[^<>]*?/>|[^<>]*>.*?(?:</\1\s*>|\Z))",
    re.S | re.I,
)
_BREAK = re.compile(r"<br\s*/?>|</?(?:p|div|tr|li|blockquote|poem|center)\b[^<>]*>", re.I)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>")
_SWITCH = re.compile(r"__[^\W_a-z]+__")
_EXTERNAL = re.compile(
    r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]{1,2000}+(?:\s++([^\[\]]*+))?\]|\[mailto:[^\s\[\]]{1,500}+(?:\s++([^\[\]]*+))?\]"
)
_RULE = re.compile(r"^-{4,}", re.M)
_LIST = re.compile(r"^([*#:;]+)[ \t]*", re.M)
_EMPHASIS = re.compile("'{2,5}")
_EMPTY_BRACKETS = re.compile(r"[(（][\s,;，；、]*+[)）]")
_SPACES = re.compile(r"[ \t\u00a0]{2,}")
_MARK = re.compile("\x02(\\d+)\x03")
_TOKENS = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:]*\{\||^[ \t]*\|\}", re.M)
_CATEGORY = re.compile(r"^\s*[^\[\]|:]{1,40}:\S")
_MEDIA = re.compile(
    r"\.(?:jpe?g|png|gif|svg|webp|tiff?|ogg|oga|ogv|webm|wav|mp3|pdf|djvu|mid|stl|xcf)\s*(?:\||$)", re.I
)
_PREFIXED_LINES = re.compile(r"^[ \t]*(?:\[\[[^\[\]|:\n]{1,40}:[^\[\]\n]*\]\][ \t]*)+$", re.M)
"""Lines of nothing but categories, files or links to other languages."""


def plain(wikitext: str) -> str:
    """The text of a page, paragraphs apart by an empty line. Never raises; time is linear in the length.

    No word of any language decides: a link is a category, a file or a page of another wiki when it has a prefix and
    no words of its own, or names a media file.
    """
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        inner, name = html.unescape(found[2] or ""), found[1].lower()
        if name in ("math", "chem") and inner.strip():
            inner = f"${inner.strip()}$"
        kept.append(inner.strip("\n") if name not in ("nowiki", "math", "chem") else inner)
        return f"\x02{len(kept) - 1}\x03"

    text = wikitext.replace("\x02", "").replace("\x03", "").replace("\r\n", "\n")
    text = _VERBATIM.sub(keep, _COMMENT.sub("", text))
    text = _unnested(_PREFIXED_LINES.sub("", _GONE.sub("", text)))
    text = _EXTERNAL.sub(lambda m: m[1] or m[2] or "", text)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _SWITCH.sub("", _EMPHASIS.sub("", text))
    text = _LIST.sub(lambda m: "- " if m[1][-1] in "*#" else "", _RULE.sub("", text))
    text = _EMPTY_BRACKETS.sub("", html.unescape(text).replace("\u00a0", " "))
    text = _SPACES.sub(" ", text)
    lines = [_heading(line.strip()) for line in text.split("\n")]
    text = re.sub("\n{3,}", "\n\n", "\n".join(line for line in lines if line != "-")).strip()
    return _MARK.sub(lambda m: kept[int(m[1])] if int(m[1]) < len(kept) else "", text)


def _heading(line: str) -> str:
    if line.startswith("=") and line.endswith("=") and (words := line.strip("=").strip()):
        return f"\n{words}\n"
    return line


def _unnested(text: str) -> str:
    """Text with templates and tables taken out, and links replaced by what a reader sees of them.

    A stack of open brackets; what is left open at the end is text.
    """
    stack: list[tuple[str, list[str]]] = [("", [])]
    at = 0
    for found in _TOKENS.finditer(text):
        token = found[0].strip(" \t:")
        out = stack[-1][1]
        out.append(text[at : found.start()])
        at = found.end()
        if token in ("{{", "[[", "{|"):
            if len(stack) < _MOST_DEPTH:
                stack.append((token, []))
        elif stack[-1][0] + token in ("{{}}", "{||}"):
            stack.pop()
        elif stack[-1][0] + token == "[[]]":
            inner = "".join(stack.pop()[1])
            stack[-1][1].append(_link(inner))
        elif token == "|}" and any(open_ == "{|" for open_, _ in stack):
            while stack.pop()[0] != "{|":
                pass
        elif token == "}}" and any(open_ == "{{" for open_, _ in stack):
            while stack.pop()[0] != "{{":
                pass
    stack[-1][1].append(text[at:])
    return "".join(part for _, parts in stack for part in parts)


def _link(inner: str) -> str:
    target, bar, shown = inner.partition("|")
    if _MEDIA.search(target):
        return ""
    if target.startswith(":"):
        return (shown if bar else target[1:]).strip()
    if _CATEGORY.match(target) and (not bar or not shown.strip() or shown.strip() == target.partition(":")[2].strip()):
        return ""
    if bar:
        return shown.strip() or target.partition("#")[0].rpartition(":")[2]
    return target.replace("#", " ").strip()
