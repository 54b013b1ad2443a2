"""What DataComp-LM's filters measure of a text, written down plainly from its published code (heuristic filters of
the RefinedWeb baseline). Needs uniseg, which it splits words with."""

from __future__ import annotations

from collections import Counter

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def quality(text: str) -> dict[str, float | None]:
    """The scores that its Gopher quality filters compare with their bounds; None where they drop the page at once."""
    words = text.split()
    lines = [line for part in text.split("\n") if (line := part.strip())]
    blanks = "\t\v\f\r\n\0"
    tokens = text.translate(str.maketrans(blanks, " " * len(blanks))).split(" ")  # fastText's own tokenizer
    return {
        "n_words": sum(token[0].isalnum() for token in tokens if token),
        "mean_word_length": _share(sum(map(len, words)), len(words)),
        "hash_ratio": _share(sum(text.count(sign) for sign in ("#", "...", ". . .", "…")), len(words)),
        "bullet_lines": _share(sum(line.startswith(("●", "•", "*", "-")) for line in lines), len(lines)),
        "ellipsis_lines": _share(sum(line.endswith(("...", ". . .", "…")) for line in lines), len(lines)),
        "alpha_words": _share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": sum(word.lower() in STOP_WORDS for word in words),
    }


def repetition(text: str) -> dict[str, float | None]:
    """The shares that its repetition filters compare with their bounds; None where there is nothing to measure."""
    from uniseg.wordbreak import words as split

    out: dict[str, float | None] = {}
    for name, separator in (("line", "\n"), ("para", "\n\n")):
        parts = Counter(part for piece in text.split(separator) if (part := piece.strip()))
        again = {part: count for part, count in parts.items() if count > 1}
        out[f"dup_{name}_frac"] = _share(sum(again.values()), sum(parts.values()))
        chars = sum(len(part) * count for part, count in parts.items())
        out[f"dup_{name}_char_frac"] = _share(sum(len(part) * count for part, count in again.items()), chars)
    words = [word for word in split(text) if word[0].isalnum()]
    total = sum(map(len, words))
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        if n < 5:
            longest = max((sum(map(len, gram)) for gram, count in counts.items() if count == most), default=0)
            out[f"top_{n}_gram"] = _share(longest * most if most > 1 else 0, total)
        else:
            marked = {k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(i, i + n)}
            out[f"dup_{n}_gram"] = _share(sum(len(words[k]) for k in marked), total)
    return out
