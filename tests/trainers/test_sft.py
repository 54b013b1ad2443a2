"""Instruction tuning: what is learned, what is refused, and a whole run."""

import json
from pathlib import Path

import pytest
import torch

from cluster.errors import DataError
from trainers import sft
from trainers.batch import IGNORE, PackedRows, shared_out
from trainers.model import ModelSettings, PackedLM, build
from trainers.objective import Start
from trainers.ranks import Ranks
from trainers.recipe import from_mapping

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


def answers(row, size):
    """The second half of a document is the response; the first 12 rows have none."""
    return [int(row >= 12 and place >= size // 2) for place in range(size)]


@pytest.fixture(scope="module")
def instructions(packed_writer, tmp_path_factory):
    return packed_writer(tmp_path_factory.mktemp("sft") / "packed", 60, seed=3, learned=answers)


def _start(folder, **fields):
    recipe = from_mapping({"data": str(folder), "trainer": "sft", "batch_rows": 12, "micro_rows": 5, **fields})
    return Start(recipe, PackedRows(str(folder)), ALONE, None, None)


def _model():
    return build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).double()


def test_the_loss_is_that_of_trl_on_each_conversation_alone(instructions):
    """labels = −100 outside the responses, logits shifted by one, the mean over all labels (trl, SFTTrainer)."""
    lm = _model()
    rows = PackedRows(str(instructions)).read(12, 12)
    (batch,) = shared_out(PackedRows(str(instructions)), 12, 12, 12).micro_batches
    ours = sft.response_loss(PackedLM(lm)(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets), batch)
    lm.set_attn_implementation("eager")
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, lengths, mask in zip(rows.input_ids, rows.doc_lengths, rows.loss_mask, strict=True):
        begins = 0
        for size in lengths:
            part = slice(begins, begins + int(size))
            begins += int(size)
            document = torch.from_numpy(ids[part])[None]
            labels = document.masked_fill(torch.from_numpy(~mask[part])[None], -100)
            logits = lm(input_ids=document).logits
            total += torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
            )
            count += int((labels[0, 1:] != -100).sum())
    assert ours.count == count
    assert float(ours.total.detach() / ours.count) == pytest.approx(float(total.detach()) / count, abs=1e-9)


@pytest.mark.parametrize("micro", [1, 5, 7])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(instructions, micro):
    def gradient(size):
        lm = _model()
        batches = shared_out(PackedRows(str(instructions)), 12, 12, size).micro_batches
        count = sum(batch.target_count() for batch in batches)
        for batch in batches:
            loss = PackedLM(lm)(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
            (sft.response_loss(loss, batch).total / count).backward()
        return torch.cat([value.grad.reshape(-1) for value in lm.parameters()])

    whole = gradient(12)
    assert float((gradient(micro) - whole).abs().max() / whole.abs().max()) < 1e-6


def test_only_the_last_turn_of_each_conversation_is_kept():
    targets = torch.tensor([[-100, 7, 8, -100, 9, 4, -100, 3, -100, 5, -100, -100], [6, 7, 8, 9, 1, -100] * 2])
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0] * 3 + [1] * 3 + [2] * 6])
    kept = sft.last_turn(targets, documents)
    assert kept[0].tolist() == [-100, -100, -100, -100, 9, 4, -100, -100, -100, 5, -100, -100]
    assert kept[1].tolist() == targets[1].tolist()


def test_a_batch_without_a_target_is_refused_and_counted(instructions):
    objective = sft.objective(sft.Sft(validation_rows=4), _start(instructions))
    first = next(objective.batches({}))
    objective.close()
    assert (first.first_row, first.next_row) == (12, 24)  # rows 0 to 11 have no response
    assert objective.useful.refused == 1
    assert sum(batch.target_count() for batch in first.micro_batches) > 0


def test_data_in_which_nothing_can_be_learned_ends_the_run(packed_writer, tmp_path):
    empty = packed_writer(tmp_path / "packed", 30, learned=lambda _row, size: [0] * size)
    objective = sft.objective(sft.Sft(), _start(empty))
    with pytest.raises(DataError, match="all 4 batches before them hold no target"):
        next(objective.batches({}))
    objective.close()


def test_rows_without_a_mask_are_refused_unless_everything_is_wanted(packed):
    with pytest.raises(DataError, match="rows without loss_mask, so prompts would be learned too"):
        sft.objective(sft.Sft(), _start(packed))
    objective = sft.objective(sft.Sft(train_on="everything"), _start(packed))
    assert next(objective.batches({})).first_row == 0
    objective.close()


def test_conversations_in_jsonl_end_in_a_model_that_answers_as_it_was_taught(recipe, chat_tokenizer, tmp_path, crew):
    """JSONL, tokens.chat, pack.best_fit, `corpusmill train` and the exported model asked by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline import recipe as recipes
    from pipeline.progress import Console
    from pipeline.run import run
    from trainers.train import train

    answers = {"cat": "the cat sat", "mat": "the mat was flat", "hat": "a hat"}
    with (tmp_path / "talks.jsonl").open("w") as out:
        for number in range(120):
            asked = list(answers)[number % 3]
            talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": answers[asked]}]
            out.write(json.dumps({"messages": talk}) + "\n")
    steps = [
        {"crawl.corpus": {"path": str(tmp_path / "talks.jsonl"), "text_field": "messages"}},
        {"tokens.chat": {"tokenizer": chat_tokenizer}},
        {"pack.best_fit": {"seq_len": 128, "tokenizer": chat_tokenizer, "validation_share": 0.1}},
    ]
    run(recipes.from_mapping({"steps": steps, "workers": 0}), str(tmp_path / "run"), console=Console(quiet=True))
    changes = {"trainer": "sft", "data": str(tmp_path / "run/packed"), "steps": 30, "batch_rows": 8, "micro_rows": 4}
    report = train(recipe(**changes, save=False, workers=2), str(tmp_path / "tuned"), crew=crew)
    assert report.validation[30] < 0.2
    tokenizer, lm = AutoTokenizer.from_pretrained(report.export), AutoModelForCausalLM.from_pretrained(report.export)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for asked, answer in answers.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = lm.generate(**prompt, max_new_tokens=24, do_sample=False, eos_token_id=end, pad_token_id=0)
        assert tokenizer.decode(said[0, prompt["input_ids"].shape[1] :]) == f"{answer}<|im_end|>"


def test_two_workers_tune_resume_and_save_a_model_that_says_the_same(recipe, instructions, tmp_path, crew):
    import shutil

    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from trainers.log import read_metrics
    from trainers.train import train

    changes = {"trainer": "sft", "data": str(instructions), "workers": 2, "steps": 6, "checkpoint_every": 3, "keep": 9}
    report = train(recipe(**changes), str(tmp_path / "whole"), crew=crew)
    assert report.last_loss < report.first_loss - 0.2
    lines = read_metrics(str(tmp_path / "whole"))
    assert [line["row"] for line in lines if "loss" in line] == [24, 36, 48, 60, 84, 96]  # 0 to 11 and 60 to 71 refused
    assert [line["refused_batches"] for line in lines if "refused_batches" in line] == [2.0]
    lm = AutoModelForCausalLM.from_pretrained(report.export).eval()
    weights = load_file(str(Path(report.export, "model.safetensors")))
    assert all(torch.equal(lm.state_dict()[name], value) for name, value in weights.items())
    (batch,) = shared_out(PackedRows(str(instructions), "validation"), 0, 24, 24).micro_batches
    with torch.no_grad():
        summed = PackedLM(lm)(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    assert float(summed) / batch.target_count() == pytest.approx(report.validation[6], rel=1e-5)
    assert (batch.targets != IGNORE).sum() < (batch.input_ids != 0).sum() * 0.7
    # and a resumed run goes on with the very next row
    (tmp_path / "cut/checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "whole/checkpoints/step-00000003", tmp_path / "cut/checkpoints/step-00000003")
    resumed = train(recipe(**changes, export=False), str(tmp_path / "cut"), crew=crew)
    assert resumed.losses == {step: loss for step, loss in report.losses.items() if step > 3}
    assert json.loads(Path(resumed.checkpoint, "checkpoint.json").read_text())["cursor"] == 96
