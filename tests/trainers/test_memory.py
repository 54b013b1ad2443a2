import pytest

from trainers.memory import estimate

SHAPE = {
    "parameters": 991_000_000, "layers": 18, "hidden": 2048, "kv": 2048, "ffn": 5632, "vocabulary": 32_000,
    "tokens": 4 * 4096, "bf16": True,
}  # fmt: skip


@pytest.mark.parametrize("bf16", [True, False])
def test_each_zero_stage_needs_no_more_than_the_one_before_on_many_devices(bf16):
    totals = [estimate(**{**SHAPE, "bf16": bf16}, zero=zero, world=8).total for zero in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)


def test_states_of_one_device_are_16_or_more_bytes_a_weight():
    whole = estimate(**SHAPE, zero=1, world=1)
    assert (whole.weights + whole.gradients + whole.optimizer) / SHAPE["parameters"] == pytest.approx(20)
    plain = estimate(**{**SHAPE, "bf16": False}, zero=0, world=1)
    assert (plain.weights + plain.gradients + plain.optimizer) / SHAPE["parameters"] == pytest.approx(16)


WIDE, SMALL = (992_000_000, 18, 2048, 5632), (110_000_000, 12, 768, 2048)


@pytest.mark.parametrize(
    ("shape", "tokens", "zero", "compiled", "measured"),
    [
        (WIDE, 8 * 4096, 1, True, 55.1),
        (SMALL, 16 * 2048, 1, True, 12.2),
        (WIDE, 4 * 4096, 1, False, 44.1),
        (SMALL, 16 * 2048, 1, False, 16.0),
        (SMALL, 16 * 2048, 3, False, 16.1),
    ],
)
def test_the_estimate_is_within_a_twentieth_of_what_a_gpu_used(shape, tokens, zero, compiled, measured):
    """Peaks in GiB of benchmarks/results/pretrain_h200_202611.md: bf16, one micro-batch per step."""
    parameters, layers, width, ffn = shape
    expected = estimate(
        parameters=parameters, layers=layers, hidden=width, kv=width, ffn=ffn, vocabulary=32_000, tokens=tokens,
        zero=zero, world=1, bf16=True, compiled=compiled,
    )  # fmt: skip
    assert expected.total / 2**30 == pytest.approx(measured, rel=0.05)


def test_sums_of_earlier_micro_batches_lie_beside_the_activations():
    one, several = (estimate(**SHAPE, zero=2, world=1, accumulates=how) for how in (False, True))
    assert several.total - one.total == pytest.approx(4 * SHAPE["parameters"])


def test_recomputation_saves_activations_only():
    kept, saved = (estimate(**SHAPE, zero=1, world=1, recompute=how) for how in ("none", "full"))
    assert saved.activations < kept.activations / 5
    assert saved.loss == kept.loss


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_frozen_weights_have_no_gradients_and_no_moments(zero):
    whole, few = (estimate(**SHAPE, zero=zero, world=1, trained=n) for n in (None, 1_000_000))
    assert few.weights == whole.weights and few.activations == whole.activations
    share = 1_000_000 / SHAPE["parameters"]
    assert few.gradients == pytest.approx(whole.gradients * share)
    assert few.optimizer == pytest.approx(whole.optimizer * share)
