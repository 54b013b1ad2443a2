"""Rules of a user's own, for the tests of filters.python."""


def shouting(doc):
    return "too_shouty" if doc["text"].isupper() else None


def shouting_batch(batch):
    return ["too_shouty" if text.isupper() else None for text in batch.column("text").to_pylist()]


def seven(doc):
    return 7


def too_few(batch):
    return []


def never(doc):
    return None
