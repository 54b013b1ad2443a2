"""One optimiser step has one gradient, however its documents are packed, cut into micro-batches and shared by ranks.

Every algorithm that learns from rows, in float64: documents alone in their rows, all at once, against a drawn packing,
height of micro-batches and number of ranks. Ranks are simulated here by what the engine does with their sums;
tests/trainers/test_engine.py has the same law in real process groups under every ZeRO stage.
"""

import numpy as np
import pytest
import torch
from float64 import exact
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import pretrain, sft
from trainers.batch import Batch, Rows, padded, shared_out
from trainers.distill import Distill, PackedStates, States, distillation_loss
from trainers.model import ModelSettings, PackedLM, build
from trainers.preference import Preference, log_probabilities, mismatched, preference_loss
from trainers.ranks import Ranks
from trainers.reward import PackedReward, Reward, classifier, reward_loss
from trainers.roles import Frozen

VOCABULARY, WIDTH = 61, 72
SHAPE = ModelSettings(hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=32)
CPU = torch.device("cpu")


class Packed:
    """Rows in memory: each row a list of groups, each group the answers to one prompt (or one plain document)."""

    seq_len = WIDTH

    def __init__(self, rows):
        self.rows = rows

    def read(self, first, count):
        rows = [[(number, *d) for number, group in enumerate(row) for d in group] for row in self.rows]
        rows = rows[first : first + count]
        lengths = [np.array([len(d[1]) for d in row]) for row in rows]
        ids, mask, steps = (np.zeros((len(rows), WIDTH), kind) for kind in (np.int64, bool, np.int8))
        for number, row in enumerate(rows):
            for out, place in ((ids, 1), (mask, 2), (steps, 3)):
                flat = [one for d in row for one in d[place]]
                out[number, : len(flat)] = flat
        extra = {"ends": padded([np.cumsum(of_row) for of_row in lengths]), "step_labels": steps}
        for name, place, kind in (("groups", 0, np.int64), ("scores", 4, float), ("desirable", 5, np.int8)):
            extra[name] = padded([np.array([d[place] for d in row], kind) for row in rows])
            extra[name] = extra[name].reshape(extra["ends"].shape)
        return Rows(ids, lengths, mask, extra)


def groups_of(seed):
    """Seven prompts with two or three answers each: (ids, loss mask, step labels, score, label)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(7):
        prompt = rng.integers(2, VOCABULARY, rng.integers(1, 7)).tolist()
        group = []
        for score in rng.permutation(rng.integers(2, 4)).tolist():
            answer = rng.integers(2, VOCABULARY, rng.integers(2, 14)).tolist()
            mask = rng.random(len(answer)) < 0.8
            mask[-1] = True
            steps = [*[int(one) for one in rng.integers(0, 3, len(answer) - 1)], 1 + score % 2]
            group.append(
                (
                    prompt + answer,
                    [False] * len(prompt) + mask.tolist(),
                    [0] * len(prompt) + steps,
                    score,
                    1 + score % 2,
                )
            )
        out.append(group)
    return out


def packing(groups, order, fill):
    """Groups in this order, each into the first row that has room for it, no row fuller than `fill`."""
    rows = []
    for number in order:
        size = sum(len(d[0]) for d in groups[number])
        for row in rows:
            if sum(len(d[0]) for group in row for d in group) + size <= fill:
                row.append(groups[number])
                break
        else:
            rows.append([groups[number]])
    return Packed(rows)


def lm_of(seed):
    return exact(build(SHAPE, vocab_size=VOCABULARY, seq_len=WIDTH, seed=seed, pad=0, eos=1))


def arguments(batch: Batch):
    return batch.input_ids, batch.position_ids, batch.doc_index, batch.targets


class Live(Frozen):
    """A role with a gradient."""

    __call__ = Frozen.__call__.__wrapped__


def of_tokens(loss, turns="all"):
    def losses(batches):
        lm = lm_of(3)
        packed = PackedLM(lm)
        for batch in batches:
            if turns == "last":
                batch = Batch(*arguments(batch)[:3], sft.last_turn(batch.targets, batch.doc_index))
            yield loss(packed(*arguments(batch)), batch), lm

    return losses


def of_preference(kind):
    chosen = Preference(loss=kind, beta=0.7, smoothing=0.1 if kind in ("cdpo", "robust") else 0.0)

    def losses(batches):
        lm = lm_of(3)
        policy, reference = (Live(PackedLM(one), CPU, torch.float64) for one in (lm, lm_of(4)))
        lm.requires_grad_(True)
        for batch in batches:
            known = None if kind == "simpo" else log_probabilities(reference, batch)
            yield preference_loss(chosen, log_probabilities(policy, batch), known, batch, 0.3), lm

    return losses


def of_reward(learn):
    chosen = Reward(learn=learn, margin=0.1, centring=0.01)

    def losses(batches):
        lm = build(SHAPE, vocab_size=VOCABULARY, seq_len=WIDTH, seed=3, pad=0, eos=1)
        model = PackedReward(exact(classifier(lm, None, 5)))
        for batch in batches:
            yield reward_loss(chosen, model(*arguments(batch)), batch), model

    return losses


def of_distillation(**fields):
    chosen = Distill(teachers={"a": 1.0, "b": 3.0}, temperature=2.0, hard=0.3, features=0.5, **fields)

    def losses(batches):
        block = 2 if chosen.attends() else None
        student = PackedStates(lm_of(3), "sdpa", [1, 2, 1, 2], [16] * 4, attends=block).double()
        teachers = [PackedStates(lm_of(seed), "sdpa", [1, 2], attends=block).eval() for seed in (7, 8)]
        for batch in batches:
            with torch.no_grad():
                told = [
                    States(*out[:2], list(out[2:4]), out[4:]) for out in (one(*arguments(batch)) for one in teachers)
                ]
            out = student(*arguments(batch))
            weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
            yield distillation_loss(chosen, States(*out[:2], list(out[2:6]), out[6:]), told, batch, weights), student

    return losses


ALGORITHMS = {
    "pretrain": of_tokens(pretrain.next_token_loss),
    "sft": of_tokens(sft.response_loss),
    "sft, last turn": of_tokens(sft.response_loss, "last"),
    **{kind: of_preference(kind) for kind in ("dpo", "ipo", "cdpo", "robust", "hinge", "normalised", "simpo", "kto")},
    **{f"reward by {learn}": of_reward(learn) for learn in ("ranking", "outcome", "process")},
    **{f"distillation, {kind}": of_distillation(divergence=kind) for kind in ("forward", "reverse")},
    "distillation, jsd, trusted teachers": of_distillation(divergence="jsd", trust="confidence"),
    "distillation, minilm": of_distillation(attention_relation=1.0, value_relation=2.0, relation_heads=4),
    "distillation, cosine, averaged teachers": of_distillation(feature_loss="cosine", combine="average"),
}
RELATIONS = {"rkd": of_distillation(distance=1.0, angle=2.0, most_documents=5)}


def gradient(losses, source, micro=99, world=1):
    """Σ over micro-batches and ranks of the summed losses, divided by the count of all: what the engine makes."""
    shares = [
        batch
        for rank in range(world)
        for batch in shared_out(source, 0, len(source.rows), micro, rank=rank, world=world).micro_batches
    ]
    made = list(losses(shares))
    count = sum(loss.count for loss, _ in made)
    assert count > 0
    for loss, _ in made:
        (loss.total / count).backward()
    return torch.cat([
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in made[0][1].parameters()
    ])  # fmt: skip


def gap(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


cuts = {"micro": st.integers(1, 7), "world": st.integers(1, 4)}


@pytest.mark.parametrize("name", ALGORITHMS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(7)), fill=st.sampled_from([1, 45, WIDTH]), **cuts)
def test_the_gradient_is_that_of_every_document_alone(name, seed, order, fill, micro, world):
    groups = groups_of(seed)
    alone = gradient(ALGORITHMS[name], packing(groups, range(7), 1))
    assert gap(gradient(ALGORITHMS[name], packing(groups, order, fill), micro, world), alone) < 1e-9


@pytest.mark.parametrize("name", RELATIONS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(7)), **cuts)
def test_relations_of_a_row_do_not_depend_on_how_the_batch_is_cut(name, seed, order, micro, world):
    """RKD relates the documents of one row: how they are packed is part of what is learned, how rows are cut is not."""
    source = packing(groups_of(seed), order, WIDTH)
    assert gap(gradient(RELATIONS[name], source, micro, world), gradient(RELATIONS[name], source)) < 1e-9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(7)), **cuts)
def test_ktos_distance_is_the_mean_over_the_whole_step(seed, order, micro, world):
    """Its mismatched answers are those of the row's other prompts; their sum and number add up over every cut."""
    from trainers.preference import PreferenceObjective

    source = packing(groups_of(seed), order, WIDTH)
    roles = {name: Frozen(PackedLM(lm_of(n)), CPU, torch.float64) for n, name in enumerate(("policy", "reference"))}
    objective = PreferenceObjective.__new__(PreferenceObjective)
    objective.ranks = Ranks(0, 1, CPU)
    shares = [
        batch
        for rank in range(world)
        for batch in shared_out(source, 0, len(source.rows), micro, rank=rank, world=world).micro_batches
    ]
    (whole,) = shared_out(source, 0, len(source.rows), 99).micro_batches
    other, counted = mismatched(whole)
    ratio = log_probabilities(roles["policy"], other) - log_probabilities(roles["reference"], other)
    expected = max(0.0, float(ratio[counted].mean())) if counted.any() else 0.0
    assert objective.distance(roles, shares) == pytest.approx(expected, abs=1e-12)
