"""Conversations to targets, token by token, against golden files that a person has read.

tests/golden/masks.json holds per case the talk, how long rows are, and for every packed row its documents as
[token, what must be predicted at it]: "" where nothing is learned. Bytes that are no characters by themselves are <E7>.
The whole way is walked: JSONL, tokens.chat, pack.best_fit, the loader of the trainers.
"""

import json
from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.progress import Console
from pipeline.run import run
from pipeline.tokens.vocabulary import SPECIAL_TOKENS, config_json
from trainers.answers import Encoder
from trainers.batch import IGNORE, PackedRows, collate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "masks.json").read_text())
WORDS = ["user", "assistant", "system", "Hello", "Yes", "No", "Be", "kind", "cat", " cat", " sat", "你好", "猫", "\n\n"]


def word_tokenizer(folder: Path) -> str:
    """Bytes, and the words above as one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate([*SPECIAL_TOKENS, *alphabet])}
    merges = []
    for word in WORDS:
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0]
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocabulary:
                vocabulary[letters[:end]] = len(vocabulary)
                merges.append((letters[: end - 1], letters[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(config_json())
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return word_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer")


def pieces(folder):
    """The text of every token, as the golden files write it."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    from pipeline.tokens.vocabulary import byte_characters

    to_byte = {character: byte for byte, character in enumerate(byte_characters())}

    def piece(number):
        if number in loaded.all_special_ids:
            return loaded.convert_ids_to_tokens(number)
        raw = bytes(to_byte[c] for c in loaded.convert_ids_to_tokens(number))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<{byte:02X}>" for byte in raw)

    return piece


def packed(folder: Path, talks, tokenizer, seq_len):
    """The packed/ folder of a pipeline run over conversations in JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": talk}, ensure_ascii=False) for talk in talks]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n")
    steps = [
        {"crawl.corpus": {"path": str(folder / "talks.jsonl"), "text_field": "messages"}},
        {"tokens.chat": {"tokenizer": tokenizer}},
        {"pack.best_fit": {"seq_len": seq_len, "tokenizer": tokenizer}},
    ]
    run(recipes.from_mapping({"steps": steps, "workers": 0}), str(folder / "run"), console=Console(quiet=True))
    return str(folder / "run" / "packed")


def told(folder, tokenizer):
    """Per row, per document, [token, its target or ""], from the batch that a trainer gets."""
    data, piece = PackedRows(folder), pieces(tokenizer)
    rows = data.read(0, data.rows)
    batch = collate(rows)
    out = []
    for row, lengths in enumerate(rows.doc_lengths):
        documents, begin = [], 0
        for number, size in enumerate(lengths.tolist()):
            here = slice(begin, begin + size)
            assert set(batch.doc_index[row, here].tolist()) == {number}
            assert batch.position_ids[row, here].tolist() == list(range(size))
            targets = batch.targets[row, here].tolist()
            ids = batch.input_ids[row, here].tolist()
            documents.append([[piece(i), "" if t == IGNORE else piece(t)] for i, t in zip(ids, targets, strict=True)])
            begin += size
        assert (batch.targets[row, begin:] == IGNORE).all()
        out.append(documents)
    return out


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_every_token_has_the_target_that_was_written_down(case, tokenizer, tmp_path):
    assert told(packed(tmp_path, case["talks"], tokenizer, case["seq_len"]), tokenizer) == case["rows"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_what_is_learned_reads_as_the_answers(case, tokenizer):
    """A check of the golden files themselves: all targets of a whole conversation are its assistant's words.

    (`learned` says so where a token across the seam has the template's newline in it.)
    """
    if case["name"].startswith("truncated"):
        return
    said = [[t for _, t in document if t] for row in case["rows"] for document in row]
    expected = [
        "".join(f"{m['content']}<|im_end|>" for m in talk if m["role"] == "assistant") for talk in case["talks"]
    ]
    assert sorted(as_text(one) for one in said) == sorted(case.get("learned", expected))


def as_text(tokens):
    """Tokens as the golden files write them, joined, with bytes made characters again."""
    raw = b""
    for token in tokens:
        if len(token) % 4 == 0 and token.startswith("<") and all(token[i + 3] == ">" for i in range(0, len(token), 4)):
            raw += bytes(int(token[i + 1 : i + 3], 16) for i in range(0, len(token), 4))
        else:
            raw += token.encode()
    return raw.decode()


@pytest.mark.parametrize(
    "case",
    [c for c in GOLDEN if c["name"] in ("single turn", "system prompt", "Chinese", "seam")],
    ids=lambda c: c["name"],
)
def test_the_encoder_of_judged_answers_learns_the_same_tokens(case, tokenizer):
    from transformers import AutoTokenizer

    *prompt, answer = case["talks"][0]
    one = Encoder(AutoTokenizer.from_pretrained(tokenizer))(prompt, answer["content"])
    piece = pieces(tokenizer)
    found = [piece(number) for number, on in zip(one.ids, one.mask, strict=True) if on]
    assert found == [target for _, target in case["rows"][0][0] if target]
    assert [piece(number) for number in one.ids] == [token for token, _ in case["rows"][0][0]][: len(one.ids)]
