"""Ranks that share the tokens of every row compute what one rank computes: loss, gradient, whole runs."""

import pytest
import torch

from cluster.errors import RecipeError
from trainers import model, sequence
from trainers.batch import PackedRows, shared_out
from trainers.model import ModelSettings, PackedLM
from trainers.recipe import from_mapping
from trainers.train import train


def shape_of(kv_heads):
    return ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=kv_heads, intermediate_size=64)


class Rank:
    """One rank that computes loss and gradient of one optimiser step from its stretch of the rows."""

    def address(self):
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def run(self, folder, rank, world, port, size, cuts):
        from dataclasses import replace

        from trainers import model, ranks, sequence
        from trainers.batch import PackedRows, shared_out
        from trainers.engine import Engine, EngineSettings
        from trainers.model import PackedLM
        from trainers.pretrain import next_token_loss

        group = replace(ranks.join(rank, world, rank, "127.0.0.1", port, "cpu", 60), sequence=size)
        found = {}
        for stage, recompute, micro, shape in cuts:
            lm = model.build(shape, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            packed = PackedLM(lm)
            packed.sequence_group = group.sequence_group()
            engine = Engine(packed, EngineSettings(zero=stage, recompute=recompute), group, 4)
            rows = shared_out(PackedRows(folder), 24, 12, micro, rank=group.data_rank, world=group.data_world)
            share = [sequence.stretch(batch, group.place, size) for batch in rows.micro_batches]
            assert share[0].input_ids.shape[1] == 64 // size
            (count,) = group.sum([float(sum(b.target_count() for b in share))])
            engine.begin(count, len(share))
            total = 0.0
            for batch in share:
                loss = next_token_loss(engine(batch), batch)
                total += float(loss.total)
                engine.backward(loss)
            (total,) = group.sum([total])
            found[stage, micro, shape.kv_heads] = (
                total / count,
                {name: grad.clone() for name, grad in engine.gradients()},
            )
            engine.step(0.0)
        return found


def whole(packed, kv_heads):
    """Loss and gradient by plain autograd, in float64, on one device."""
    lm = model.build(shape_of(kv_heads), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).double()
    (batch,) = shared_out(PackedRows(str(packed)), 24, 12, 12).micro_batches
    loss = PackedLM(lm)(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets) / batch.target_count()
    loss.backward()
    return float(loss.detach()), {name: value.grad for name, value in lm.named_parameters()}


CUTS = [(0, "none", 5, 2), (1, "full", 5, 2), (3, "none", 12, 2), (1, "none", 12, 1)]
"""ZeRO stage, recomputation, height of micro-batches, key heads: two, or one, fewer than the ranks that share rows."""


@pytest.mark.parametrize(("world", "size", "cuts"), [(2, 2, CUTS), (4, 2, CUTS[1:2])])
def test_the_gradient_is_that_of_whole_rows(local_ray, packed, world, size, cuts):
    import ray

    workers = [ray.remote(Rank).options(num_cpus=0.1).remote() for _ in range(world)]
    port = ray.get(workers[0].address.remote())
    shaped = [(*cut[:3], shape_of(cut[3])) for cut in cuts]
    found = ray.get(
        [w.run.remote(str(packed), r, world, port, size, shaped) for r, w in enumerate(workers)], timeout=150
    )
    for worker in workers:
        ray.kill(worker)
    for (stage, _micro, kv_heads), (loss, gradients) in found[0].items():
        expected_loss, expected = whole(packed, kv_heads)
        scale = max(float(grad.abs().max()) for grad in expected.values())
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for name, one in expected.items():
            gap = float((gradients[name].double() - one).abs().max()) / scale
            assert gap < 1e-6, f"ZeRO {stage}, {world} ranks, {size} a row, {kv_heads} key heads: {name}, {gap:.1e}"


def test_two_workers_that_share_rows_train_as_one_that_has_them(recipe, packed, tmp_path, crew):
    cats = tmp_path / "cats.jsonl"
    cats.write_text('{"prompt": "the cat", "choices": ["sat", "was"], "answer": 0}\n')
    objective = {"validation_rows": 24, "tasks": [str(cats)], "prompts": ["the"], "prompt_tokens": 4}
    changes = {"steps": 4, "save": False, "export": False, "objective": objective}
    alone = train(recipe(**changes), str(tmp_path / "1"), crew=crew)
    shared = train(recipe(workers=2, engine={"sequence": 2}, **changes), str(tmp_path / "2"), crew=crew)
    assert shared.losses == pytest.approx(alone.losses, abs=1e-5)
    assert shared.validation == pytest.approx(alone.validation, abs=1e-5)
    assert shared.tokens == alone.tokens


def test_stretches_are_the_rows(packed):
    (batch,) = shared_out(PackedRows(str(packed)), 0, 5, 5).micro_batches
    parts = [sequence.stretch(batch, place, 4) for place in range(4)]
    for name in ("input_ids", "position_ids", "targets"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(batch, name))
    assert all(part.doc_index is batch.doc_index for part in parts)
    assert sum(part.target_count() for part in parts) == batch.target_count()


def test_what_cannot_be_shared_is_refused(recipe, tmp_path, crew):
    sequence.check(2, world=4, heads=6, seq_len=64)
    with pytest.raises(RecipeError, match="sequence: 2 does not divide the 5 heads"):
        sequence.check(2, world=2, heads=5, seq_len=64)
    with pytest.raises(RecipeError, match="sequence: 3 does not divide the 64 tokens"):
        sequence.check(3, world=3, heads=3, seq_len=64)
    with pytest.raises(RecipeError, match="not for trainer: preference"):
        from_mapping({"data": "d", "trainer": "preference", "engine": {"sequence": 2}})
    with pytest.raises(RecipeError, match="not with peft"):
        from_mapping({"data": "d", "start_from": "m", "peft": {"method": "lora"}, "engine": {"sequence": 2}})
    with pytest.raises(Exception, match="sequence: 2 does not divide the 1 workers"):
        train(recipe(workers=1, engine={"sequence": 2}), str(tmp_path), crew=crew)
