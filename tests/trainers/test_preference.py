"""Direct preference: parity with TRL's formulas, cuts of the batch, the reference, and whole runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid, sigmoid

from cluster.errors import DataError, RecipeError
from trainers import preference
from trainers.answers import write_answers
from trainers.batch import IGNORE, PackedRows, shared_out
from trainers.model import ModelSettings, PackedLM, build
from trainers.objective import Start
from trainers.preference import Preference, pairs_of, preference_loss
from trainers.ranks import Ranks
from trainers.recipe import from_mapping
from trainers.roles import Frozen

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
LOSSES = ["dpo", "ipo", "cdpo", "robust", "hinge", "normalised", "simpo", "kto"]


def settings(loss, **fields):
    return Preference(loss=loss, beta=0.3, smoothing=0.1 if loss in ("cdpo", "robust") else 0.0, **fields)


def batch_of(folder, rows=8):
    (batch,) = shared_out(PackedRows(str(folder)), 0, rows, rows).micro_batches
    return batch


def by_trl(loss, policy, reference, mask, kl=0.0, per_token=True, beta=0.3, smoothing=0.1, gamma=0.5):
    """trl 1.16: DPOTrainer, CPOTrainer (simpo) and KTOTrainer on padded rows [better…, worse…], written again.

    Summed masked log-probabilities; ipo and sigmoid_norm divide by the completion's length; the mean over pairs.
    """
    logps, reference_logps = (policy * mask).sum(1), (reference * mask).sum(1)
    better, worse = logps.chunk(2)
    better_scores, worse_scores = (logps - reference_logps).chunk(2)
    lengths = mask.sum(1).clamp(min=1.0)
    delta = better_scores - worse_scores
    averaged = better_scores / lengths.chunk(2)[0] - worse_scores / lengths.chunk(2)[1]
    if loss == "dpo":
        each = -logsigmoid(beta * delta)
    elif loss == "cdpo":
        each = -logsigmoid(beta * delta) * (1 - smoothing) - logsigmoid(-beta * delta) * smoothing
    elif loss == "robust":
        clean, flipped = -logsigmoid(beta * delta) * (1 - smoothing), -logsigmoid(-beta * delta) * smoothing
        each = (clean - flipped) / (1 - 2 * smoothing)
    elif loss == "hinge":
        each = torch.relu(1 - beta * delta)
    elif loss == "ipo":
        each = ((averaged if per_token else delta) - 1 / (2 * beta)) ** 2
    elif loss == "normalised":
        each = -logsigmoid(beta * averaged)
    elif loss == "simpo":
        plain = better / lengths.chunk(2)[0] - worse / lengths.chunk(2)[1]
        each = -logsigmoid(beta * (plain - gamma / beta))
    else:
        each = torch.cat([1 - sigmoid(beta * (better_scores - kl)), 1.5 * (1 - sigmoid(beta * (kl - worse_scores)))])
    return each.mean()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_and_its_gradient_are_trls_on_ragged_answers(preferences, loss):
    batch = batch_of(preferences)
    torch.manual_seed(1)
    policy = (torch.randn(batch.targets.shape, dtype=torch.float64) - 1).requires_grad_()
    reference = torch.randn(batch.targets.shape, dtype=torch.float64) - 1
    used = batch.targets != IGNORE
    row, better, worse = pairs_of(batch)
    width = 80
    places = [
        (used[r] & (batch.doc_index[r] == d)).nonzero().squeeze(1)
        for r, d in [*zip(row.tolist(), better.tolist(), strict=True), *zip(row.tolist(), worse.tolist(), strict=True)]
    ]
    assert len({len(place) for place in places}) > 3  # ragged
    rows = [*row.tolist(), *row.tolist()]
    ours, theirs = [torch.zeros(len(places), width, dtype=torch.float64) for _ in range(2)]
    mask = torch.zeros(len(places), width, dtype=torch.float64)
    fill = []
    for number, place in enumerate(places):
        mask[number, : len(place)] = 1
        fill.append(torch.nn.functional.pad(policy[rows[number], place], (0, width - len(place))))
        theirs[number, : len(place)] = reference[rows[number], place]
    ours = torch.stack(fill)
    kl = 0.7 if loss == "kto" else 0.0
    for per_token in (True, False) if loss == "ipo" else (True,):
        found = preference_loss(
            settings(loss, per_token=per_token, undesirable_weight=1.5),
            preference.answer_sums(policy * used, batch),
            None if loss == "simpo" else preference.answer_sums(reference * used, batch),
            batch,
            kl,
        )
        expected = by_trl(loss, ours, theirs, mask, kl, per_token)
        assert float((found.total / found.count).detach()) == pytest.approx(float(expected.detach()), abs=1e-9)
        (mine,) = torch.autograd.grad(found.total / found.count, policy, retain_graph=True)
        (other,) = torch.autograd.grad(expected, policy, retain_graph=True)
        assert torch.allclose(mine, other, atol=1e-9)


def test_a_policy_equal_to_its_reference_has_the_known_loss(preferences):
    batch = batch_of(preferences)
    same = torch.randn(batch.extra["ends"].shape)
    found = {loss: preference_loss(settings(loss), same, same, batch) for loss in LOSSES if loss != "simpo"}
    known = {"dpo": 0.6931472, "cdpo": 0.6931472, "robust": 0.6931472, "normalised": 0.6931472, "hinge": 1.0}
    known |= {"ipo": (1 / 0.6) ** 2, "kto": 0.5}
    assert {loss: float(one.total / one.count) for loss, one in found.items()} == pytest.approx(known, abs=1e-6)


def test_ranked_answers_give_all_pairs_or_the_best_and_the_worst(chat_tokenizer, preference_writer, tmp_path):
    write_answers(
        preference_writer(tmp_path / "ranked.jsonl", 8, answers=4),
        chat_tokenizer,
        str(tmp_path / "ranked"),
        seq_len=400,
        validation=0,
    )
    batch = batch_of(tmp_path / "ranked", PackedRows(str(tmp_path / "ranked")).rows)
    row, better, worse = pairs_of(batch)
    assert len(row) == 8 * 6
    assert (batch.extra["scores"][row, better] > batch.extra["scores"][row, worse]).all()
    assert (batch.extra["groups"][row, better] == batch.extra["groups"][row, worse]).all()
    row, better, worse = pairs_of(batch, "best_worst")
    assert len(row) == 8
    assert batch.extra["scores"][row, better].tolist() == [-1.0] * 8
    assert batch.extra["scores"][row, worse].tolist() == [-4.0] * 8


def test_mismatched_answers_are_those_of_other_prompts(preferences):
    batch = batch_of(preferences, 3)
    other, counted = preference.mismatched(batch)
    assert counted.sum() == (batch.extra["ends"] > 0).sum()  # every row has several prompts
    for row in range(3):
        documents = [d for d, end in enumerate(batch.extra["ends"][row]) if end > 0]
        parts = {}
        for source in (batch, other):
            for d in documents:
                here = source.doc_index[row] == d
                learned = source.targets[row][here] != IGNORE
                first = int(learned.nonzero()[0]) + 1
                ids = source.input_ids[row][here].tolist()
                assert source.targets[row][here][learned].tolist() == ids[first:]
                assert source.position_ids[row][here].tolist() == list(range(len(ids)))
                parts[source is other, d] = (ids[:first], ids[first:], int(batch.extra["groups"][row, d]))
        answers = [parts[False, d][1] for d in documents]
        assert sorted(parts[True, d][1] for d in documents) == sorted(answers)
        for d in documents:
            assert parts[True, d][0] == parts[False, d][0]
            assert parts[True, d][1] in [
                parts[False, o][1] for o in documents if parts[False, o][2] != parts[True, d][2]
            ]


def _start(folder, lm, **fields):
    recipe = from_mapping({"data": str(folder), "trainer": "preference", "batch_rows": 8, **fields})
    return Start(recipe, PackedRows(str(folder)), ALONE, None, lm)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(preferences, loss):
    class Live(Frozen):
        __call__ = Frozen.__call__.__wrapped__

    def gradient(micro):
        lm = build(SHAPE, vocab_size=302, seq_len=192, seed=3, pad=0, eos=1).double()
        roles = {
            "policy": Live(PackedLM(lm), ALONE.device, torch.float64),
            "reference": Frozen(
                PackedLM(build(SHAPE, vocab_size=302, seq_len=192, seed=4, pad=0, eos=1)), ALONE.device, torch.float64
            ),
        }
        lm.requires_grad_(True)
        made = preference.objective(settings(loss), _start(preferences, lm, micro_rows=micro))
        try:
            step = next(iter(made.batches(roles)))
            count = sum(made.counts(batch)["policy"] for batch in step.micro_batches)
            for batch in step.micro_batches:
                (made.loss(roles, batch)["policy"].total / count).backward()
        finally:
            made.close()
        return torch.cat([value.grad.reshape(-1) for value in lm.parameters()])

    whole, cut = gradient(8), gradient(3)
    assert float((cut - whole).abs().max() / whole.abs().max()) < 1e-6
    assert float(whole.abs().max()) > 0


def test_what_cannot_work_is_refused(preferences, packed):
    lm = build(SHAPE, vocab_size=302, seq_len=192, seed=3, pad=0, eos=1)
    with pytest.raises(RecipeError, match="cdpo needs smoothing > 0"):
        preference.roles(Preference(loss="cdpo"), _start(preferences, lm))
    with pytest.raises(RecipeError, match="kto asks the reference about mismatched answers too"):
        preference.roles(Preference(loss="kto", reference="stored"), _start(preferences, lm))
    with pytest.raises(DataError, match="no judged answers"):
        preference.objective(Preference(), _start(packed, lm))
    with pytest.raises(DataError, match="no column `reference`"):
        preference.objective(Preference(reference="stored"), _start(preferences, lm))


def test_a_step_without_a_pair_is_passed_over_and_a_file_without_any_ends_the_run(chat_tokenizer, tmp_path):
    from trainers import reward
    from trainers.answers import write_answers

    lines = [{"prompt": f"p{i}", "completion": "the cat", "label": True} for i in range(40)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines += [{"prompt": f"q{i}", "chosen": "the cat", "rejected": "a mat"} for i in range(2)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lm = build(SHAPE, vocab_size=302, seq_len=192, seed=3, pad=0, eos=1)
    for name in ("labels", "mixed"):
        source = str(tmp_path / f"{name}.jsonl")
        write_answers(source, chat_tokenizer, str(tmp_path / name), seq_len=48, validation=0)
        start = _start(tmp_path / name, lm)
        for made in (preference.objective(Preference(), start), reward.objective(reward.Reward(), start)):
            steps = made.batches({})
            if name == "labels":
                with pytest.raises(DataError, match="hold no two answers to compare"):
                    next(steps)
            else:
                pairs = [sum(made.counts(batch)["policy"] for batch in next(steps).micro_batches) for _ in range(3)]
                assert min(pairs) > 0
                assert made.useful.refused > 0
            made.close()


def _recipe(recipe, data, **changes):
    base = {"trainer": "preference", "data": str(data), "workers": 2, "steps": 6, "batch_rows": 8, "micro_rows": 3}
    objective = {"beta": 0.5, **changes.pop("objective", {})}
    return recipe(**{**base, "objective": objective, **changes})


@pytest.fixture(scope="module")
def whole(crew, preferences, tmp_path_factory, request):
    """A DPO run of two workers from a model on disk."""
    out = tmp_path_factory.mktemp("dpo")
    lm = build(SHAPE, vocab_size=302, seq_len=192, seed=0, pad=0, eos=1)
    lm.save_pretrained(out / "begin")
    preference.write_reference(str(preferences), str(out / "begin"), str(out / "stored"))
    return out


def test_two_workers_prefer_what_was_preferred_and_a_stored_reference_says_the_same(
    recipe, preferences, whole, tmp_path, crew
):
    from transformers import AutoModelForCausalLM

    from trainers.log import read_metrics
    from trainers.train import train

    begin = {"start_from": str(whole / "begin"), "model": {}, "checkpoint_every": 3, "keep": 9}
    live = train(_recipe(recipe, preferences, **begin), str(tmp_path / "live"), crew=crew)
    assert live.first_loss == pytest.approx(0.6931472, abs=1e-5)
    assert live.last_loss < 0.4
    (figures,) = [line for line in read_metrics(str(tmp_path / "live")) if "validation" in line]
    assert figures["validation_accuracy"] > 0.9
    stored = _recipe(recipe, whole / "stored", objective={"reference": "stored"}, **begin)
    report = train(stored, str(tmp_path / "stored"), crew=crew)
    for step, loss in report.losses.items():
        assert loss == pytest.approx(live.losses[step], abs=2e-6)
    # the saved model, asked here, has the loss that the run reported
    lm = AutoModelForCausalLM.from_pretrained(live.export)
    split = PackedRows(str(whole / "stored"), "validation")
    (batch,) = shared_out(split, 0, split.rows, split.rows).micro_batches
    policy = preference.log_probabilities(Frozen(PackedLM(lm), ALONE.device, torch.float32), batch)
    found = preference_loss(Preference(beta=0.5), policy.double(), batch.extra["reference"], batch)
    assert float(found.total / found.count) == pytest.approx(figures["validation"], abs=1e-5)
    # a resumed run has bit-equal losses: the reference is the first model again, not the resumed one
    (tmp_path / "cut/checkpoints").mkdir(parents=True)
    shutil.copytree(Path(tmp_path, "live/checkpoints/step-00000003"), tmp_path / "cut/checkpoints/step-00000003")
    resumed = train(_recipe(recipe, preferences, **begin, export=False), str(tmp_path / "cut"), crew=crew)
    assert resumed.losses == {step: loss for step, loss in live.losses.items() if step > 3}


@pytest.mark.parametrize("loss", ["kto", "simpo"])
def test_losses_of_other_shapes_train_too(recipe, preferences, tmp_path, crew, loss):
    from trainers.train import train

    report = train(
        _recipe(recipe, preferences, objective={"loss": loss, "beta": 2.0}, save=False, export=False),
        str(tmp_path),
        crew=crew,
    )
    assert report.last_loss < report.first_loss - 0.05
