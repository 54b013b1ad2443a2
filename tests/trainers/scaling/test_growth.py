import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cluster.errors import RecipeError
from trainers import model
from trainers.model import ModelSettings, load
from trainers.scaling.growth import Growth, grow, grow_folder
from trainers.train import train


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


def _saved(folder, dtype=torch.float32, shard="5GB", **changes):
    """A folder that transformers itself wrote, with weights of some size and norms that are not 1."""
    shape = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 6}
    about = {"vocab_size": 301, "num_key_value_heads": 2, "tie_word_embeddings": False, **shape, **changes}
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**about)).to(dtype)
    with torch.no_grad():
        for name, value in lm.named_parameters():
            value.copy_(torch.rand_like(value) + 0.5 if "norm" in name else torch.randn_like(value) * 0.1)
    lm.save_pretrained(folder, max_shard_size=shard)
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 20},
        {"attention_bias": True, "mlp_bias": True},
        {"dtype": torch.bfloat16},
        {"shard": "40KB"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rms_norm_eps": 1e-3},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "growth",
    [
        Growth(layers=5),
        Growth(hidden_size=54, intermediate_size=131),
        Growth(kv_heads=7, hidden_size=126),
        Growth(intermediate_size=128, layers=4, experts=3),
    ],
    ids=["deeper", "odd", "heads", "experts"],
)
def test_models_of_transformers_grow_without_a_change(changes, growth, tmp_path):
    source = _saved(tmp_path / "small", **changes)
    if growth.experts and "mlp_bias" in changes:
        with pytest.raises(RecipeError, match="experts are Mixtral's, which have no biases"):
            grow_folder(source, str(tmp_path / "large"), growth)
        return
    grow_folder(source, str(tmp_path / "large"), growth)
    large = AutoModelForCausalLM.from_pretrained(tmp_path / "large")
    torch.testing.assert_close(large(IDS).logits, load(source)(IDS).logits, rtol=0, atol=1e-4)
    assert large.dtype == torch.float32
    assert "model.safetensors.index.json" not in [path.name for path in (tmp_path / "large").iterdir()]


def test_the_folder_itself_and_no_growth_are_refused(tmp_path):
    source = _saved(tmp_path / "small")
    with pytest.raises(RecipeError, match="is source and target"):
        grow_folder(source, f"{source}/../small", Growth(layers=5))
    with pytest.raises(RecipeError, match="nothing grows"):
        grow_folder(source, str(tmp_path / "large"), Growth(stack=True))
    assert load(source).config.num_hidden_layers == 3


@pytest.mark.parametrize("growth", [Growth(hidden_size=48, layers=4), Growth(experts=2)], ids=["larger", "experts"])
def test_training_goes_on_from_where_it_was(growth, packed, recipe, crew, tmp_path):
    shape = {"hidden_size": 24, "layers": 2, "heads": 2, "intermediate_size": 48}
    changes = {"schedule": {"rate": 1e-2, "warmup": 2}, "micro_rows": 6, "validate_every": 20}
    first = train(recipe(**changes, model=shape, steps=40), str(tmp_path / "small"), crew=crew)
    grow_folder(str(tmp_path / "small/model"), str(tmp_path / "large"), growth)
    on = {**changes, "model": {}, "schedule": {"rate": 3e-3, "warmup": 2}}
    as_it_was = train(recipe(**on, steps=2, start_from=str(tmp_path / "small/model")), str(tmp_path / "on"), crew=crew)
    more = train(recipe(**on, steps=40, start_from=str(tmp_path / "large")), str(tmp_path / "more"), crew=crew)
    assert more.parameters > first.parameters
    assert more.losses[1] == pytest.approx(as_it_was.losses[1], abs=1e-4)
    assert more.validation[40] < first.validation[40] - 0.02


def test_shrinking_is_refused():
    with pytest.raises(RecipeError, match="layers 1 is below the model's 2"):
        grow(_lm(), Growth(layers=1))
