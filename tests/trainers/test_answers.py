"""Judged answers: every usual shape, token by token, and whole prompts in rows."""

import gzip
import json
import lzma

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError
from trainers.answers import NO, YES, Encoder, judged, read_examples, write_answers
from trainers.batch import PackedRows, collate, shared_out
from trainers.mixture import Mixture, Part

ASKED = [{"role": "user", "content": "Which?"}]
A, B = ([*ASKED, {"role": "assistant", "content": text}] for text in "ab")
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Whi"}, {"type": "text", "text": "ch?"}]}]


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Which?", "chosen": "good", "rejected": "bad"},
        {"prompt": ASKED, "chosen": {"role": "assistant", "content": "good"}, "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "Which?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {
            "chosen": [*ASKED, {"role": "assistant", "content": "good"}],
            "rejected": [*ASKED, {"role": "assistant", "content": "bad"}],
        },
        {"chosen": "\n\nHuman: Which?\n\nAssistant: good", "rejected": "\n\nHuman: Which?\n\nAssistant: bad"},
    ],
)
def test_every_shape_of_a_pair_says_the_same(raw):
    found = judged(raw)
    assert (found.prompt, found.answers) == (ASKED, ["good", "bad"])
    assert (found.scores, found.desirable) == ([1.0, 0.0], [YES, NO])


def test_rankings_scores_labels_and_steps_are_understood():
    ranked = judged({"prompt": "Which?", "answers": ["a", "b", "c"], "ranks": [2, 1, 2]})
    assert (ranked.scores, ranked.desirable) == ([-2.0, -1.0, -2.0], [NO, YES, NO])
    assert judged({"prompt": "Which?", "answers": ["a", "b"]}).scores == [-1.0, -2.0]
    assert judged({"prompt": "Which?", "answers": ["a", "b"], "scores": [0.5, 3]}).desirable == [NO, YES]
    liked = judged({"messages": [*ASKED, {"role": "assistant", "content": "good"}], "label": True})
    assert (liked.prompt, liked.answers, liked.desirable) == (ASKED, ["good"], [YES])
    steps = judged({"prompt": "Which?", "steps": ["one", "two"], "labels": [1, 0]})
    assert (steps.answers, steps.steps, steps.desirable) == (["one\ntwo"], [[("one", YES), ("two", NO)]], [NO])
    with pytest.raises(ValueError, match="2 answers, 1 scores"):
        judged({"prompt": "x", "answers": ["a", "b"], "scores": [1]})


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"instruction": "Which", "input": "one?", "chosen": "a", "rejected": "b"}, ("Which\n\none?", ["a", "b"])),
        ({"question": "Which?", "answers": ["a", "b"]}, ("Which?", ["a", "b"])),
        ({"prompt": "Which?", "answers": [{"role": "assistant", "content": "a"}, B]}, ("Which?", ["a", "b"])),
        ({"prompt": "Which?", "response": "a", "label": False}, ("Which?", ["a"])),
        ({"prompt": PARTS, "chosen": "a", "rejected": "b"}, ("Which?", ["a", "b"])),
        ({"prompt": ASKED, "chosen": A, "rejected": B}, ("Which?", ["a", "b"])),
        ({"prompt": "Which?", "chosen": "a\ud800", "rejected": ""}, ("Which?", ["a\ufffd", ""])),
    ],
)  # fmt: skip
def test_other_shapes_that_people_have_are_read_as_they_are_meant(raw, found):
    example = judged(raw)
    assert ([message["content"] for message in example.prompt], example.answers) == ([found[0]], found[1])


@pytest.mark.parametrize(
    ("label", "meant"),
    [(True, YES), (1, YES), ("true", YES), ("+", YES), (False, NO), (0, NO), (-1, NO), ("False", NO), ("-", NO)],
)
def test_a_label_means_what_it_says(label, meant):
    assert judged({"prompt": "x", "completion": "y", "label": label}).desirable == [meant]
    steps = judged({"prompt": "x", "steps": ["a", "b", "c"], "labels": [1, label, None]})
    assert [each for _, each in steps.steps[0]] == [YES, meant, 0]
    assert steps.desirable == [meant]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"prompt": "x", "completion": "y", "label": "maybe"}, "a label is true or false"),
        ({"prompt": "x", "text": "y", "label": True}, "no completion among"),
        ({"prompt": "x", "completion": "y"}, "none of chosen and rejected, answers, label, labels among"),
        ({"prompt": "x", "chosen": None, "rejected": "y"}, "an answer is text or messages"),
        ({"prompt": "x", "answers": ["a", "b"], "scores": [float("nan"), 1]}, "scores must be finite"),
        ({"prompt": "x", "steps": ["a", " "], "labels": [1, 0]}, "a step without text"),
        ({"prompt": "x", "steps": ["a", "b"], "labels": [1]}, "argument 2 is shorter"),
        ({"prompt": "other", "chosen": A, "rejected": B}, "another one than"),
        ({"prompt": "x", "chosen": ASKED, "rejected": "b"}, "the last turns are by user and assistant"),
        ({"title": "x", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"messages": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "null instead of a text"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_the_reason(raw, why):
    with pytest.raises(ValueError, match=why):
        judged(raw)


def test_templates_that_refuse_turns_or_end_none_are_taken_as_they_are(chat_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    one = Encoder(tokenizer)(ASKED, "the cat")
    assert one.ids[-1] == tokenizer.eos_token_id  # nothing else says that the answer ends
    assert tokenizer.decode([i for i, on in zip(one.ids, one.mask, strict=True) if on]) == " the cat\n\n<eos>"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines = [
        {"prompt": "x", "chosen": "a", "rejected": "b"},
        {"prompt": "x", "system": "s", "chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)))
    about = write_answers(str(tmp_path / "raw.jsonl"), str(tmp_path / "tokenizer"), str(tmp_path / "out"), validation=0)
    assert about["refused"] == {"bad_example": 1}
    assert about["refused_first"]["bad_example"].endswith("the chat template refuses it: no system turn")


def test_an_answer_forges_no_turn_and_a_step_is_found(chat_tokenizer):
    from transformers import AutoTokenizer

    encoder = Encoder(AutoTokenizer.from_pretrained(chat_tokenizer))
    with pytest.raises(ValueError, match=r"spells out the special token <\|im_end\|>"):
        encoder(ASKED, "a<|im_end|>\nb")
    with pytest.raises(ValueError, match="does not write the step 'dog'"):
        encoder(ASKED, "the cat", [("dog", YES)])


@pytest.mark.parametrize("answer", ["the cat", "\n\nthe cat", "猫 sat", "", "é\nth"])
def test_the_answer_is_marked_token_by_token_and_no_seam_token_is_lost(chat_tokenizer, answer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    prompt = [{"role": "system", "content": "be kind"}, *ASKED]
    one = Encoder(tokenizer)(prompt, answer)
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    assert one.ids == tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    learned = [i for i, m in zip(one.ids, one.mask, strict=True) if m]
    said = tokenizer.decode(learned)
    assert said.endswith(f"{answer}<|im_end|>")
    assert said.removesuffix(f"{answer}<|im_end|>").strip() == ""
    assert one.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sorted(one.mask) == one.mask


def test_a_step_is_labelled_at_its_last_token(chat_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    one = Encoder(tokenizer)(ASKED, "the cat\nthe hat sat\nmat", [("the cat", YES), ("the hat sat", NO), ("mat", YES)])
    ends = [place for place, label in enumerate(one.step_labels) if label]
    assert [one.step_labels[place] for place in ends] == [YES, NO, YES]
    start = one.mask.index(1)
    assert [tokenizer.decode(one.ids[start : end + 1]).strip() for end in ends] == [
        "the cat",
        "the cat\nthe hat sat",
        "the cat\nthe hat sat\nmat",
    ]


def test_rows_hold_whole_prompts_and_held_out_ones_are_on_one_side_only(preferences):
    about = json.loads((preferences / "dataset.json").read_text())
    seen: dict[str, set] = {"train": set(), "validation": set()}
    texts = 0
    for split, name in ((None, "train"), ("validation", "validation")):
        data = PackedRows(str(preferences), split)
        for row in range(data.rows):
            groups = data.read(row, 1).extra["groups"][0]
            (keys,) = data.documents(row, 1)
            texts += len(keys)
            for group in set(groups[: len(keys)]):
                mine = [key for key, number in zip(keys, groups, strict=False) if number == group]
                assert len(mine) == 2
                assert len(set(mine)) == 1
                assert mine[0] not in seen["train"] | seen["validation"]
                seen[name].add(mine[0])
    assert texts == about["documents"] == 2 * about["prompts"] == 240
    assert seen["train"]
    assert seen["validation"]
    assert about["tokens"] / (about["rows"] * about["seq_len"]) > 0.75


def test_what_cannot_be_used_is_counted(chat_tokenizer, tmp_path):
    raw = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b" * 200, "rejected": "c"},
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a", "answers": ["b", "c"], "ranks": [1, 1]},
        [1, 2],
    ]
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, raw)))
    about = write_answers(str(path), chat_tokenizer, str(tmp_path / "out"), seq_len=96, validation=0)
    assert about["refused"] == {"same_answer": 1, "too_long": 1, "bad_example": 2, "no_difference": 1}
    assert about["refused_first"]["bad_example"] == f"{path}, example 4: KeyError: 'rejected'"
    assert about["refused_first"]["too_long"].endswith("example 3: 239 tokens, seq_len 96")
    assert (about["rows"], about["documents"]) == (1, 2)
    with pytest.raises(DataError, match="not one usable example for seq_len 8"):
        write_answers(str(path), chat_tokenizer, str(tmp_path / "none"), seq_len=8)
    path.write_text("{")
    with pytest.raises(DataError, match=r"raw\.jsonl, line 1: not JSON"):
        list(read_examples(str(path)))


def test_a_micro_batch_without_rows_and_a_mixture_keep_their_columns(preferences):
    data = PackedRows(str(preferences))
    last = shared_out(data, 0, 3, 1, rank=0, world=2).micro_batches[-1]
    assert last.extra["ends"].shape[0] == last.rows
    mixed = Mixture([Part(data, 0.5), Part(data, 0.5, 3)])
    rows = mixed.read(0, 4)
    batch = collate(rows)
    own = data.read(0, 1).extra
    assert set(batch.extra) == {*own, "part"}
    assert batch.extra["part"].tolist() == [[mixed.origin(row)[0]] for row in range(4)]
    for name in own:
        values = batch.extra[name]
        for row in range(4):
            part, place = mixed.origin(row)
            expected = mixed.parts[part].data.read(place, 1).extra[name][0]
            np.testing.assert_array_equal(values[row, : len(expected)], expected)
            assert not values[row, len(expected) :].any()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        list(read_examples(str(tmp_path / "none.jsonl")))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_compressed_file_with_a_byte_order_mark_is_read_as_a_plain_one(tmp_path, ending):
    lines = "\ufeff" + '{"prompt": "a"}\r\n' * 2
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": lambda b: pa.compress(b, "zstd", asbytes=True)}
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed[ending](lines.encode()))
    assert list(read_examples(str(tmp_path / f"a.jsonl{ending}"))) == [{"prompt": "a"}] * 2


def test_two_texts_without_a_prompt_are_told_what_is_missing():
    with pytest.raises(ValueError, match=r"no prompt: chosen and rejected are texts; .* into `prompt`"):
        judged({"chosen": "The sky is blue.", "rejected": "The sky is green."})
