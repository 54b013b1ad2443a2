"""Exact patterns and check digits of personal data, tried at the places that the kernel points out."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterator

import numpy as np

_EMAIL_LOCAL = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?$")
_EMAIL_DOMAIN = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z])"
)
_FILES = frozenset((b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"css", b"js", b"json", b"html", b"htm"))
_IPV4 = re.compile(rb"(?:\d{1,3}\.){3}\d{1,3}(?![0-9A-Za-z_]|\.\d|-\d)")
_IPV6 = re.compile(rb"[0-9A-Fa-f:]{4,39}(?::\d{1,3}(?:\.\d{1,3}){3})?(?![0-9A-Za-z:])")
_VERSION = re.compile(
    rb"(?i)(?:\b(?:v|ver\.?|versions?|releases?|build|firmware|section|chapter)|\xe7\x89\x88\xe6\x9c\xac)[ :=]*$"
)
_NOT_NUMBER = rb"(?![0-9A-Za-z_]|[-.]\d)"
_CN_ID = re.compile(
    rb"[1-9]\d{5}( ?)(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\1\d{3}[0-9Xx]" + _NOT_NUMBER
)
_CN_MOBILE = re.compile(rb"(?:(?:00)?86[ -]?)?(1[3-9]\d)([ -]?)\d{4}\2\d{4}" + _NOT_NUMBER)
_CARD = re.compile(rb"\d{4}(?:([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|([ -]?)\d{6}\2\d{4,5})" + _NOT_NUMBER)
_IBAN_HEAD = re.compile(rb"[A-Z]{2}\d{2}(?: [A-Z0-9]{4})* $")  # its groups look like a card's
_PHONES = (
    re.compile(rb"[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}" + _NOT_NUMBER),  # after a +
    re.compile(rb"(?:1[ .-])?(?:\([2-9]\d{2}\)[ .-]{0,2}|[2-9]\d{2}[ .-]{1,2})[2-9]\d{2}[.-]\d{4}" + _NOT_NUMBER),
    re.compile(rb"(?:\(0\d{2,3}\)[ -]{0,2}|0\d{2,3}[ -]{1,2})[2-9]\d{6,7}" + _NOT_NUMBER),
    # France, Great Britain; not the end of a longer number in groups
    re.compile(rb"(?<!\d )0[1-9](?:(?:[ .]\d{2}){4}|\d{1,2} \d{3,4} \d{4})(?! \d)" + _NOT_NUMBER),
)
_IBAN = re.compile(rb"[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])")
_KEYS = re.compile(
    rb"(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,90}|sk-(?:[a-z]+-)*[A-Za-z0-9_-]{32,}"
    rb"|xox[abeoprs]-[0-9A-Za-z-]{20,}|AIza[0-9A-Za-z_-]{35}|glpat-[0-9A-Za-z_-]{20}|hf_[A-Za-z]{34}"
    rb"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|[sr]k_live_[A-Za-z0-9]{24,}|LTAI[A-Za-z0-9]{12,24}|AKID[A-Za-z0-9]{32}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,})(?![A-Za-z0-9_])"
)
_PEM = re.compile(rb"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.{16,16384}?-----END \1-----", re.DOTALL)
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip

Finding = tuple[int, int, str]
"""(start, end, kind) within the document's bytes."""


def find(offsets: np.ndarray, data: np.ndarray, kinds: set[str]) -> Iterator[tuple[int, list[Finding]]]:
    """(document, its findings in order, without overlap) for each document of the batch that has any."""
    from pipeline.kernels.pii import candidates

    places = candidates(offsets, data)
    bounds = np.flatnonzero(np.diff(places[:, 0], prepend=-1, append=-1))
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        row = int(places[low, 0])
        start = int(offsets[row])
        text = data[start : int(offsets[row + 1])].tobytes()
        findings: list[Finding] = []
        done = 0
        for at, kind in places[low:high, 1:].tolist():
            found = _at(text, at - start, kind, kinds)
            if found and found[0] >= done:
                findings.append(found)
                done = found[1]
        if findings:
            yield row, findings


def _at(text: bytes, at: int, candidate: int, kinds: set[str]) -> Finding | None:
    from pipeline.kernels import pii

    if candidate == pii.AT:
        return _email(text, at) if "email" in kinds else None
    if candidate == pii.DASHES:
        return _match(_PEM, text, at, "private_key", kinds)
    if candidate == pii.KEY:
        return _match(_KEYS, text, at, "api_key", kinds)
    if candidate == pii.IBAN:
        found = _match(_IBAN, text, at, "iban", kinds)
        return _iban(text, found) if found else None
    if candidate == pii.COLONS:
        return _ipv6(text, at) if "ip" in kinds else None
    return _number(text, at, kinds)


def _match(pattern: re.Pattern[bytes], text: bytes, at: int, kind: str, kinds: set[str]) -> Finding | None:
    found = pattern.match(text, at) if kind in kinds else None
    return (at, found.end(), kind) if found else None


def _email(text: bytes, at: int) -> Finding | None:
    local = _EMAIL_LOCAL.search(text[max(0, at - 64) : at])
    domain = _EMAIL_DOMAIN.match(text, at + 1, at + 256)
    if not local or not domain or local.group() == b"git" or domain.group().rpartition(b".")[2].lower() in _FILES:
        return None
    return at - len(local.group()), domain.end(), "email"


def _number(text: bytes, at: int, kinds: set[str]) -> Finding | None:
    """What a number is: identity number, card, mobile, IP address or phone, in order of certainty."""
    before = text[at - 1 : at]
    if before == b"/" and text[at - 2 : at] == b"//":
        kinds = kinds & {"ip"}  # the host of a URL
    elif before in (b"_", b"/", b"=", b"#", b"&", b"$", b"%") or (
        before in (b".", b"-") and text[at - 2 : at - 1].isalnum()
    ):
        return None
    if "cn_id" in kinds and (found := _CN_ID.match(text, at)) and valid_cn_id(found.group()):
        return at, found.end(), "cn_id"
    if "credit_card" in kinds and (found := _CARD.match(text, at)) and valid_card(found.group()):
        return None if _IBAN_HEAD.search(text[max(0, at - 25) : at]) else (at, found.end(), "credit_card")
    # "+1" and ten digits is a number of North America, although it may look like a Chinese one without its country.
    if "cn_mobile" in kinds and (found := _CN_MOBILE.match(text, at)) and (before != b"+" or found[0][:1] == b"8"):
        return at - (before == b"+" and found.group().startswith(b"86")), found.end(), "cn_mobile"
    if "ip" in kinds and (found := _IPV4.match(text, at)) and not _VERSION.search(text[max(0, at - 16) : at]):
        return (at, found.end(), "ip") if is_public(found.group()) and not _is_section(found.group()) else None
    if "phone" in kinds:
        if before == b"+":
            found = _PHONES[0].match(text, at)
            digits = sum(48 <= byte <= 57 for byte in found.group()) if found else 0
            if found and (digits == 11 if found[0][:1] == b"1" else 8 <= digits <= 15):
                return at - 1, found.end(), "phone"
        for start in (at - 1, at) if before == b"(" else (at,):
            for pattern in _PHONES[1:]:
                if found := pattern.match(text, start):
                    return start, found.end(), "phone"
    return None


def _ipv6(text: bytes, at: int) -> Finding | None:
    start = at
    while start > 0 and at - start < 4 and text[start - 1 : start] in b"0123456789abcdefABCDEF":
        start -= 1
    if start > 0 and (text[start - 1 : start].isalnum() or text[start - 1 : start] in (b"_", b":")):
        return None
    found = _IPV6.match(text, start)
    # Two short groups ("a::b") are more often code than an address.
    if found and sum(map(bool, found.group().split(b":"))) >= 3 and is_public(found.group()):
        return start, found.end(), "ip"
    return None


def _iban(text: bytes, found: Finding) -> Finding | None:
    start, end, kind = found
    length = _IBAN_LENGTHS.get(text[start : start + 2].decode("latin-1"))
    if length is None:
        return None
    letters, stop = 0, start
    while stop < end and letters < length:
        letters += text[stop : stop + 1] != b" "
        stop += 1
    compact = text[start:stop].replace(b" ", b"")
    glued = text[stop : stop + 1].isalnum()
    return (start, stop, kind) if letters == length and not glued and valid_iban(compact) else None


def valid_iban(compact: bytes) -> bool:
    """ISO 13616: the number with its first four characters at the end, letters as 10 to 35, is 1 modulo 97."""
    return int("".join(str(int(chr(byte), 36)) for byte in compact[4:] + compact[:4])) % 97 == 1


def valid_card(number: bytes) -> bool:
    """Whether the issuer's prefix, the length and the Luhn digit fit."""
    digits = bytes(byte for byte in number if 48 <= byte <= 57)
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    known = (
        (digits[:1] == b"4" and size in (16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)
        or (two in (34, 37) and size == 15)
        or (two in (36, 38) and size == 14)
        or ((two in (65, 62, 35) or four == 6011) and 16 <= size <= 19)
    )
    if not known or len(set(digits)) < 2:
        return False
    total = 0
    for place, byte in enumerate(reversed(digits)):
        value = (byte - 48) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def valid_cn_id(number: bytes) -> bool:
    """GB 11643-1999: weights 2^(17-i) mod 11 over 17 digits give the last character; the birthday must exist."""
    number = number.replace(b" ", b"")
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum((byte - 48) * pow(2, 17 - i, 11) for i, byte in enumerate(number[:17]))
    return born.year >= 1900 and b"10X98765432"[total % 11 : total % 11 + 1] == number[17:].upper()


def _is_section(address: bytes) -> bool:
    """Whether four numbers are small enough for a chapter ("6.3.4.1"): one address in 4,000 is, and these four."""
    known = (b"1.1.1.1", b"8.8.8.8", b"8.8.4.4", b"9.9.9.9")
    return address not in known and all(int(part) < 32 for part in address.split(b"."))


def is_public(address: bytes) -> bool:
    """Whether it is an IP address that is routed on the internet."""
    try:
        found = ipaddress.ip_address(address.decode("ascii"))
    except ValueError:
        return False
    unicast = found.version == 4 or int(found) >> 125 == 1  # 2000::/3; a netmask (ffff::) is none
    return unicast and found.is_global and not found.is_multicast
