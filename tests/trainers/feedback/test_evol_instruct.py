"""Evol-Instruct: each rule of elimination, and a whole synthesis that is cut off and goes on."""

import json

import pyarrow.parquet as pq
import pytest

from trainers.answers import read_examples
from trainers.feedback.evol_instruct import BROADER, DEEPER, WAYS, EvolInstruct, eliminated, evol_instruct
from trainers.feedback.writer import Model


@pytest.mark.parametrize(
    ("after", "answer", "equal", "why"),
    [
        ("Name three cats that swim.", "Maine coons, vans and bengals.", False, None),
        ("name three CATS!", "Maine coons.", False, "no_gain"),
        ("Name three felines.", "Maine coons.", True, "no_gain"),
        ("", "Maine coons.", False, "no_gain"),
        ("New instruction: name three old cats.", "Maine coons.", False, "copied"),
        ("Name the cats of Atlantis.", "I am sorry, I do not know any.", False, "too_hard"),
        ("Name the cats of Atlantis.", "Sorry, " + "it is long " * 40, False, None),
        ("Name three cats that swim.", "... !", False, "empty_answer"),
        ("Name three cats that swim.", "It is what it is.", False, "empty_answer"),
    ],
)
def test_failed_rewritings_are_eliminated(after, answer, equal, why):
    assert eliminated("Name three cats.", after, answer, equal, 80) == why


class Rewrites:
    """Adds a word per rewriting; never gains anything on instructions with `stuck`."""

    name = "rewrites"

    def __init__(self, dies_after=10**9):
        self.asked, self.left = 0, dies_after

    def write(self, chats, draw):
        found = []
        for chat in chats:
            self.asked, self.left = self.asked + 1, self.left - 1
            if self.left < 0:
                raise KeyboardInterrupt
            text = chat[-1]["content"]
            if text.startswith(("Make the instruction", "Write one new")):
                old = text.rpartition("Instruction: ")[2]
                found.append([old + (" and why" if text.startswith("Make") else " elsewhere")])
            elif text.startswith("Do these two"):
                found.append(["Equal" if "stuck" in text else "Not equal"])
            else:
                found.append([f"answer to {text}"])
        return found


def test_an_interrupted_evolution_ends_with_the_same_records(tmp_path):
    seeds = tmp_path / "seeds.jsonl"
    lines = [{"instruction": f"Explain tide {i}"} for i in range(9)] + [{"prompt": "stuck here"}]
    seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = EvolInstruct(seeds=str(seeds), writer=Model(folder="none"), epochs=3, chunk=4)
    whole = Rewrites()
    figures = evol_instruct(settings, str(tmp_path / "whole"), whole)
    assert figures == {"seeds": 10, "instructions": 10 + 3 * 9, "epochs": 3, "eliminated": {"no_gain": 3}}
    with pytest.raises(KeyboardInterrupt):
        evol_instruct(settings, str(tmp_path / "cut"), Rewrites(dies_after=55))
    rest = Rewrites()
    assert evol_instruct(settings, str(tmp_path / "cut"), rest) == figures
    assert 0 < rest.asked < whole.asked - 30
    name = "instructions.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = list(read_examples(str(tmp_path / "whole" / name)))
    assert pq.read_table(tmp_path / "whole/instructions.parquet").num_rows == len(rows)
    last = [row for row in rows if row["lineage"]["epoch"] == 3]
    assert len({row["lineage"]["way"] for row in rows} - {None}) > 3
    for row in last:
        text = row["messages"][0]["content"]
        assert text.count(" and why") + text.count(" elsewhere") == 3  # each epoch rewrites what the one before made
        assert row["messages"][1]["content"] == f"answer to {text}"
    assert {row["lineage"]["seed"] for row in rows if row["lineage"]["epoch"] == 0} == set(range(10))


def test_every_way_has_its_own_question():
    assert len(set(WAYS.values())) == 6
    assert "{how}" in DEEPER
    assert "{how}" not in BROADER
