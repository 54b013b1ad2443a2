"""What samples from a trained role has its last update, and a gap to the trainer stops the run."""

import pytest

from cluster.errors import RunError
from trainers.policy_sampler import check_gap

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64, "init_std": 0.3}


class Rank:
    """One rank: trains one step, samples before and after refreshing, and compares with the trainer."""

    def address(self):
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def run(self, folder, rank, port, shape):
        import torch
        from transformers import AutoTokenizer

        from trainers import model, ranks
        from trainers.batch import PackedRows, shared_out
        from trainers.engine import Engine, EngineSettings
        from trainers.experience import rows_of
        from trainers.model import ModelSettings, PackedLM
        from trainers.policy_sampler import EngineSampler, gap
        from trainers.pretrain import next_token_loss
        from trainers.rollout import Sampler, Sampling

        group = ranks.join(rank, 2, rank, "127.0.0.1", port, "cpu", 60)
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
        prompts, found = [[5, 6, 7], [9], [11, 12]], {}
        for stage in (0, 1, 2, 3):
            lm = model.build(ModelSettings(**shape), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1)
            engine = Engine(PackedLM(lm), EngineSettings(zero=stage), group, 4)
            sampler = EngineSampler(engine, Sampler(lm.config, tokenizer, group.device, slots=2))
            if stage == 3:
                sampler.refresh()  # below it, weights are shared: the sampler cannot fall behind
            share = shared_out(PackedRows(folder), 24, 12, 6, rank=rank, world=2).micro_batches
            (count,) = group.sum([float(sum(batch.target_count() for batch in share))])
            engine.begin(count, len(share))
            for batch in share:
                engine.backward(next_token_loss(engine(batch), batch))
            engine.step(0.05)
            for state in ("stale", "fresh"):
                if state == "fresh":
                    sampler.refresh()
                elif stage < 3:
                    continue
                answers = sampler.generate(prompts, Sampling(max_tokens=9, samples=2))
                rows = rows_of(prompts, answers, pad=0, multiple=1)
                with torch.no_grad():
                    trained = -engine(rows.batch(range(6)), "token_losses")
                n, total, _ = gap(trained, rows.sampler_log_probs, rows.mask)
                found[stage, state] = (total / n, [a.tokens for a in answers])
        return found


def test_the_sampler_sees_the_weights_of_the_last_update_under_every_zero_stage(local_ray, packed):
    import ray

    actor = ray.remote(Rank)
    workers = [actor.options(num_cpus=0.5).remote() for _ in range(2)]
    try:
        port = ray.get(workers[0].address.remote())
        found = ray.get([worker.run.remote(str(packed), rank, port, SHAPE) for rank, worker in enumerate(workers)])
    finally:
        for worker in workers:
            ray.kill(worker)
    assert found[0] == found[1]
    for stage in range(4):
        mean, tokens = found[0][stage, "fresh"]
        assert mean < 1e-5
        assert tokens == found[0][0, "fresh"][1]
        check_gap(mean, 1e-4, 1)
    with pytest.raises(RunError, match="did not get the last update"):
        check_gap(found[0][3, "stale"][0], 0.1, 1)
