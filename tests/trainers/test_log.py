import json
import random

import pytest
from rich.console import Console

from trainers.log import Beat, Log, Spikes, read_metrics
from trainers.train import _Progress


def test_a_spike_is_told_from_noise_and_from_a_falling_loss():
    rng = random.Random(0)
    spikes = Spikes()
    falling = [5 * 0.98**step + rng.gauss(0, 0.02) for step in range(200)]
    assert [spikes.check(loss) for loss in falling] == [None] * 200
    assert "deviations above" in spikes.check(3.0)
    assert spikes.check(falling[-1]) is None


def test_a_loss_that_still_falls_hides_no_spike():
    rng = random.Random(0)
    spikes = Spikes()
    falling = [1.5 + 4 * 0.97**step + rng.gauss(0, 0.05) for step in range(200)]
    found = [step for step, loss in enumerate(falling) if spikes.check(loss + 0.9 * (step in (45, 70, 150)))]
    assert found == [45, 70, 150]


def test_a_loss_that_stays_higher_is_not_told_for_ever():
    spikes = Spikes()
    rng = random.Random(0)
    told = [spikes.check(loss + rng.gauss(0, 0.02)) is not None for loss in [2.0] * 60 + [4.0] * 200]
    assert told == [False] * 60 + [True] * 10 + [False] * 190


def test_a_resumed_log_drops_what_came_after_the_checkpoint_and_torn_lines(tmp_path):
    lines = [{"step": step, "loss": 5.0 - step} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
    log = Log(str(tmp_path), start=3)
    log.write({"step": 4, "loss": 0.5})
    assert log.since(0) == [{"step": 4, "loss": 0.5}]
    log.close()
    assert read_metrics(str(tmp_path)) == [*lines[:3], {"step": 4, "loss": 0.5}]


def test_a_beat_knows_its_stage():
    beat = Beat()
    beat.at("backward", 7)
    stage, step, seconds = beat.read()
    assert (stage, step) == ("backward", 7)
    assert seconds < 5


def test_a_run_that_learns_from_rewards_shows_them(capsys):
    with _Progress(Console(width=200), steps=1, world=1, device="cpu") as show:
        show.line({"step": 1, "reward": 0.25, "loss": 0.0, "rate": 1e-6, "tokens_per_second": 10.0})
    assert "reward 0.2500  loss 0.0000" in capsys.readouterr().out


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for start in (0, 1):
        log = Log(str(tmp_path), start)
        ids.append(log._wandb.id)
        log.write({"step": start + 1, "loss": 1.0, "samples": [{"prompt": "a", "text": "b"}]})
        log.close()
    assert ids[0] == ids[1]
