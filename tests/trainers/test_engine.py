"""The engine in real process groups: gloo, one process per rank."""

import numpy as np
import pytest
import torch

from trainers import model
from trainers.batch import PackedRows, shared_out
from trainers.model import ModelSettings, PackedLM

SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


class Rank:
    """One rank that computes the gradient of one optimiser step under several cuts and ZeRO stages."""

    def address(self):
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def run(self, folder, rank, world, port, stages, cuts, shape):
        from trainers import model, ranks
        from trainers.batch import PackedRows, shared_out
        from trainers.engine import Engine, EngineSettings
        from trainers.model import ModelSettings, PackedLM
        from trainers.pretrain import next_token_loss

        group = ranks.join(rank, world, rank, "127.0.0.1", port, "cpu", 60)
        found, moved, norms = {}, {}, {}
        for stage, how in stages:
            lm = model.build(ModelSettings(**shape), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            engine = Engine(PackedLM(lm), EngineSettings(zero=stage, **how), group, 4)
            engine.train()
            for cut in [*cuts, cuts[0]]:
                rows, micro = cut
                share = shared_out(PackedRows(folder), 24, rows, micro, rank=rank, world=world).micro_batches
                (count,) = group.sum([float(sum(batch.target_count() for batch in share))])
                engine.begin(count, len(share))
                for batch in share:
                    engine.backward(next_token_loss(engine(batch), batch))
                last = (stage, *how.values(), rows, micro) in found
                found[stage, *how.values(), rows, micro] = {name: grad.clone() for name, grad in engine.gradients()}
                # a rate of 0 moves nothing: the next cut starts from the same weights
                norms[stage, *how.values()] = engine.step(0.01 if last else 0.0).grad_norm
            moved[stage, *how.values()] = {n: v.clone() for kind, n, v in engine.state() if kind == "weight"}
        return found, moved, norms

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

    def left(self, port):
        """Per ZeRO stage and precision, bytes of tensors that are alive after a closed engine's step."""
        import gc

        from trainers import model, ranks
        from trainers.batch import Rows, collate
        from trainers.engine import Engine, EngineSettings
        from trainers.model import ModelSettings, PackedLM
        from trainers.pretrain import next_token_loss

        group = ranks.join(0, 1, 0, "127.0.0.1", port, "cpu", 60)
        found = {}
        for stage, precision in ((0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
            lm = model.build(ModelSettings(**SHAPE.model_dump()), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            engine = Engine(PackedLM(lm), EngineSettings(zero=stage, precision=precision), group, 4)
            batch = collate(Rows(np.arange(64, dtype=np.int64)[None], [np.array([64])], None))
            engine.begin(batch.target_count(), 1)
            engine.backward(next_token_loss(engine(batch), batch))
            engine.step(1e-3)
            engine.close()
            del lm, engine, batch
            gc.collect()
            tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
            found[stage, precision] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


@pytest.fixture(scope="module")
def masked(packed_writer, tmp_path_factory):
    """Rows of which some learn nothing: those of rank 1 of two, and every fourth."""

    def learned(row, size):
        return [0] * size if 30 <= row < 36 or row % 4 == 0 else [int(place % 3 > 0) for place in range(size)]

    return packed_writer(tmp_path_factory.mktemp("masked") / "packed", learned=learned)


def whole(packed, rows):
    """The model and its gradient by plain autograd, in float64, of the mean over all targets of the rows at once."""
    lm = model.build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).double()
    ours = PackedLM(lm)
    (batch,) = shared_out(PackedRows(str(packed)), 24, rows, rows).micro_batches
    loss = ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets) / batch.target_count()
    loss.backward()
    return lm, {name: value.grad.clone() for name, value in lm.named_parameters()}


CLIP = {"clip": 0.05, "eps": 1e-3}
HOW = [{"recompute": how, **CLIP} for how in ("none", "selective", "full")]
CUTS = [(12, 1), (12, 4), (12, 5), (5, 1)]
"""Rows of a step and of a micro-batch; of 5 rows some ranks have one fewer, and an empty micro-batch."""


@pytest.mark.parametrize(
    ("rows", "world", "stages"),
    [
        ("packed", 1, [(stage, HOW[0]) for stage in range(4)]),
        ("masked", 2, [*((stage, HOW[stage % 3]) for stage in range(4)), (2, {"offload_optimizer": True, **CLIP})]),
        ("masked", 3, [(1, HOW[1])]),
    ],
)
def test_gradient_and_step_do_not_depend_on_how_the_batch_is_cut(local_ray, request, rows, world, stages):
    import ray

    folder = str(request.getfixturevalue(rows))
    workers = [ray.remote(Rank).options(num_cpus=0.1).remote() for _ in range(world)]
    port = ray.get(workers[0].address.remote())
    shape = SHAPE.model_dump()
    arguments = (world, port, stages, CUTS, shape)
    results = ray.get([w.run.remote(folder, r, *arguments) for r, w in enumerate(workers)], timeout=120)
    for worker in workers:
        ray.kill(worker)
    found, moved, norms = results[0]
    for cut, gradients in found.items():
        _, expected = whole(folder, cut[-2])
        scale = max(float(grad.abs().max()) for grad in expected.values())
        for name, one in expected.items():
            gap = float((gradients[name].double() - one).abs().max()) / scale
            assert gap < 1e-6, f"{world} ranks, {cut}: {name} is off by {gap:.1e}"
    lm, norm = stepped(folder)
    for how, weights in moved.items():
        assert norms[how] == pytest.approx(norm, rel=1e-5)
        for name, value in lm.named_parameters():
            assert float((weights[name].double() - value.detach()).abs().max()) < 1e-6, f"{world} ranks, {how}: {name}"


def stepped(folder):
    """The model after the same steps by plain AdamW in float64, and the last norm before clipping."""
    lm, _ = whole(folder, 12)
    groups = [{"params": [p for p in lm.parameters() if (p.ndim < 2) == flat], "weight_decay": 0.1 * (not flat)}
              for flat in (False, True)]  # fmt: skip
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=CLIP["eps"])
    for number, (rows, _) in enumerate([*CUTS, CUTS[0]]):
        _, gradient = whole(folder, rows)
        for name, value in lm.named_parameters():
            value.grad = gradient[name]
        norm = float(torch.nn.utils.clip_grad_norm_(lm.parameters(), CLIP["clip"]))
        assert norm > 2 * CLIP["clip"]
        for group in adam.param_groups:
            group["lr"] = 0.01 if number == len(CUTS) else 0.0
        adam.step()
    return lm, norm


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


def test_a_closed_engine_leaves_no_model_behind(local_ray):
    import ray

    worker = ray.remote(Rank).options(num_cpus=0.1).remote()
    left = ray.get(worker.left.remote(ray.get(worker.address.remote())), timeout=180)
    ray.kill(worker)
    model_bytes = 4 * SHAPE.parameters(300)
    assert all(size < model_bytes / 20 for size in left.values()), (left, model_bytes)
