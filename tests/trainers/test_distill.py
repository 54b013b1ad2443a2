"""Distillation: the formulas, the independence of how a batch is cut, stored teachers, and whole runs."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from cluster.errors import DataError, RecipeError
from trainers import distill, model
from trainers.batch import Batch, PackedRows, shared_out
from trainers.distill import Distill, PackedStates, States, distillation_loss
from trainers.divergence import bucketed, confidence, divergence
from trainers.model import ModelSettings, PackedLM
from trainers.relations import angle_loss, attention_losses, distance_loss, feature_losses, value_losses
from trainers.teach import check_vocabulary, write_teacher
from trainers.train import train

SMALL = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
LARGE = ModelSettings(hidden_size=48, layers=4, heads=4, kv_heads=2, intermediate_size=96)


def _build(shape, seed, **fields):
    return model.build(shape, vocab_size=fields.get("vocab", 300), seq_len=64, seed=seed, pad=0, eos=1)


def by_trl(student, teacher, kind, beta, temperature):
    """trl, GKDTrainer.generalized_jsd_loss, written again with kl_div: forward KL is its β = 0, reverse its β = 1."""
    s, t = log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1)
    if kind == "forward":
        return kl_div(s, t, reduction="none", log_target=True).sum(-1)
    if kind == "reverse":
        return kl_div(t, s, reduction="none", log_target=True).sum(-1)
    mixed = torch.logsumexp(torch.stack([s + torch.log(torch.tensor(1 - beta)), t + torch.log(torch.tensor(beta))]), 0)
    of_teacher = kl_div(mixed, t, reduction="none", log_target=True).sum(-1)
    of_student = kl_div(mixed, s, reduction="none", log_target=True).sum(-1)
    return beta * of_teacher + (1 - beta) * of_student


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_divergences_and_their_gradients_are_trls(kind, temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 11, 37, dtype=torch.float64) * 3
    student.requires_grad_()
    expected = by_trl(student, teacher, kind, 0.3, temperature)
    found = divergence(log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1), kind, 0.3)
    assert torch.allclose(found, expected, atol=1e-6)
    (mine,) = torch.autograd.grad(found.sum(), student, retain_graph=True)
    (other,) = torch.autograd.grad(expected.sum(), student)
    assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_buckets_lose_something_and_nothing_when_all_tokens_are_kept(kind):
    torch.manual_seed(0)
    student, teacher = log_softmax(torch.randn(2, 9, 40, dtype=torch.float64) * 2, -1)
    whole = divergence(student, teacher, kind, 0.4)
    before = torch.zeros_like(whole)
    for k in (1, 5, 20, 40):
        chosen = teacher.argsort(descending=True)[:, :k]
        some = divergence(bucketed(student, chosen), bucketed(teacher, chosen), kind, 0.4)
        assert (some >= before - 1e-12).all() and (some <= whole + 1e-12).all()
        before = some
    assert torch.allclose(before, whole, atol=1e-12)


def test_rkd_is_that_of_the_paper_by_loops():
    torch.manual_seed(0)
    s, t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)

    def huber(x):
        return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5

    def pairs(items):
        found = [[float((a - b).norm()) for b in items] for a in items]
        mean = sum(map(sum, found)) / 20
        return [[one / mean for one in row] for row in found]

    def cosine(items, i, j, k):
        if j in (i, k):
            return 0.0
        a, b = items[i] - items[j], items[k] - items[j]
        return float(a @ b / (a.norm() * b.norm()))

    ours, theirs = pairs(s), pairs(t)
    expected = sum(huber(ours[i][j] - theirs[i][j]) for i in range(5) for j in range(5)) / 25
    assert float(distance_loss(s, t)) == pytest.approx(expected, abs=1e-9)
    cube = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    expected = sum(huber(cosine(s, *one) - cosine(t, *one)) for one in cube) / 125
    assert float(angle_loss(s, t)) == pytest.approx(expected, abs=1e-9)
    assert float(distance_loss(3 * s + 1, s)) == pytest.approx(0, abs=1e-9)  # scale and place do not count


def test_the_surer_teacher_counts_more():
    shares = confidence(torch.tensor([[0.1, 3.0], [1.0, 1.0]]), torch.tensor([0.5, 0.5]))
    exps = torch.tensor([0.1, 3.0]).exp()
    assert shares[0].tolist() == pytest.approx((1 - exps / exps.sum()).tolist(), abs=1e-6)
    assert shares[1].tolist() == [0.5, 0.5]


def _told(n=9, width=37, wide=12, blocks=2):
    return States(
        torch.randn(n, width, dtype=torch.float64) * 2,
        torch.randn(n, wide, dtype=torch.float64),
        [torch.randn(n, wide, dtype=torch.float64) for _ in range(blocks)],
    )


def _row(n=9, part=None):
    """One row with n targets and a last position without."""
    ids = torch.arange(n + 1)[None] % 37
    targets = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], 1)
    zero = torch.zeros_like(ids)
    return Batch(ids, zero, zero.int(), targets, {} if part is None else {"part": torch.tensor([[part]])})


def test_averaged_teachers_are_one_teacher_with_their_mean_logits():
    torch.manual_seed(0)
    student, one, two, batch = _told(), _told(), _told(), _row()
    settings = Distill(teachers={"a": 1.0, "b": 3.0}, combine="average", temperature=2.0)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = distillation_loss(settings, student, [one, two], batch, weights)
    mean = States(0.25 * one.logits + 0.75 * two.logits, one.last, one.blocks)
    alone = distillation_loss(Distill(teachers={"a": 1.0}, temperature=2.0), student, [mean], batch, weights[:1])
    assert float(found.total) == pytest.approx(float(alone.total), rel=1e-6)
    apart = distillation_loss(settings.model_copy(update={"combine": "losses"}), student, [one, two], batch, weights)
    each = [
        distillation_loss(Distill(teachers={"a": 1.0}, temperature=2.0), student, [one_of], batch, weights[:1])
        for one_of in (one, two)
    ]
    assert float(apart.total) == pytest.approx(0.25 * float(each[0].total) + 0.75 * float(each[1].total), rel=1e-6)
    assert abs(float(apart.total) - float(found.total)) > 1e-3


@pytest.mark.parametrize("part", [0, 1])
def test_a_routed_row_learns_from_the_teacher_of_its_data_set_alone(part):
    torch.manual_seed(1)
    student, teachers, batch = _told(blocks=4), [_told(), _told()], _row(part=part)
    settings = Distill(teachers={"a": 1.0, "b": 9.0}, trust="routed", features=0.7, feature_loss="cosine")
    found = distillation_loss(settings, student, teachers, batch, torch.tensor([1.0, 9.0], dtype=torch.float64))
    mine = States(student.logits, student.last, student.blocks[2 * part : 2 * part + 2])
    alone = settings.model_copy(update={"teachers": {"a": 1.0}, "trust": "fixed"})
    expected = distillation_loss(alone, mine, teachers[part : part + 1], batch, torch.ones(1, dtype=torch.float64))
    assert float(found.total) == pytest.approx(float(expected.total), rel=1e-6)


def test_distances_of_states_are_their_definitions():
    torch.manual_seed(2)
    s, t = torch.randn(2, 5, 7, dtype=torch.float64)
    for n in range(5):
        cosine = float(s[n] @ t[n] / (s[n].norm() * t[n].norm()))
        assert float(feature_losses(s, t, "cosine")[n]) == pytest.approx(1 - cosine, abs=1e-12)
        assert float(feature_losses(s, t, "mse")[n]) == pytest.approx(float(((s[n] - t[n]) ** 2).mean()), abs=1e-12)
    assert float(feature_losses(3 * t, t, "cosine").abs().max()) < 1e-12


@pytest.mark.parametrize(("ours", "theirs", "heads"), [((2, 2), (2, 2), 2), ((4, 2), (2, 1), 2)])
def test_minilms_relations_are_those_of_the_paper_by_loops(ours, theirs, heads):
    """Documents of 4 and 3 tokens in one row; as many heads in both models, or all heads split anew into two."""
    torch.manual_seed(0)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])

    def told(queries, keys, width):
        sizes = ((1, queries, 7, width), (1, keys, 7, width), (1, keys, 7, width))
        return [torch.randn(size, dtype=torch.float64) for size in sizes]

    s, t = told(*ours, 6), told(*theirs, 8)

    def anew(x, queries):
        """[seq, heads, width] after key heads were repeated for their queries."""
        x = x[0].repeat_interleave(queries // x.shape[1], 0)
        return torch.cat(list(x), 1).reshape(7, heads, -1)

    def relation(a, b, at, head):
        seen = [k for k in range(at + 1) if documents[0, k] == documents[0, at]]
        scores = torch.tensor([float(a[at, head] @ b[k, head]) / a.shape[2] ** 0.5 for k in seen], dtype=torch.float64)
        return scores.exp() / scores.exp().sum()

    for losses, first, second in ((attention_losses, 0, 1), (value_losses, 2, 2)):
        found = losses(s, t, documents, heads)
        for at in range(7):
            total = 0.0
            for head in range(heads):
                pair = []
                for x, (queries, keys) in ((s, ours), (t, theirs)):
                    size = queries if first == 0 else keys
                    pair.append(relation(anew(x[first], size), anew(x[second], size), at, head))
                q, p = pair
                total += float((p * (p / q).log()).sum())
            assert float(found[0, at]) == pytest.approx(total / heads, abs=1e-9)


def test_other_numbers_of_heads_are_refused_with_both_numbers():
    small, large = (_build(one, 0).config for one in (SMALL, LARGE))
    assert distill.relation_blocks(Distill(), small, large) == (None, None)
    with pytest.raises(RecipeError, match=r"\(4, 2\) query and key heads"):
        distill.relation_blocks(Distill(value_relation=1.0), small, large)
    with pytest.raises(RecipeError, match="relation_heads: 5 do not divide the student's 16 values"):
        distill.relation_blocks(Distill(value_relation=1.0, relation_heads=5), small, large)
    with pytest.raises(RecipeError, match="block 3, but the student has 2"):
        distill.relation_blocks(Distill(value_relation=1.0, relation_blocks=(3, 4), relation_heads=2), small, large)
    assert distill.relation_blocks(Distill(value_relation=1.0, relation_heads=2), small, large) == (2, 4)


ALL = {"features": 0.3, "distance": 1.0, "angle": 2.0, "hard": 0.4, "temperature": 2.0, "divergence": "jsd"}


@pytest.mark.parametrize("trust", ["fixed", "confidence"])
@pytest.mark.parametrize("micro", [1, 5])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(packed, micro, trust):
    settings = Distill(teachers={"a": 1.0, "b": 3.0}, trust=trust, **ALL)
    others = [PackedStates(_build(LARGE, seed).double(), "sdpa", [2, 4]).eval() for seed in (7, 8)]

    def gradient(size):
        student = PackedStates(_build(SMALL, 3).double(), "sdpa", [1, 2, 1, 2], [48] * 4).double()
        batches = shared_out(PackedRows(str(packed)), 0, 10, size).micro_batches
        count = sum(batch.target_count() for batch in batches)
        for batch in batches:
            inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
            with torch.no_grad():
                told = [States(out[0], out[1], list(out[2:])) for out in (one(*inputs) for one in others)]
            logits, last, *blocks = student(*inputs)
            loss = distillation_loss(settings, States(logits, last, blocks), told, batch, torch.tensor([1.0, 3.0]))
            assert loss.count == batch.target_count()
            (loss.total / count).backward()
        return torch.cat([value.grad.reshape(-1) for value in student.parameters()])

    whole = gradient(10)
    assert float((gradient(micro) - whole).abs().max() / whole.abs().max()) < 1e-6


@pytest.fixture(scope="module")
def teacher(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    lm = _build(LARGE, 1)
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(folder))
    return str(folder)


RUNS = {
    "logits": ({}, {"zero": 1}),
    "minilm": ({"attention_relation": 1.0, "value_relation": 1.0, "relation_heads": 4}, {"zero": 3}),
    "cosine": ({"features": 0.5, "feature_loss": "cosine", "layers": {1: 2, 2: 4}}, {"zero": 1}),
    "everything": (ALL, {"zero": 2}),
    "sharded": ({"features": 0.5, "divergence": "reverse"}, {"zero": 3}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_two_workers_learns_and_exports_the_student_alone(recipe, packed, teacher, tmp_path, crew, name):
    fields, engine = RUNS[name]
    objective = {"teachers": {teacher: 1.0}, "validation_rows": 24, **fields}
    run = recipe(trainer="distill", workers=2, steps=8, engine=engine, objective=objective)
    report = train(run, str(tmp_path / "run"), crew=crew)
    assert report.last_loss < report.first_loss
    student = model.load(report.export)
    assert student.config.num_hidden_layers == 2
    held = shared_out(PackedRows(str(packed), "validation"), 0, 24, 24).micro_batches[0]
    with torch.no_grad():
        summed = PackedLM(student)(held.input_ids, held.position_ids, held.doc_index, held.targets)
    assert float(summed) / held.target_count() == pytest.approx(report.validation[8], rel=1e-5)


def test_a_stored_teacher_is_the_live_one_when_all_tokens_are_kept(recipe, packed, teacher, tmp_path, crew):
    write_teacher(str(packed), teacher, str(tmp_path / "all"), k=300, temperature=2.0)
    write_teacher(str(packed), teacher, str(tmp_path / "few"), k=8, temperature=2.0)
    live = recipe(
        trainer="distill", steps=3, save=False, export=False,
        objective={"teachers": {teacher: 2.0}, "temperature": 2.0, "hard": 0.2},
    )  # fmt: skip
    stored = {**live, "objective": {"stored": True, "temperature": 2.0, "hard": 0.2}}
    expected = train(live, str(tmp_path / "live"), crew=crew).losses
    found = train({**stored, "data": str(tmp_path / "all")}, str(tmp_path / "1"), crew=crew).losses
    assert found == pytest.approx(expected, abs=1e-5)
    some = train({**stored, "data": str(tmp_path / "few")}, str(tmp_path / "2"), crew=crew).losses
    assert some[1] <= expected[1] + 1e-6
    other = PackedRows(str(tmp_path / "few"))
    assert (other.read(0, 4).input_ids == PackedRows(str(packed)).read(0, 4).input_ids).all()


def test_what_cannot_be_distilled_is_refused_with_both_numbers(packed, teacher, tmp_path):
    lm = _build(LARGE, 1, vocab=299)
    model.export(lm, dict(lm.named_parameters()), None, str(tmp_path / "narrow"))
    with pytest.raises(DataError, match="299 tokens, the data 300"):
        check_vocabulary(str(tmp_path / "narrow"), PackedRows(str(packed)))
    check_vocabulary(teacher, PackedRows(str(packed)))
    with pytest.raises(RecipeError, match="the student has 2 blocks and the teacher 4"):
        distill.layer_map(Distill(features=1.0, layers={3: 4}), 2, 4)
    assert distill.layer_map(Distill(features=1.0), 2, 4) == [(1, 2), (2, 4)]


def test_a_tokenizer_with_other_numbers_is_refused(packed, teacher, tmp_path):
    import json
    import shutil
    from pathlib import Path

    shutil.copytree(teacher, tmp_path / "other")
    path = Path(tmp_path / "other/tokenizer.json")
    raw = json.loads(path.read_text())
    vocab = raw["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="and 2 of these have another number"):
        check_vocabulary(str(tmp_path / "other"), PackedRows(str(packed)))


def test_an_even_cut_keeps_first_and_last_blocks_as_they_are():
    from trainers.prune.command import Prune, pruned

    lm = _build(LARGE, 1)
    half = pruned(lm, Prune(layers=2, even=True))
    for new, old in ((0, 0), (1, 3)):
        mine, theirs = half.model.layers[new].state_dict(), lm.model.layers[old].state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["sft", "dpo", "distill"])
def test_the_recipes_of_teaching_are_whole(name):
    from trainers.recipe import algorithm, load_recipe

    recipe = load_recipe(f"recipes/{name}.yaml")
    algorithm(recipe.trainer).SETTINGS(**recipe.objective)
