"""Tokenizers: encoding speed and equality of ids beside other libraries, training speed, speed of the whole step.

    python benchmarks/bench_tokens.py encode [--megabytes 8] [--text FILE …] [--vocab 32000]
    python benchmarks/bench_tokens.py train [--megabytes 100]
    python benchmarks/bench_tokens.py fertility
    python benchmarks/bench_tokens.py steps

One core (RAYON_NUM_THREADS=1), CPU seconds; encoders in turns, best of three, trainers once. Without --text the
documents are those of ../shared/data (guides in ten languages, Chinese poems, C4, Wikipedia); a Parquet file given
there is read by its column `text`; where all that is not enough, Python source files follow. Libraries that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.step import string_buffers
from pipeline.tokens.byte_bpe import ByteBPE
from pipeline.tokens.train_bpe import train_bpe
from pipeline.tokens.vocabulary import byte_characters


def real_documents(files: list[str], megabytes: float) -> list[str]:
    """Documents up to that size in all, in an order by a fixed seed.

    Without files: those of ../shared/data. Parquet files give their column `text`. When that is not enough, the Python
    files of the installed packages follow.
    """
    documents = []
    for file in files:
        if file.endswith(".parquet"):
            documents.extend(pq.read_table(file, columns=["text"])["text"].to_pylist())
        else:
            documents.append(Path(file).read_text("utf-8", "replace"))
    if not files:
        from tests.pipeline.tokens.real_text import documents as shared_documents

        documents = [text for _, text in shared_documents()]
    size = sum(len(text.encode()) for text in documents)
    for path in sorted(Path(np.__file__).parents[1].rglob("*.py")):
        if size > megabytes * 1e6:
            break
        documents.append(path.read_text("utf-8", "replace"))
        size += len(documents[-1].encode())
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    chosen: list[str] = []
    size = 0
    for number in order:
        size += len(documents[number].encode())
        if size > megabytes * 1e6:
            break
        chosen.append(documents[number])
    return chosen


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def encoders(spec: dict[str, Any]) -> Iterator[tuple[str, Callable[[list[str]], list[list[int]]]]]:
    """(name, function from texts to ids) of every library that is here."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_str(json.dumps(spec))
    reference.encode_special_tokens = True
    yield (
        "tokenizers encode_batch_fast",
        lambda texts: [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)],
    )
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    ranks = {
        bytes(to_byte[c] for c in text): number
        for text, number in spec["model"]["vocab"].items()
        if text not in special
    }
    pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    try:
        import tiktoken

        other = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        yield f"tiktoken {tiktoken.__version__}", lambda texts: [other.encode_ordinary(text) for text in texts]
    except ImportError:
        pass
    try:
        import riptoken

        core = riptoken.CoreBPE(ranks, special, pattern)
        yield "riptoken", lambda texts: [core.encode_ordinary(text) for text in texts]
    except ImportError:
        pass


def bench_encode(texts: list[str], vocab_size: int) -> None:
    size = sum(len(text.encode()) for text in texts)
    spec = json.loads(train_bpe(iter(texts), vocab_size=vocab_size).to_str())
    kernel = ByteBPE(spec)
    offsets, data = string_buffers(pa.array(texts, pa.large_string()))
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    kernel.encode(offsets[:2], data, 0, dtype)
    libraries = dict(encoders(spec))
    times: dict[str, list[float]] = {name: [] for name in ["ours, cold cache", "ours, warm cache", *libraries]}
    found: dict[str, list[list[int]]] = {}
    for _ in range(3):
        kernel.cache[:] = 0
        for name in ("ours, cold cache", "ours, warm cache"):
            seconds, (ids, ends) = cpu_seconds(lambda: kernel.encode(offsets, data, 0, dtype))
            times[name].append(seconds)
        for name, encode in libraries.items():
            seconds, found[name] = cpu_seconds(lambda: encode(texts))  # noqa: B023
            times[name].append(seconds)
    starts = [0, *ends[:-1].tolist()]
    ours = [ids[start : end - 1].tolist() for start, end in zip(starts, ends.tolist(), strict=True)]
    reference = found["tokenizers encode_batch_fast"]
    slow = min(times["tokenizers encode_batch_fast"])
    print(f"\n{len(texts):,} documents, {size / 1e6:.1f} MB, {len(ids):,} tokens, vocabulary {vocab_size:,}\n")
    print("| encoder | MB/s per core | times tokenizers | documents with equal ids |\n|---|---|---|---|")
    for name, seconds in times.items():
        equal = sum(a == b for a, b in zip(found.get(name, ours), reference, strict=True))
        print(f"| {name} | {size / min(seconds) / 1e6:.1f} | {slow / min(seconds):.1f} | {equal / len(texts):.2%} |")


def bench_train(texts: list[str], vocab_size: int, only: str = "") -> None:
    size = sum(len(text.encode()) for text in texts)
    train_bpe(iter(texts[:2]), vocab_size=400)
    print(
        f"\nTraining {vocab_size:,} tokens on {size / 1e6:.0f} MB\n\n| trainer | CPU seconds | MB/s |\n|---|---|---|",
        flush=True,
    )
    made = {}
    for name, work in trainers(texts, vocab_size):
        if only and not name.startswith(only):
            continue
        seconds, made[name] = cpu_seconds(work)
        print(f"| {name} | {seconds:.1f} | {size / seconds / 1e6:.1f} |", flush=True)
    both = [json.loads(made[name].to_str())["model"] for name in list(made)[:2] if "byte-level" in name]
    if len(both) == 2:
        print(f"\nVocabulary and merges of the first two are {'equal' if both[0] == both[1] else 'DIFFERENT'}.")


def trainers(texts: list[str], vocab_size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function that trains) of every library that is here."""
    from pipeline.tokens.byte_bpe import split_pattern
    from pipeline.tokens.train_sentencepiece import train_sentencepiece
    from tests.pipeline.kernels.test_bpe_train import trained_by_tokenizers

    yield "ours, byte-level BPE", lambda: train_bpe(iter(texts), vocab_size=vocab_size)
    yield "tokenizers, byte-level BPE", lambda: trained_by_tokenizers(texts, vocab_size)
    try:
        import rustbpe

        yield (
            "rustbpe",
            lambda: rustbpe.Tokenizer().train_from_iterator(
                iter(texts), vocab_size, pattern=split_pattern("thousands")
            ),
        )
    except ImportError:
        pass
    yield "sentencepiece, BPE", lambda: train_sentencepiece(iter(texts), vocab_size=vocab_size, model="bpe")


def bench_fertility(vocab_size: int) -> None:
    """A tokenizer of our own beside GPT-NeoX's, per language; measured on documents that were not trained on."""
    import lzma

    from tokenizers import Tokenizer

    from pipeline.tokens import fertility
    from tests.pipeline.tokens.real_text import DATA
    from tests.pipeline.tokens.real_text import documents as shared_documents

    rows = shared_documents()
    held = [row for number, row in enumerate(rows) if number % 50 == 0]
    ours = train_bpe((text for number, (_, text) in enumerate(rows) if number % 50), vocab_size=vocab_size)
    neox = json.loads(lzma.decompress((DATA / "tokenizer" / "gpt_neo_tokenizer.json.xz").read_bytes()))
    tokenizers = {f"ours, {vocab_size:,}": ours, "GPT-NeoX, 50,280": Tokenizer.from_str(json.dumps(neox))}
    counts = fertility.count(((source, None, text) for source, text in held), tokenizers)
    print("\n" + "\n".join(fertility.lines(fertility.report(counts))))


def bench_steps(texts: list[str], vocab_size: int) -> None:
    """The steps as the engine calls them, Arrow batches in and out."""
    import tempfile

    from pipeline.step import Documents
    from pipeline.tokens.encode import Encode
    from pipeline.tokens.fim import FIM
    from pipeline.tokens.vocabulary import config_json
    from tests.pipeline.tokens.real_text import document_table

    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(iter(texts), vocab_size=vocab_size).save(f"{folder}/tokenizer.json")
        Path(folder, "tokenizer_config.json").write_text(config_json())
        rows = document_table([("text", text) for text in texts]).combine_chunks().to_batches(max_chunksize=1000)
        print("\n| step | MB/s of text per core |\n|---|---|")
        for name, step in (
            ("tokens.encode, 0.2 % verified", Encode()),
            ("tokens.encode, encoder: huggingface", Encode(encoder="huggingface")),
            ("tokens.fim, rate 0.5", FIM(rate=0.5)),
        ):
            step.warm({"tokenizer": folder})
            step.transform(Documents(rows[0]))
            seconds, out = cpu_seconds(lambda: [step.transform(Documents(batch))[0] for batch in rows])  # noqa: B023
            print(f"| {name} | {size / seconds / 1e6:.1f} |", flush=True)
            if name.startswith("tokens.encode, 0"):
                encoded = out
            rows = encoded if name.endswith("huggingface") else rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encode", "train", "fertility", "steps"))
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--only", default="", help="train: only trainers whose name begins so")
    options = parser.parse_args()
    chosen = real_documents(options.text, options.megabytes)
    if options.what == "encode":
        bench_encode(chosen, options.vocab)
    elif options.what == "fertility":
        bench_fertility(options.vocab)
    elif options.what == "steps":
        bench_steps(chosen, options.vocab)
    else:
        bench_train(chosen, options.vocab, options.only)
