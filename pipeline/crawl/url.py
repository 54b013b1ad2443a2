"""URLs in one form, so that the same page is fetched once."""

from __future__ import annotations

import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443}
_HEX = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
MAX_LENGTH = 2000


def normalised(url: str, base: str | None = None) -> str | None:
    """The URL made absolute and brought into RFC 3986 normal form; None when it cannot be crawled.

    Only http and https, without user name; lower-case scheme and host (IDN as punycode), no default port, no
    fragment, dot segments resolved, percent escapes in one form; the query keeps its order.
    """
    try:
        text = re.sub(r"[\t\r\n]", "", url.strip())
        parts = urlsplit(urljoin(base, text) if base else text)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        if scheme not in _PORTS or not host or parts.username is not None:
            return None
        host = host.rstrip(".")
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        if not host or len(host) > 253 or re.search(r"[^a-z0-9.:_-]", host):
            return None
    except (ValueError, UnicodeError):
        return None
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[scheme]:
        netloc += f":{port}"
    path = _escaped(_without_dots(parts.path or "/"), "/:@!$&'()*+,;=")
    query = _escaped(parts.query, "/:@!$&'()*+,;=?")
    whole = urlunsplit((scheme, netloc, path, query, ""))
    return whole if len(whole) <= MAX_LENGTH else None


_TRACKING = re.compile(
    r"utm_\w+|gclid|fbclid|[gw]braid|gclsrc|dclid|msclkid|yclid|ttclid|twclid|li_fat_id|igsh(id)?|mc_[ce]id|_ga|_gl|_hsenc"
    r"|_hsmi|srsltid|ref_src|spm|wt_mc|mkt_tok"
    r"|phpsessid|jsessionid|sessionid|sid|amp",
    re.I,
)


def page_key(url: str) -> str:
    """What URLs of one page have in common: no scheme, `www.`, fragment, tracking, order of parameters, last slash."""
    text = url.strip()
    whole = normalised(text if "://" in text else "http://" + text.removeprefix("//"))
    if whole is None:
        return text
    parts = urlsplit(whole)
    path = re.sub(r";jsessionid=[^/]*", "", parts.path, flags=re.I).rstrip("/")
    query = sorted(p for p in parts.query.split("&") if p and not _TRACKING.fullmatch(p.partition("=")[0]))
    return parts.netloc.removeprefix("www.") + path + ("?" + "&".join(query) if query else "")


def site_of(url: str) -> str:
    """The site that a URL belongs to: host without a leading "www.", and the port where it is not the default."""
    return urlsplit(url).netloc.removeprefix("www.")


def _escaped(text: str, safe: str) -> str:
    text = _HEX.sub(lambda m: c if (c := chr(int(m[1], 16))) in _UNRESERVED else f"%{m[1].upper()}", text)
    return "".join(
        piece if i % 2 else quote(piece, safe=safe) for i, piece in enumerate(re.split("(%[0-9A-F]{2})", text))
    )


def _without_dots(path: str) -> str:
    out: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if len(out) > 1:
                out.pop()
        elif segment != ".":
            out.append(segment)
    if segments[-1] in (".", ".."):
        out.append("")
    joined = "/".join(out)
    return joined if joined.startswith("/") else "/" + joined
