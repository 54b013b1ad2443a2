"""A small PACKED data set of a synthetic language, written by the schema as the pipeline would write it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema import DATASET_FILE, DATASET_FORMAT, packed_schema

SEQ_LEN, VOCABULARY = 64, 300


def write_packed(
    folder: Path,
    rows: int = 200,
    *,
    seq_len: int = SEQ_LEN,
    seed: int = 0,
    shards: int = 3,
    validation: int = 24,
    learned=None,
) -> Path:
    """dataset.json, tokenizer/ and shards with several row groups each; documents of 3 to 40 tokens.

    `learned(row, size)` gives the 0s and 1s of a document's loss_mask; without it there is no mask.
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(folder / "tokenizer")
    rng = np.random.default_rng(seed)
    following = np.random.default_rng(99).integers(4, VOCABULARY, (VOCABULARY, 3))
    about = {
        "format": DATASET_FORMAT,
        "seq_len": seq_len,
        "vocab_size": VOCABULARY,
        "pad_id": 0,
        "eos_id": 1,
        "tokenizer": "tokenizer",
        "tokenizer_hash": tokenizer,
        "sources": {},
        "fingerprint": f"test-{seed}",
    }
    about |= _split(folder, "train", rows, shards, rng, following, seq_len, learned)
    about["validation"] = _split(folder, "validation", validation, 1, rng, following, seq_len, learned)
    about["documents"] = about["rows"]
    (folder / DATASET_FILE).write_text(json.dumps(about))
    return folder


def _split(folder: Path, name: str, rows: int, shards: int, rng, following, seq_len: int, learned) -> dict:
    schema = packed_schema(seq_len, VOCABULARY, loss_mask=learned is not None)
    entries, tokens = [], 0
    for shard, numbers in enumerate(np.array_split(np.arange(rows), shards)):
        ids, lengths, doc_ids, masks = [], [], [], []
        for row in numbers:
            values, of_row = [], []
            while seq_len - len(values) >= 3 and rng.random() < 0.95:
                size = int(min(rng.integers(3, 41), seq_len - len(values)))
                document = [int(rng.integers(4, VOCABULARY))]
                while len(document) < size - 1:
                    document.append(int(following[document[-1], rng.integers(0, 3)]))
                values += [*document, 1]
                of_row.append(size)
            if not of_row:
                values, of_row = [5, 6, 1], [3]
            ids.append(values + [0] * (seq_len - len(values)))
            lengths.append(of_row)
            doc_ids.append([hashlib.md5(f"{name}{row}/{i}".encode()).digest() for i in range(len(of_row))])
            if learned is not None:
                mask = [one for size in of_row for one in learned(row, size)]
                masks.append(mask + [0] * (seq_len - len(mask)))
        columns = {"input_ids": ids, "doc_lengths": lengths, "doc_ids": doc_ids}
        table = pa.table(columns | ({"loss_mask": masks} if masks else {}), schema=schema)
        path = f"{name}-{shard:05d}.parquet"
        pq.write_table(table, folder / path, row_group_size=17)
        used = sum(map(sum, lengths))
        entries.append({"path": path, "rows": len(numbers), "tokens": used})
        tokens += used
    return {"rows": rows, "tokens": tokens, "shards": entries}


def _tokenizer(folder: Path) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<unk1>", "<unk2>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the hat of the cat was flat"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder)
    return hashlib.blake2b((folder / "tokenizer.json").read_bytes(), digest_size=16).hexdigest()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory) -> str:
    """A folder with a byte-level tokenizer that has a ChatML template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    _tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


WORDS = ["hat", "mat", "dog", "sun", "sea"]


def write_preferences(path: Path, prompts: int = 60, *, answers: int = 2, seed: int = 0) -> str:
    """JSONL of prompts whose better answers hold more cats."""
    rng = np.random.default_rng(seed)
    with path.open("w") as out:
        for number in range(prompts):
            asked, other = "cat", rng.choice(WORDS)
            texts = []
            for good in range(answers - 1, -1, -1):
                words = [asked] * good + [other] * (answers - 1 - good) + ["end"] * int(rng.integers(1, 4))
                texts.append(" ".join(words))
            raw = {"prompt": f"say {other} {number}"}
            raw |= {"chosen": texts[0], "rejected": texts[1]} if answers == 2 else {"answers": texts}
            out.write(json.dumps(raw) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def preference_writer():
    """write_preferences(path, …)"""
    return write_preferences


@pytest.fixture(scope="session")
def preferences(chat_tokenizer, tmp_path_factory) -> Path:
    """Packed pairs, several prompts in a row."""
    from trainers.answers import write_answers

    folder = tmp_path_factory.mktemp("preferences")
    source = write_preferences(folder / "pairs.jsonl", 120)
    write_answers(source, chat_tokenizer, str(folder / "packed"), seq_len=192, validation=0.15)
    return folder / "packed"


@pytest.fixture(scope="session")
def packed_writer():
    """write_packed(folder, rows, …), for tests that need several data sets."""
    return write_packed


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    return write_packed(tmp_path_factory.mktemp("data") / "packed")


@pytest.fixture(scope="session")
def local_ray(ray_cluster):
    """The session's Ray."""


@pytest.fixture(scope="session")
def crew(local_ray):
    """Workers that stay for all tests that do not need fresh processes: importing torch and the rest takes seconds."""
    from trainers.workers import Crew

    with Crew() as one:
        yield one


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of prompts to learn from own answers with."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = ({"prompt": f"say {n}", "answer": "7", "pattern": "a"} for n in range(48))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


TINY = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64}


@pytest.fixture
def recipe(packed):
    """A recipe for some seconds of training; call it with changes."""

    def make(**changes):
        base = {
            "data": str(packed),
            "model": TINY,
            "schedule": {"rate": 1e-2, "warmup": 2},
            "steps": 8,
            "batch_rows": 12,
            "micro_rows": 3,
            "workers": 1,
            "device": "cpu",
            "objective": {"validation_rows": 24},
        }
        return {**base, **changes}

    return make
