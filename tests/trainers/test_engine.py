"""The engine in real process groups: gloo, one process per rank."""

import numpy as np
import pytest
import torch

from trainers import model
from trainers.batch import PackedRows, shared_out
from trainers.model import ModelSettings, PackedLM

SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
ROWS = 12


class Rank:
    """One rank that computes the gradient of one optimiser step under several cuts and ZeRO stages."""

    def address(self):
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def run(self, folder, rank, world, port, stages, micro_sizes, shape):
        from trainers import model, ranks
        from trainers.batch import PackedRows, shared_out
        from trainers.engine import Engine, EngineSettings
        from trainers.model import ModelSettings, PackedLM
        from trainers.pretrain import next_token_loss

        group = ranks.join(rank, world, rank, "127.0.0.1", port, "cpu", 60)
        found = {}
        for stage in stages:
            lm = model.build(ModelSettings(**shape), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            engine = Engine(PackedLM(lm), EngineSettings(zero=stage), group, 4)
            for micro in micro_sizes:
                share = shared_out(PackedRows(folder), 24, 12, micro, rank=rank, world=world).micro_batches
                (count,) = group.sum([float(sum(batch.target_count() for batch in share))])
                engine.begin(count, len(share))
                for batch in share:
                    engine.backward(next_token_loss(engine(batch), batch))
                found[stage, micro] = {name: grad.clone() for name, grad in engine.gradients()}
                engine.step(0.0)  # a rate of 0 moves nothing: the next cut starts from the same weights
        return found

    def tables(self, port, stage):
        """The rotary frequencies that a trained and a frozen model have, in bf16."""
        from trainers import model, ranks
        from trainers.engine import Engine, EngineSettings
        from trainers.model import ModelSettings, PackedLM
        from trainers.roles import Frozen

        group = ranks.join(0, 1, 0, "127.0.0.1", port, "cpu", 60)
        lms = [
            model.build(ModelSettings(**SHAPE.model_dump()), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            for _ in range(2)
        ]
        engine = Engine(PackedLM(lms[0]), EngineSettings(zero=stage, precision="bf16"), group, 4)
        frozen = Frozen(PackedLM(lms[1]), group.device, engine.dtype)
        dtypes = {p.dtype for p in (*engine.module.parameters(), *frozen.model.parameters())}
        return dtypes, [dict(module.named_buffers()) for module in (engine.module, frozen.model)]

    def bf16(self, port, stage):
        """(dtype of a matrix product in the model, dtypes of the gradients that are stepped with)."""
        from trainers import model, ranks
        from trainers.batch import Rows, collate
        from trainers.engine import Engine, EngineSettings
        from trainers.model import ModelSettings, PackedLM
        from trainers.pretrain import next_token_loss

        group = ranks.join(0, 1, 0, "127.0.0.1", port, "cpu", 60)
        lm = model.build(ModelSettings(**SHAPE.model_dump()), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
        engine = Engine(PackedLM(lm), EngineSettings(zero=stage, precision="bf16"), group, 4)
        dtypes = []
        lm.model.layers[0].mlp.up_proj.register_forward_hook(lambda _module, _given, out: dtypes.append(out.dtype))
        batch = collate(Rows(np.arange(64, dtype=np.int64)[None], [np.array([64])], None))
        engine.begin(batch.target_count(), 1)
        engine.backward(next_token_loss(engine(batch), batch))
        return dtypes[0], {gradient.dtype for _, gradient in engine.gradients()}


@pytest.fixture(scope="module")
def whole_gradient(packed):
    """The gradient by plain autograd, in float64, of the mean over all targets of 12 rows at once."""
    lm = model.build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).double()
    ours = PackedLM(lm)
    (batch,) = shared_out(PackedRows(str(packed)), 24, ROWS, ROWS).micro_batches
    loss = ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets) / batch.target_count()
    loss.backward()
    return {name: value.grad for name, value in lm.named_parameters()}


@pytest.mark.parametrize(("world", "stages"), [(1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [1])])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(local_ray, packed, whole_gradient, world, stages):
    import ray

    workers = [ray.remote(Rank).options(num_cpus=0.1).remote() for _ in range(world)]
    port = ray.get(workers[0].address.remote())
    shape = SHAPE.model_dump()
    found = ray.get(
        [w.run.remote(str(packed), r, world, port, stages, [1, 4, 5], shape) for r, w in enumerate(workers)],
        timeout=120,
    )
    for worker in workers:
        ray.kill(worker)
    scale = max(float(grad.abs().max()) for grad in whole_gradient.values())
    for cut, gradients in found[0].items():
        for name, expected in whole_gradient.items():
            gap = float((gradients[name].double() - expected).abs().max()) / scale
            assert gap < 1e-6, f"ZeRO {cut[0]}, micro-batches of {cut[1]}, {world} ranks: {name} is off by {gap:.1e}"


@pytest.mark.parametrize("stage", [1, 3])
def test_a_model_in_bf16_keeps_exact_rotary_frequencies(local_ray, stage):
    import ray

    worker = ray.remote(Rank).options(num_cpus=0.1).remote()
    dtypes, found = ray.get(worker.tables.remote(ray.get(worker.address.remote()), stage), timeout=120)
    ray.kill(worker)
    assert dtypes == {torch.bfloat16}
    exact = dict(PackedLM(model.build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)).named_buffers())
    assert "lm.model.rotary_emb.inv_freq" in exact
    for buffers in found:
        assert buffers.keys() == exact.keys()
        assert all(value.dtype == torch.float32 and torch.equal(value, exact[name]) for name, value in buffers.items())


def test_a_step_without_targets_is_refused():
    from cluster.errors import DataError
    from trainers.engine import Engine

    with pytest.raises(DataError, match="without a single target"):
        Engine.begin(object.__new__(Engine), 0.0, 1)


@pytest.mark.parametrize("stage", [0, 1])
def test_bf16_multiplies_in_bf16_and_keeps_float32_weights(local_ray, stage):
    import ray

    worker = ray.remote(Rank).options(num_cpus=0.1).remote()
    multiplied, gradients = ray.get(worker.bf16.remote(ray.get(worker.address.remote()), stage), timeout=120)
    ray.kill(worker)
    assert multiplied == torch.bfloat16
    assert gradients == {torch.float32}
