"""Precision and recall of clean.pii by kind, on generated values in real documents and on what only looks like them.

    python benchmarks/bench_pii.py [--each 500] [--seed 1]

For each kind, `each` fresh random values (valid check digits, several ways of writing) are planted, one a document,
in passages of the real documents of ../shared/data (else of this Python's own help texts), inside English and Chinese
phrases. A value counts as found when all of it is replaced under its own kind. Negatives are planted the same way: as
many of each family that looks like personal data and is none; whatever is replaced there is a false alarm of the kind
that it was taken for. The passages are cleaned first, so that only what was planted can be found.
"""

# ruff: noqa: E402 (the script makes its imports findable first)

from __future__ import annotations

import argparse
import random
import string
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]

from bench_filters import documents
from texts import batch_of

from pipeline.clean.pii import KINDS, PII
from pipeline.clean.pii_patterns import _IBAN_LENGTHS
from pipeline.step import Documents

PHRASES = (
    "Contact: {} for more.", "see {} or ask", "({})", "It is {}.", "id {} was used", "{}\n", "联系方式：{}。",
    "请看{}，谢谢", "编号 {} 如下", "值为“{}”",
)  # fmt: skip
HEX, DIGITS, ALNUM = "0123456789abcdef", string.digits, string.ascii_letters + string.digits


def some(r: random.Random, chars: str, count: int) -> str:
    """`count` random characters."""
    return "".join(r.choices(chars, k=count))


def luhn(number: str) -> str:
    """The number with its check digit."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return number + str(-total % 10)


def email(r: random.Random) -> str:
    """Addresses with dots, tags and several top-level domains."""
    local = r.choice(["{a}", "{a}.{b}", "{a}_{b}", "{a}+{b}", "{a}{n}"]).format(
        a=some(r, string.ascii_lowercase, 5), b=some(r, string.ascii_lowercase, 6), n=r.randrange(10, 99)
    )
    domain = some(r, string.ascii_lowercase, r.randint(3, 9))
    return f"{local}@{r.choice(['', 'mail.', 'cs.'])}{domain}.{r.choice(['com', 'org', 'de', 'co.uk', 'edu.cn', 'io'])}"


def ip(r: random.Random) -> str:
    """Public addresses, one in four IPv6."""
    if r.random() < 0.25:
        groups = [some(r, HEX, 4) for _ in range(7)]
        return "2a" + some(r, HEX, 2) + ":" + (":".join(groups) if r.random() < 0.5 else f"{groups[0]}::{groups[1]}")
    first = r.choice([23, 45, 64, 81, 104, 151, 185, 203, 217])
    return f"{first}.{r.randrange(1, 200)}.{r.randrange(256)}.{r.randrange(1, 255)}"


def phone(r: random.Random) -> str:
    """International, North American and Chinese landline numbers."""
    area, office, line = r.randrange(201, 990), r.randrange(201, 990), some(r, DIGITS, 4)
    return r.choice([
        f"+1 {area} {office} {line}", f"({area}) {office}-{line}", f"{area}-{office}-{line}", f"{area}.{office}.{line}",
        f"+44 20 {some(r, '345678', 4)} {line}", f"+49 30 {some(r, '123456789', 7)}",
        f"+33 1 {some(r, '2345', 2)} 45 67 89", f"+1{area}{office}{line}", f"({area}){office}-{line}",
        f"01 {some(r, '2345', 2)} 45 67 89", f"020 {some(r, '3478', 4)} {line}",
        f"010-{r.randrange(2, 9)}{some(r, DIGITS, 7)}", f"(021) {r.randrange(2, 9)}{some(r, DIGITS, 7)}",
        f"0755-{r.randrange(2, 9)}{some(r, DIGITS, 7)}", f"+86 10 {r.randrange(2, 9)}{some(r, DIGITS, 3)} {line}",
    ])  # fmt: skip


def cn_mobile(r: random.Random) -> str:
    """Eleven digits, with or without the country code and separators."""
    head, a, b = f"1{r.choice('3456789')}{r.randrange(10)}", some(r, DIGITS, 4), some(r, DIGITS, 4)
    return r.choice(
        [
            f"{head}{a}{b}",
            f"{head}-{a}-{b}",
            f"{head} {a} {b}",
            f"+86 {head}{a}{b}",
            f"+86 {head} {a} {b}",
            f"0086{head}{a}{b}",
        ]
    )


def cn_id(r: random.Random, wrong: bool = False) -> str:
    """Eighteen characters, the last one a check digit (or a wrong one)."""
    body = f"{r.choice(['1101', '3101', '4403', '5101'])}0{r.randrange(1, 9)}"
    body += f"{r.randrange(1940, 2015)}{r.randrange(1, 13):02}{r.randrange(1, 29):02}{some(r, DIGITS, 3)}"
    last = "10X98765432"[sum(int(digit) * pow(2, 17 - i, 11) for i, digit in enumerate(body)) % 11]
    return body + (r.choice([x for x in "0123456789X" if x != last]) if wrong else last)


def iban(r: random.Random, wrong: bool = False) -> str:
    """Accounts of several countries, in one piece or in groups of four."""
    country = r.choice(["DE", "FR", "GB", "NL", "ES", "IT", "CH", "NO", "PL", "BE"])
    inner = some(r, DIGITS, _IBAN_LENGTHS[country] - 4)
    if country in ("GB", "NL"):
        inner = some(r, string.ascii_uppercase, 4) + inner[4:]
    value = int("".join(str(int(char, 36)) for char in inner + country + "00"))
    check = (98 - value % 97 + wrong) % 97 if wrong else 98 - value % 97
    compact = f"{country}{check:02}{inner}"
    return compact if r.random() < 0.5 else " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))


def credit_card(r: random.Random, wrong: bool = False) -> str:
    """Visa, Mastercard, American Express, UnionPay; the Luhn digit right or wrong."""
    head, size = r.choice([("4", 16), (f"5{r.randrange(1, 6)}", 16), ("37", 15), ("62", 16)])
    number = luhn(head + some(r, DIGITS, size - 1 - len(head)))
    if wrong:
        number = number[:-1] + str((int(number[-1]) + r.randrange(1, 10)) % 10)
    join = r.choice(["", " ", "-"])
    parts = (
        (number[:4], number[4:10], number[10:]) if size == 15 else tuple(number[i : i + 4] for i in range(0, size, 4))
    )
    return join.join(parts)


def api_key(r: random.Random) -> str:
    """Keys of several services."""
    prefix, chars, size = r.choice([
        ("AKIA", string.ascii_uppercase + DIGITS, 16), ("ghp_", ALNUM, 36), ("AIza", ALNUM + "-_", 35),
        ("sk-", ALNUM, 48), ("sk-proj-", ALNUM, 60), ("hf_", string.ascii_letters, 34),
        ("xoxb-" + some(r, DIGITS, 12) + "-", ALNUM, 24),
        ("LTAI", ALNUM, 20), ("AKID", ALNUM, 32), ("sk_live_", ALNUM, 24), ("glpat-", ALNUM, 20), ("npm_", ALNUM, 36),
    ])  # fmt: skip
    return prefix + some(r, chars, size)


def private_key(r: random.Random) -> str:
    """PEM blocks of several lengths."""
    name = r.choice(["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"])
    lines = "\n".join(some(r, ALNUM + "+/", 64) for _ in range(r.randint(3, 25)))
    return f"-----BEGIN {name}-----\n{lines}\n-----END {name}-----"


POSITIVE: dict[str, Callable[[random.Random], str]] = {
    "email": email, "ip": ip, "phone": phone, "cn_mobile": cn_mobile, "cn_id": cn_id, "iban": iban,
    "credit_card": credit_card, "api_key": api_key, "private_key": private_key,
}  # fmt: skip


def isbn13(r: random.Random) -> str:
    """With its check digit, with or without hyphens."""
    body = "978" + some(r, DIGITS, 9)
    number = body + str(-sum(int(digit) * (1 + 2 * (i % 2)) for i, digit in enumerate(body)) % 10)
    return r.choice([number, f"{number[:3]}-{number[3]}-{number[4:7]}-{number[7:12]}-{number[12]}"])


def isbn10(r: random.Random) -> str:
    """With its check character."""
    body = some(r, DIGITS, 9)
    last = "0123456789X"[sum((i + 1) * int(digit) for i, digit in enumerate(body)) % 11]
    return r.choice([f"{body}{last}", f"{body[0]}-{body[1:4]}-{body[4:]}-{last}"])


def date(r: random.Random, join: str) -> str:
    """Year, month and day."""
    return join.join((str(r.randrange(1990, 2026)), f"{r.randrange(1, 13):02}", f"{r.randrange(1, 29):02}"))


def small(r: random.Random, high: int) -> str:
    """Four numbers below `high`, with full stops."""
    return ".".join(str(r.randrange(high)) for _ in range(4))


LOWER = string.ascii_lowercase
NEGATIVE: dict[str, Callable[[random.Random], str]] = {
    "version numbers": lambda r: r.choice(["version ", "v", "release ", "版本"]) + small(r, 40),
    "IPs named as versions": lambda r: r.choice(["version ", "v", "Version: ", "版本 "]) + small(r, 250),
    "chapters": lambda r: r.choice(["see section ", "chapter ", ""]) + small(r, 9),
    "private IPs": lambda r: r.choice(["192.168.", "10.7.", "127.0."]) + f"{r.randrange(256)}.{r.randrange(99)}",
    "ISBN-13": lambda r: r.choice(["ISBN ", "ISBN: ", ""]) + isbn13(r),
    "ISBN-10": lambda r: r.choice(["ISBN ", "ISBN-10: "]) + isbn10(r),
    "hashes": lambda r: some(r, HEX, r.choice([32, 40, 64])),
    "commits": lambda r: "commit " + some(r, HEX, r.choice([7, 8, 12])),
    "UUIDs": lambda r: str(uuid.UUID(int=r.getrandbits(128))),
    "MAC addresses": lambda r: ":".join(some(r, HEX, 2) for _ in range(6)),
    "times": lambda r: f"{date(r, '-')} {r.randrange(24):02}:{r.randrange(60):02}:{r.randrange(60):02}",
    "timestamps": lambda r: str(r.choice([r.randrange(10**9, 2 * 10**9), r.randrange(15 * 10**11, 19 * 10**11)])),
    "dates in one": lambda r: date(r, "") + some(r, "012", r.choice([0, 4, 6])),
    "order numbers": lambda r: r.choice(["order #", "No. ", "订单号 "]) + some(r, DIGITS, r.choice([9, 10, 12, 13])),
    "part numbers": lambda r: f"{some(r, DIGITS, 3)}-{some(r, DIGITS, 5)}-{some(r, DIGITS, 2)}",
    "cards, wrong digit": lambda r: credit_card(r, wrong=True),
    "Chinese ids, wrong digit": lambda r: cn_id(r, wrong=True),
    "IBANs, wrong digits": lambda r: iban(r, wrong=True),
    "11 digits, no mobile": lambda r: r.choice("2456789") + some(r, DIGITS, 10),
    "mobiles in longer numbers": lambda r: some(r, DIGITS, 2) + "139" + some(r, DIGITS, r.choice([9, 11])),
    "digits of numbers": lambda r: f"{r.randrange(10)}.{some(r, DIGITS, r.randint(8, 16))}",
    "amounts": lambda r: f"{r.choice('$€¥')}{r.randrange(1, 999)},{some(r, DIGITS, 3)},{some(r, DIGITS, 3)}.00",
    "ranges of years": lambda r: f"{r.randrange(1900, 1990)}-{r.randrange(1990, 2026)}",
    "coordinates": lambda r: f"{r.randrange(90)}.{some(r, DIGITS, 6)}, {r.randrange(180)}.{some(r, DIGITS, 6)}",
    "lists of numbers": lambda r: " ".join(str(r.randrange(100)) for _ in range(8)),
    "DOIs": lambda r: f"doi:10.{some(r, '123456789', 4)}/{some(r, ALNUM, 6)}.{some(r, DIGITS, 7)}",
    "image names": lambda r: f"{some(r, LOWER, 5)}@{r.choice('23')}x.{r.choice(['png', 'jpg', 'webp'])}",
    "decorators": lambda r: f"@{some(r, LOWER, 6)}.{some(r, LOWER, 4)}",
    "repositories": lambda r: f"git@{some(r, LOWER, 6)}.com:{some(r, LOWER, 5)}/{some(r, LOWER, 5)}.git",
    "programs with versions": lambda r: f"{some(r, LOWER, 6)}/{r.randrange(130)}.0.{small(r, 99)[:6]}",
    "numbers in thousands": lambda r: " ".join(some(r, "123456789", 3) for _ in range(r.randint(3, 5))),
    "local users": lambda r: f"{some(r, LOWER, 5)}@{r.choice(['localhost', 'host', 'db1'])}",
    "C++ names": lambda r: f"{some(r, 'abcdef', 3)}::{some(r, 'abcdef', 4)}",
    "package names": lambda r: f"sk-{some(r, LOWER, 5)} hf_{some(r, LOWER, 4)} AKIA",
    "certificates": lambda r: f"-----BEGIN CERTIFICATE-----\n{some(r, ALNUM, 64)}\n-----END CERTIFICATE-----",
}  # fmt: skip


def planted(r: random.Random, hosts: list[str], value: str) -> str:
    """The value in a phrase, in the middle of a passage of a real document."""
    host = r.choice(hosts)
    at = host.rfind(" ", 0, r.randrange(len(host) + 1)) + 1  # not inside of a number
    return f"{host[:at]}\n{r.choice(PHRASES).format(value)}\n{host[at:]}"


def found(texts: list[str]) -> list[tuple[dict[str, int], str]]:
    """(findings by kind, text afterwards) of each text."""
    rows, _ = PII().transform(Documents(batch_of(texts)))
    counts = rows.column("pii").to_pylist()
    return [({kind: n for kind, n in count.items() if n}, text) for count, text in
            zip(counts, rows.column("text").to_pylist(), strict=True)]  # fmt: skip


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=500, help="values per kind and per family of negatives")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    r = random.Random(arguments.seed)
    passages = [text[: 1 + len(text) % 2000] for text in documents(1200)]
    hosts = [text for (kinds, text) in found(passages) if not kinds]
    right: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for kind, make in POSITIVE.items():
        values = [make(r) for _ in range(arguments.each)]
        for value, (kinds, text) in zip(values, found([planted(r, hosts, value) for value in values]), strict=True):
            if kinds.pop(kind, 0) and value not in text:
                right[kind] += 1
            else:
                missed[kind] += 1
                examples.setdefault(f"missed {kind}", value)
            alarms.update(kinds)  # taken for something else, or found besides
    families: dict[str, Counter[str]] = {}
    for family, make in NEGATIVE.items():
        values = [make(r) for _ in range(arguments.each)]
        wrong: Counter[str] = Counter()
        for value, (kinds, _) in zip(values, found([planted(r, hosts, value) for value in values]), strict=True):
            wrong.update(kinds)
            for kind in kinds:
                examples.setdefault(f"{kind} in {family}", value)
        families[family] = wrong
        alarms.update(wrong)
    print(f"{len(hosts)} passages; {arguments.each} values of each kind, {arguments.each} of each of "
          f"{len(NEGATIVE)} families of negatives; seed {arguments.seed}\n")  # fmt: skip
    print("| kind | planted | found | recall | false alarms | precision |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        hits = right[kind]
        precision = hits / max(1, hits + alarms[kind])
        print(
            f"| {kind} | {arguments.each} | {hits} | {hits / arguments.each:.3f} | {alarms[kind]} | {precision:.3f} |"
        )
    print("\n| negatives with false alarms | of | taken for |\n|---|---|---|")
    for family, wrong in families.items():
        if wrong:
            taken = ", ".join(f"{kind} {n}" for kind, n in wrong.most_common())
            print(f"| {family} | {arguments.each} | {taken} |")
    quiet = [family for family, wrong in families.items() if not wrong]
    print(f"\nNo false alarm in: {', '.join(quiet)}.\n")
    for name, value in examples.items():
        print(f"    {name}: {value[:90]!r}")


if __name__ == "__main__":
    main()
