import copy
import json

import pytest
import torch

import corpusmill
from cluster.errors import DataError, RecipeError
from trainers import model
from trainers.batch import PackedRows, collate
from trainers.model import ModelSettings, PackedLM
from trainers.prune.command import Prune, pruned
from trainers.prune.graph import components
from trainers.prune.importance import Measured, measure, unit_scores
from trainers.prune.structured import parameters

IDS = torch.arange(4, 44).reshape(2, 20)


def _lm(tie=True, kind="llama"):
    """Trained-looking: random norms, two key/value heads with two query heads each."""
    if kind == "llama":
        shape = ModelSettings(
            hidden_size=32, layers=3, heads=4, kv_heads=2, intermediate_size=48, tie_embeddings=tie, init_std=0.2
        )
        lm = model.build(shape, vocab_size=300, seq_len=64, seed=1, pad=0, eos=1)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            kind, vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=tie, initializer_range=0.2, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(1)
        lm = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in lm.named_parameters():
            if "norm" in name or "bias" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return lm.eval()


def _silence(lm, kind, units):
    """Set all weights of some units to 0, in every block."""
    found = components(parameters(lm), lm.config)
    for name, component in found.items():
        if name == kind or name.startswith(f"{kind}."):
            for member in component.members:
                value = dict(lm.named_parameters())[member.name]
                if "norm" in member.name:
                    continue  # what a norm multiplies is 0 there already
                for unit in units:
                    at = torch.arange(unit * member.width, (unit + 1) * member.width)
                    value.data.index_fill_(member.axis, at, 0.0)


CUTS = {
    "heads": ([0], {"kv_heads": 1}),
    "queries": ([1, 2], {"queries_per_kv": 1}),
    "ffn": ([0, 7, 8, 47], {"intermediate_size": 44}),
    "hidden": ([3, 30], {"hidden_size": 30}),
}


@pytest.mark.parametrize("by", ["magnitude", "taylor", "wanda"])
@pytest.mark.parametrize("kind", CUTS)
def test_cutting_what_is_unused_changes_nothing(packed, kind, by):
    units, cut = CUTS[kind]
    for tie in (True, False):
        lm = _lm(tie).double()  # only norms still round to float32
        _silence(lm, kind, units)
        expected = lm(IDS).logits
        small = pruned(lm, Prune(**cut, importance=by, calibration=str(packed), rows=4))
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in lm.parameters())
        torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_other_architectures_are_cut_as_well(kind):
    lm = _lm(kind=kind)
    for what, (units, _) in CUTS.items():
        if what != "heads":
            _silence(lm, what, units)
    expected = lm(IDS).logits
    small = pruned(lm, Prune(queries_per_kv=1, intermediate_size=44, hidden_size=30))
    torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by", ["magnitude", "wanda"])
def test_a_block_that_does_nothing_is_the_first_to_go(packed, by):
    lm = _lm()
    for name, value in lm.named_parameters():
        if name.startswith("model.layers.1.") and "norm" not in name:
            value.data.zero_()
    expected = lm(IDS).logits
    small = pruned(lm, Prune(layers=2, importance=by, calibration=str(packed), rows=4))
    assert small.config.num_hidden_layers == 2
    torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-6)


def test_all_that_is_connected_is_in_one_component():
    lm = _lm(tie=False)
    found = components(parameters(lm), lm.config)
    assert set(found) == {"hidden", *(f"{kind}.{n}" for kind in ("heads", "queries", "ffn") for n in range(3))}
    assert found["heads.0"].units == 2 and found["queries.0"].units == 4
    assert {(m.name.split(".")[-2], m.axis, m.width) for m in found["heads.1"].members} == {
        ("q_proj", 0, 16), ("k_proj", 0, 8), ("v_proj", 0, 8), ("o_proj", 1, 16),
    }  # fmt: skip
    assert len(found["hidden"].members) == 1 + 1 + 1 + 3 * 9  # embeddings, head, last norm; 2 norms and 7 layers each
    gemma = copy.deepcopy(lm.config)
    gemma.model_type = "gemma"
    with pytest.raises(DataError, match="found model_type 'gemma'"):
        components(parameters(lm), gemma)
    with pytest.raises(DataError, match=r"does not know what axis 0 of model\.extra"):
        components({**parameters(lm), "model.extra": torch.zeros(3)}, lm.config)


def test_importance_is_the_published_one(packed):
    lm = _lm()
    data = PackedRows(str(packed))
    measured = measure(lm, data, 3, 2, gradients=True)
    state = parameters(lm)
    channel = components(state, lm.config)["ffn.1"]
    gate, up, down = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down"))
    # inputs and gradients once more, by a plain forward pass over all three rows
    batch = collate(data.read(0, 3))
    plain = PackedLM(copy.deepcopy(lm))
    inputs = []
    plain.lm.get_submodule("model.layers.1.mlp.down_proj").register_forward_hook(lambda m, i, o: inputs.append(i[0]))
    plain(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets).backward()
    real = torch.zeros_like(batch.doc_index, dtype=torch.bool)
    for row in range(3):
        real[row, : int(data.read(0, 3).doc_lengths[row].sum())] = True
    grads = {name: value.grad for name, value in plain.lm.named_parameters()}
    norms = inputs[0].detach()[real].norm(dim=0)
    torch.testing.assert_close(measured.inputs["model.layers.1.mlp.down_proj"].float(), norms, rtol=1e-4, atol=1e-5)
    wanda = (state[down].abs() * norms).sum(0).double()
    torch.testing.assert_close(unit_scores(channel, state, "wanda", measured), wanda, rtol=1e-4, atol=1e-5)
    taylor = sum((state[n] * grads[n]).sum(d).double().abs() for n, d in ((gate, 1), (up, 1), (down, 0)))
    torch.testing.assert_close(unit_scores(channel, state, "taylor", measured), taylor, rtol=1e-3, atol=1e-4)
    squares = sum((state[n] ** 2).sum(d).double() for n, d in ((gate, 1), (up, 1), (down, 0)))
    torch.testing.assert_close(unit_scores(channel, state, "magnitude", Measured()), squares, rtol=1e-5, atol=0)


def test_the_command_leaves_a_plain_smaller_folder(packed, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = _lm()
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(tmp_path / "large"))
    cuts = ["layers=2", "kv_heads=1", "intermediate_size=32", "hidden_size=24", "sparsity=0.5", "scope=row"]
    measured = ["importance=wanda", f"calibration={packed}", "rows=4"]
    sets = [part for value in [*cuts, *measured] for part in ("--set", value)]
    assert corpusmill.main(["prune", str(tmp_path / "large"), str(tmp_path / "small"), *sets]) == 0
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(tmp_path / "small")
    about = json.loads((tmp_path / "small/config.json").read_text())
    assert (about["num_hidden_layers"], about["num_attention_heads"], about["num_key_value_heads"]) == (2, 2, 1)
    assert (about["hidden_size"], about["intermediate_size"], about["head_dim"]) == (24, 32, 8)
    assert small(IDS).logits.shape == (2, 20, 300)
    for name, module in small.named_modules():
        if name.endswith("_proj"):
            assert ((module.weight == 0).sum(1) == module.weight.shape[1] // 2).all(), name
    assert "parameters" in capsys.readouterr().out
    # and it trains
    PackedLM(small)(*(getattr(collate(PackedRows(str(packed)).read(0, 2)), f) for f in
                      ("input_ids", "position_ids", "doc_index", "targets"))).backward()  # fmt: skip
    large = str(tmp_path / "large")
    assert corpusmill.main(["prune", large, str(tmp_path / "no"), "--set", "layers=9"]) == 2
    assert corpusmill.main(["prune", large, f"{large}/.", "--set", "layers=2"]) == 2  # never over the model itself
    assert corpusmill.main(["prune", large, str(tmp_path / "half"), "--set", "pattern=2:4"]) == 0  # no time of day
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half").model.layers[0].mlp.up_proj.weight
    assert ((half == 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_cuts_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="hidden_size 33, but the model has 32"):
        pruned(_lm(), Prune(hidden_size=33))
    with pytest.raises(RecipeError, match="set calibration=FOLDER"):
        pruned(_lm(), Prune(layers=1, importance="taylor"))
    with pytest.raises(RecipeError, match="nothing to cut"):
        pruned(_lm(), Prune())
