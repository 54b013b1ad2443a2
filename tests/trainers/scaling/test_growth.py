import pytest
import torch

from cluster.errors import RecipeError
from trainers import model
from trainers.model import ModelSettings, load
from trainers.scaling.growth import Growth, grow, grow_folder


def _lm(tie=True):
    lm = model.build(
        ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, tie_embeddings=tie),
        vocab_size=300, seq_len=64, seed=1, pad=0, eos=1,
    ).double()  # fmt: skip
    with torch.no_grad():  # a trained model's norms are not 1
        for name, value in lm.named_parameters():
            if "norm" in name:
                value.copy_(torch.rand_like(value) + 0.5)
    return lm


IDS = torch.arange(4, 44).reshape(2, 20)
WAYS = {
    "ffn": Growth(intermediate_size=100),
    "heads": Growth(kv_heads=5),
    "stream": Growth(hidden_size=52),
    "depth": Growth(layers=5),
    "experts": Growth(experts=4),
    "all": Growth(intermediate_size=64, kv_heads=3, hidden_size=48, layers=3, experts=3, experts_per_token=2),
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_growing_changes_no_output(way, tie):
    small = _lm(tie).float() if WAYS[way].experts else _lm(tie)
    large = grow(small, WAYS[way])
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    # transformers' RMSNorm and router work in float32: what passes through them is exact to float32 only
    tolerance = 1e-5 if WAYS[way].experts or WAYS[way].hidden_size else 1e-12
    torch.testing.assert_close(large(IDS).logits, small(IDS).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("way", ["ffn", "heads", "stream", "depth", "experts", "all"])
def test_every_new_weight_learns_and_copies_part_ways(way):
    large = grow(_lm().float(), WAYS[way])
    optimizer = torch.optim.AdamW(large.parameters(), lr=3e-3)
    before = None
    for _ in range(3):
        loss = large(IDS, labels=IDS).loss
        before = before or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(float(value.grad.abs().max()) > 0 for value in large.parameters())
    assert float(large(IDS, labels=IDS).loss.detach()) < before
    if way == "ffn":
        gate = large.model.layers[0].mlp.gate_proj.weight
        assert len(torch.unique(gate.detach(), dim=0)) == len(gate)


def test_a_grown_folder_opens_and_keeps_its_tokenizer(packed, tmp_path):
    lm = model.build(ModelSettings(hidden_size=32, layers=2, heads=4), vocab_size=300, seq_len=64, seed=1, pad=0, eos=1)
    expected = lm(IDS).logits
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(tmp_path / "small"))
    grow_folder(str(tmp_path / "small"), str(tmp_path / "large"), Growth(hidden_size=64, layers=4))
    torch.testing.assert_close(load(str(tmp_path / "large"))(IDS).logits, expected, rtol=0, atol=1e-5)
    assert (tmp_path / "large/tokenizer.json").is_file()


def test_heads_that_no_width_is_a_multiple_of_are_refused(tmp_path):
    model.export(_lm(), dict(_lm().named_parameters()), None, str(tmp_path / "small"))
    wanted = r"hidden_size 32 is no multiple of 6 query heads \(3 kv_heads x 2\).*grow it to 36 as well"
    with pytest.raises(RecipeError, match=wanted):
        grow_folder(str(tmp_path / "small"), str(tmp_path / "large"), Growth(kv_heads=3))
    grow_folder(str(tmp_path / "small"), str(tmp_path / "large"), Growth(kv_heads=3, hidden_size=36))
    assert load(str(tmp_path / "large")).config.num_attention_heads == 6


def test_shrinking_is_refused():
    with pytest.raises(RecipeError, match="layers 1 is below the model's 2"):
        grow(_lm(), Growth(layers=1))
