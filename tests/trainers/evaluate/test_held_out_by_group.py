"""Held-out figures by source and language, from a corpus of two languages through the pipeline to a trained model."""

import json
import math
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from trainers.batch import PackedRows
from trainers.evaluate.held_out import MOST_GROUPS, HeldOut, token_bytes
from trainers.log import read_metrics
from trainers.model import ModelSettings, PackedLM, build
from trainers.ranks import Ranks
from trainers.roles import Frozen
from trainers.train import train

ENGLISH = ["the", "river", "runs", "past", "old", "houses", "and", "under", "bridges", "where", "children", "play"]
CHINESE = ["河水", "流过", "古老的", "房子", "孩子们", "在", "桥下", "玩耍", "喜欢", "夜晚", "，", "。"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Packed rows of two sources, each in two languages, labelled by filters.language; rows hold several documents."""
    from pipeline import recipe
    from pipeline.run import run

    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    documents = []
    for number in range(300):
        words, glue = ((ENGLISH, " "), (CHINESE, ""))[number % 2]
        text = glue.join(rng.choice(words, int(rng.integers(12, 60))))
        documents.append({"text": text, "source": ("web", "books")[number // 2 % 2]})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    steps = [
        {"crawl.corpus": {"path": str(folder / "corpus.jsonl"), "source_field": "source"}},
        {"filters.language": {}},
        {"tokens.train_bpe": {"vocab_size": 500}},
        {"tokens.encode": {}},
        {"pack.best_fit": {"seq_len": 128, "validation_share": 0.2}},
    ]
    run(recipe.from_mapping({"steps": steps, "workers": 0}), str(folder / "out"))
    return folder / "out" / "packed"


def told_by_hand(folder, lm):
    """{"COLUMN/VALUE": (Σ −ln p, targets, bytes)} of the validation split, one document after the other."""
    from transformers import AutoTokenizer

    about = json.loads((folder / "dataset.json").read_text())
    sizes, tokenizer = token_bytes(PackedRows(str(folder))), AutoTokenizer.from_pretrained(folder / "tokenizer")
    sums = defaultdict(lambda: np.zeros(3))
    for shard in about["validation"]["shards"]:
        for row in pq.read_table(folder / shard["path"]).to_pylist():
            start = 0
            for number, length in enumerate(row["doc_lengths"]):
                ids = torch.tensor(row["input_ids"][start : start + length])
                start += length
                with torch.no_grad():
                    logits = lm(input_ids=ids[None]).logits[0, :-1].double()
                text = tokenizer.decode(ids[:-1]).encode()
                told = [
                    float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")),
                    length - 1,
                    len(text) - int(sizes[ids[0]]),  # nothing predicts the first token
                ]
                for column in ("source", "language"):
                    sums[f"{column}/{row[f'group_{column}'][number]}"] += told
                sums[""] += told
    return dict(sums)


def test_a_run_tells_loss_and_bits_per_byte_of_every_source_and_language(mixed, crew, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForCausalLM

    model = {"hidden_size": 32, "layers": 1, "heads": 4, "intermediate_size": 64}
    settings = {"batch_rows": 8, "micro_rows": 2, "steps": 6, "validate_every": 3, "objective": {"validation_rows": 0}}
    train({"data": str(mixed), "model": model, "workers": 2, "export": True, **settings}, str(tmp_path), crew=crew)
    measured = [line for line in read_metrics(str(tmp_path)) if "validation" in line]
    assert [line["step"] for line in measured] == [3, 6]
    expected = told_by_hand(mixed, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert expected.keys() == {"", "source/web", "source/books", "language/en", "language/zh"}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, (total, count, size) in expected.items():
        column, slash, value = name.partition("/")
        key = f"validation_{column}" if column else "validation"
        assert measured[1][f"{key}{slash}{value}"] == pytest.approx(total / count, rel=1e-5)
        assert measured[1][f"{key}_bpb{slash}{value}"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
        assert [event.step for event in board.Scalars(f"{key}_bpb{slash}{value}")] == [3, 6]
    for column in ("source", "language"):
        parts = [(n, sums) for n, sums in expected.items() if n.startswith(column)]
        whole = sum(measured[1][f"validation_{name}"] * count for name, (_, count, _) in parts)
        assert whole / expected[""][1] == pytest.approx(measured[1]["validation"], rel=1e-9)
    assert "held out by language: bits per byte" in (tmp_path / "report.html").read_text()


def measured(folder, *, rank=0, world=1, groups=None):
    data = PackedRows(str(folder), "validation")
    if groups is not None:
        data.about = {**data.about, "groups": groups}
    lm = build(ModelSettings(hidden_size=32, layers=1, heads=2), vocab_size=500, seq_len=128, seed=0, pad=0, eos=1)
    held = HeldOut(data, rows=0, micro_rows=3, ranks=Ranks(rank, world, torch.device("cpu")))
    return held.measure(Frozen(PackedLM(lm), torch.device("cpu"), torch.float64))


def test_data_packed_without_groups_has_the_same_figure_of_all_and_no_other(mixed):
    assert measured(mixed, groups=[]) == {"": measured(mixed)[""]}


def test_a_column_with_one_value_has_no_figures_of_its_own_and_a_null_is_unknown(mixed, tmp_path):
    import shutil

    folder = tmp_path / "packed"
    shutil.copytree(mixed, folder)
    for path in folder.glob("validation-*.parquet"):
        table = pq.read_table(path)
        for name, value in (("group_source", lambda _: "web"), ("group_language", lambda v: None if v == "zh" else v)):
            column = [[value(one) for one in row] for row in table.column(name).to_pylist()]
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [column])
        pq.write_table(table, path)
    found = measured(folder)
    assert found.keys() == {"", "language/en", "language/unknown"}
    assert found["language/unknown"] == measured(mixed)["language/zh"]


def test_of_many_values_the_rarest_are_told_as_other(mixed, tmp_path):
    import shutil

    folder = tmp_path / "packed"
    shutil.copytree(mixed, folder)
    seen = 0
    for path in folder.glob("validation-*.parquet"):
        table = pq.read_table(path)
        rows = table.column("group_source").to_pylist()
        column = []
        for row in rows:
            column.append([f"site{min(seen + i, 30 + (seen + i) % 2)}" for i in range(len(row))])
            seen += len(row)
        place = table.schema.get_field_index("group_source")
        pq.write_table(table.set_column(place, table.schema.field(place), [column]), path)
    found = measured(folder)
    sites = [name for name in found if name.startswith("source/")]
    assert len(sites) == MOST_GROUPS
    assert {"source/site30", "source/site31", "source/other"} <= set(sites)
    assert found[""] == measured(mixed)[""]
