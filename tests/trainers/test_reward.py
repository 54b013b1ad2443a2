"""Reward models: the losses against TRL's, the value's place, the report, and whole runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.errors import DataError
from trainers import reward
from trainers.answers import write_answers
from trainers.batch import PackedRows, shared_out
from trainers.model import ModelSettings, build
from trainers.objective import Start
from trainers.preference import pairs_of
from trainers.ranks import Ranks
from trainers.recipe import from_mapping
from trainers.reward import PackedReward, Report, Reward, answer_values, classifier, ranking_loss, reward_loss

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


def _model():
    lm = build(SHAPE, vocab_size=302, seq_len=192, seed=3, pad=0, eos=1)
    return PackedReward(classifier(lm, None, 5)).double()


def batches_of(folder, rows=8, micro=8):
    return shared_out(PackedRows(str(folder)), 0, rows, micro).micro_batches


def ask(model, batch):
    return model(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)


@pytest.fixture(scope="module")
def steps(chat_tokenizer, tmp_path_factory):
    """Answers of labelled steps: a step with a cat is right."""
    folder = tmp_path_factory.mktemp("steps")
    rng = np.random.default_rng(0)
    with (folder / "raw.jsonl").open("w") as out:
        for number in range(80):
            said = rng.integers(0, 2, 3).tolist()
            texts = ["the cat" if right else "the dog" for right in said]
            out.write(json.dumps({"prompt": f"do {number}", "steps": texts, "labels": said}) + "\n")
    write_answers(str(folder / "raw.jsonl"), chat_tokenizer, str(folder / "packed"), seq_len=192, validation=0.15)
    return folder / "packed"


def test_the_loss_is_trls_with_margin_and_centring():
    """−log σ(c − r − margin), mean, plus coefficient · mean((c + r)²): trl 1.16, RewardTrainer."""
    torch.manual_seed(0)
    c, r, m = torch.randn(3, 17, dtype=torch.float64)
    found = ranking_loss(c, r, m, 0.01)
    expected = -torch.log(1 / (1 + torch.exp(-(c - r - m)))).mean() + 0.01 * ((c + r) ** 2).mean()
    assert float(found.total / found.count) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("learn", ["ranking", "outcome", "process"])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(preferences, steps, learn):
    folder = steps if learn == "process" else preferences
    settings = Reward(learn=learn, margin=0.1, centring=0.01)

    def gradient(micro):
        model = _model()
        losses = [reward_loss(settings, ask(model, batch), batch) for batch in batches_of(folder, 8, micro)]
        (sum(loss.total for loss in losses) / sum(loss.count for loss in losses)).backward()
        return torch.cat([value.grad.reshape(-1) for value in model.parameters()])

    whole = gradient(8)
    assert float((gradient(3) - whole).abs().max() / whole.abs().max()) < 1e-6


def test_the_value_is_read_at_the_last_token_even_behind_pads_and_ends_of_text(preferences):
    (batch,) = batches_of(preferences)
    inside = batch.input_ids.clone()
    inside[:, 4], inside[:, 6] = 0, 1  # pad and end of text within an answer
    batch = replace(batch, input_ids=inside)
    model = _model()
    with torch.no_grad():
        found = answer_values(ask(model, batch), batch)
        model.lm.set_attn_implementation("eager")
        for row in range(batch.rows):
            begin = 0
            for document, end in enumerate(batch.extra["ends"][row].tolist()):
                if not end:
                    assert found[row, document] == 0
                    continue
                hidden = model.lm.model(input_ids=inside[row : row + 1, begin:end], use_cache=False).last_hidden_state
                assert float(found[row, document]) == pytest.approx(float(model.lm.score(hidden)[0, -1, 0]), abs=1e-6)
                begin = end


def test_the_report_is_its_definition_and_adds_up_over_parts():
    rng = np.random.default_rng(1)
    gap, longer = rng.normal(0.4, 1, 200), rng.integers(-3, 4, 200)
    values = rng.normal(0, 1, 300)
    lengths = np.abs(values * 5 + rng.normal(0, 5, 300)).astype(int)
    parts = [Report(), Report()]
    for report, some, single in ((parts[0], slice(0, 70), slice(0, 10)), (parts[1], slice(70, 200), slice(10, 300))):
        gaps = torch.from_numpy(gap[some])
        report.add(torch.sigmoid(gaps.abs()), gaps > 0, torch.from_numpy(longer[some]))
        report.add_lengths(torch.from_numpy(values[single]), torch.from_numpy(lengths[single]))
    found = parts[0].figures((parts[0].sums + parts[1].sums).tolist())
    right, sure = gap > 0, 1 / (1 + np.exp(-np.abs(gap)))
    bins = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    error = sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["accuracy_low"] < right.mean() < found["accuracy_high"]
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(
        2 * 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 200), rel=0.02
    )
    assert found["calibration_error"] == pytest.approx(error)
    assert found["accuracy_longer_better"] == pytest.approx(right[longer > 0].mean())
    assert found["accuracy_shorter_better"] == pytest.approx(right[longer < 0].mean())
    assert found["length_correlation"] == pytest.approx(np.corrcoef(values, lengths)[0, 1])


def test_data_of_another_kind_is_refused(preferences, packed):
    for folder, learn, message in ((packed, "ranking", "no judged answers"), (preferences, "process", "no labelled")):
        recipe = from_mapping({"data": str(folder), "trainer": "reward"})
        with pytest.raises(DataError, match=message):
            reward.objective(Reward(learn=learn), Start(recipe, PackedRows(str(folder)), ALONE, None, None))


@pytest.mark.parametrize("learn", ["ranking", "outcome", "process"])
def test_two_workers_train_save_and_the_saved_model_says_the_same(recipe, preferences, steps, tmp_path, crew, learn):
    from trainers.log import read_metrics
    from trainers.train import train

    folder = steps if learn == "process" else preferences
    settings = {"learn": learn, "centring": 0.01 if learn == "ranking" else 0.0}
    changes = {"trainer": "reward", "data": str(folder), "workers": 2, "batch_rows": 8, "objective": settings}
    report = train(
        recipe(**changes, steps=30, engine={"zero": 3 if learn == "process" else 1}), str(tmp_path), crew=crew
    )
    assert report.last_loss < report.first_loss * 0.7
    (figures,) = [line for line in read_metrics(str(tmp_path)) if "validation" in line]
    assert figures["validation_accuracy"] > 0.85
    assert ("validation_length_correlation" in figures) == (learn == "ranking")
    model = reward.load_reward(report.export)
    split = PackedRows(str(folder), "validation")
    (batch,) = shared_out(split, 0, split.rows, split.rows).micro_batches
    with torch.no_grad():
        loss = reward_loss(Reward(**settings), ask(model, batch), batch)
    assert float(loss.total / loss.count) == pytest.approx(figures["validation"], abs=1e-5)
    if learn == "ranking":
        row, better, _ = (int(part[0]) for part in pairs_of(batch))
        end = int(batch.extra["ends"][row, better])
        begin = int(batch.extra["ends"][row, better - 1]) if better else 0
        alone = batch.input_ids[row : row + 1, begin:end]
        ours = float(answer_values(ask(model, batch), batch)[row, better].detach())
        # and to transformers, which pools by itself, it is an ordinary classifier
        from transformers import AutoModelForSequenceClassification

        plain = AutoModelForSequenceClassification.from_pretrained(report.export)
        assert float(plain(input_ids=alone).logits.detach()) == pytest.approx(ours, abs=1e-5)


def test_a_reward_model_that_is_trained_further_keeps_its_head(recipe, preferences, tmp_path, crew):
    from trainers.train import train

    changes = {"trainer": "reward", "data": str(preferences), "batch_rows": 8, "save": False}
    first = train(recipe(**changes, steps=20), str(tmp_path / "first"), crew=crew)
    second = recipe(**changes, steps=1, start_from=first.export, schedule={"rate": 1e-12})
    del second["model"]
    again = train(second, str(tmp_path / "second"), crew=crew)
    assert again.validation[1] == pytest.approx(first.validation[20], abs=1e-6)
    with pytest.raises(Exception, match="predicts no tokens"):
        train({**second, "trainer": "preference"}, str(tmp_path / "third"), crew=crew)
