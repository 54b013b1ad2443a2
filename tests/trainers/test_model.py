import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, RecipeError
from trainers import attention, model
from trainers.batch import PackedRows, Rows, collate
from trainers.model import ModelSettings, PackedLM

SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


def _lm(dtype=torch.float32, tie=True):
    shape = SHAPE.model_copy(update={"tie_embeddings": tie})
    return model.build(shape, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).to(dtype)


def _documents(rows: Rows):
    for ids, lengths in zip(rows.input_ids, rows.doc_lengths, strict=True):
        start = 0
        for size in lengths:
            yield ids[start : start + size]
            start += size


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """flex_attention as plain operations, which have a backward pass on CPU too, behind a gate that is opened here."""
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setitem(attention._flex, "flex", flex.flex_attention)


def _alone(lm, documents):
    """Summed loss of documents one by one, by a plain transformers model: its own attention and loss."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        ids = torch.from_numpy(document)[None]
        logits = lm(input_ids=ids, use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("attention", "tie"), [("sdpa", True), ("sdpa", False), ("flex", True)])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=12), min_size=1, max_size=3))
@example(lengths=[[1, 1, 1, 1], [128, 128], [127, 2, 127]])
@example(lengths=[[256], [1]])
def test_a_packed_row_is_the_sum_of_its_documents_alone(flex_on_cpu, attention, tie, lengths):
    lengths = [np.array(row)[np.cumsum(row) <= 256] for row in lengths]
    rows = Rows(np.random.default_rng(len(lengths)).integers(4, 300, (len(lengths), 256)), lengths, None)
    ours = PackedLM(_lm(torch.float64, tie), attention, loss_chunk=100)
    batch = collate(rows)
    packed_loss = ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    packed_loss.backward()
    plain = _lm(torch.float64, tie)
    total = _alone(plain, _documents(rows))
    torch.testing.assert_close(packed_loss.double(), total, rtol=1e-10, atol=1e-10)
    if not total.requires_grad or not batch.target_count():
        return
    total.backward()
    expected = dict(plain.named_parameters())
    for name, value in ours.lm.named_parameters():
        torch.testing.assert_close(value.grad, expected[name].grad, rtol=1e-10, atol=1e-10)


def test_a_token_never_moves_another_documents_logits(packed):
    batch = collate(PackedRows(str(packed)).read(0, 1))
    ours = PackedLM(_lm(torch.float64))
    before = ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets, "logits")
    changed = batch.input_ids.clone()
    changed[0, batch.doc_index[0] == 1] = 7
    after = ours(changed, batch.position_ids, batch.doc_index, batch.targets, "logits")
    same = batch.doc_index[0] != 1
    assert torch.equal(before[0, same], after[0, same])
    assert not torch.equal(before[0, ~same], after[0, ~same])


def test_the_silent_ways_to_mix_documents_are_refused(packed):
    batch = collate(PackedRows(str(packed)).read(0, 1))
    ours = PackedLM(_lm())
    ids, positions, index, targets = batch.input_ids, batch.position_ids, batch.doc_index, batch.targets
    mask = attention.documents_mask(index, "sdpa")
    for said in (
        {"attention_mask": torch.ones_like(ids)},
        {"attention_mask": torch.ones_like(mask), "position_ids": positions},
        {"attention_mask": mask, "position_ids": positions, "use_cache": True},
        {"position_ids": positions},
        {},
    ):
        with pytest.raises(DataError, match="called without PackedLM"):
            ours.lm(input_ids=ids, **{"use_cache": False, **said})
    with pytest.raises(DataError, match="called without PackedLM"):
        ours.lm.generate(ids, max_new_tokens=2)
    for missing in ((ids, None, index, targets), (ids, positions, None, targets)):
        with pytest.raises(DataError, match="need position_ids and doc_index"):
            ours(*missing)
    shifted = torch.cat([positions[:, :1], positions[:, :-1]], 1)
    for wrong in (torch.arange(64)[None], positions + 1, torch.zeros_like(positions), shifted):
        with pytest.raises(DataError, match="must begin at 0 in every document"):
            ours(ids, wrong, index, targets)


@pytest.mark.parametrize("other", ["eager", "sdpa", "flex_attention"])
def test_another_attention_switched_on_after_building_is_refused(packed, other):
    batch = collate(PackedRows(str(packed)).read(0, 1))
    ours = PackedLM(_lm())
    ours.lm.set_attn_implementation(other)
    with pytest.raises(DataError, match=f"attention was switched from 'corpusmill_sdpa' to '{other}'"):
        ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)


@pytest.mark.parametrize("heeds", ["nothing", "causality"])
def test_a_class_with_an_attention_of_its_own_is_refused(heeds):
    lm = _lm()
    for block in lm.model.layers[1:]:

        def own(hidden_states, block=block, **_):
            length = hidden_states.shape[1]
            weights = torch.ones((length, length))
            weights = weights.tril() if heeds == "causality" else weights
            return block.self_attn.v_proj(weights @ hidden_states / length).repeat(1, 1, 2), None

        block.self_attn.forward = own
    before = torch.get_rng_state()
    with pytest.raises(DataError, match="LlamaForCausalLM: a document sees the one before it"):
        PackedLM(lm)
    assert torch.equal(torch.get_rng_state(), before)


def test_documents_longer_than_a_sliding_window_are_refused(packed):
    from transformers import MistralConfig, MistralForCausalLM

    batch = collate(Rows(np.full((1, 64), 5), [np.array([40, 24])], None))
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for window, fits in ((39, False), (40, True), (None, True)):
        ours = PackedLM(MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=window)))
        inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
        if fits:
            assert ours(*inputs) > 0
            continue
        with pytest.raises(DataError, match="longer than the model's sliding_window of 39"):
            ours(*inputs)


def test_token_losses_sum_to_the_loss(packed):
    batch = collate(PackedRows(str(packed)).read(0, 2))
    ours = PackedLM(_lm(torch.float64), loss_chunk=50)
    inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    each = ours(*inputs, "token_losses")
    assert each.shape == batch.targets.shape
    assert (each[batch.targets == -100] == 0).all()
    torch.testing.assert_close(each.double().sum(), ours(*inputs, "loss").double(), rtol=1e-6, atol=0)


def test_an_export_opens_with_equal_logits(packed, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = _lm()
    ids = torch.randint(4, 300, (2, 20))
    expected = lm(input_ids=ids).logits
    PackedLM(lm)  # what training does to the model must not show in the export
    state = dict(lm.named_parameters())
    model.export(lm, state, str(packed / "tokenizer"), str(tmp_path / "model"))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(opened(input_ids=ids).logits, expected)
    assert opened.config.use_cache is True
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("the cat sat").input_ids) == "the cat sat"


def test_an_exported_model_stops_where_answers_end(chat_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    lm = _lm()
    lm.generation_config.top_k = 7
    model.export(lm, dict(lm.named_parameters()), chat_tokenizer, str(tmp_path / "model"))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    tokenizer = model.load_tokenizer(chat_tokenizer)
    assert set(found.eos_token_id) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert found.top_k == 7


def test_seeds_make_weights_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = _lm(), _lm()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("tie", [True, False])
def test_the_parameter_count_is_known_before_building(tie):
    shape = SHAPE.model_copy(update={"tie_embeddings": tie})
    assert shape.parameters(300) == sum(p.numel() for p in _lm(tie=tie).parameters())


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="hidden_size 30 over 4 heads"):
        ModelSettings(hidden_size=30).check()
    with pytest.raises(RecipeError, match="4 heads cannot share 3 kv_heads"):
        ModelSettings(kv_heads=3).check()


@pytest.mark.parametrize("how", ["full", "selective"])
def test_recomputing_activations_changes_no_gradient(packed, how):
    from trainers.engine import recompute

    batch = collate(PackedRows(str(packed)).read(0, 2))
    gradients = []
    for recomputed in (False, True):
        ours = PackedLM(_lm(torch.float64))
        if recomputed:
            recompute(ours, how)
        ours.train()
        ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets).backward()
        gradients.append([value.grad for value in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compiled_blocks_compute_the_same(packed):
    batch = collate(PackedRows(str(packed)).read(0, 2))
    ours = PackedLM(_lm())
    inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    expected = ours(*inputs)
    expected.backward()
    plain = [value.grad.clone() for value in ours.parameters()]
    ours.zero_grad()
    for block in ours.lm.get_decoder().layers:
        block.compile(
            dynamic=False, fullgraph=True, backend="aot_eager"
        )  # the graph; code generation is torch's affair
    got = ours(*inputs)
    got.backward()
    torch.testing.assert_close(got, expected)
    for value, before in zip(ours.parameters(), plain, strict=True):
        torch.testing.assert_close(value.grad, before, rtol=1e-4, atol=1e-4)


def test_flex_blocks_compile_once_for_all_masks_and_agree_with_sdpa():
    """The GPU's attention, traced here: a BlockMask goes through transformers' layers without a graph break."""
    generator = torch.Generator().manual_seed(0)
    ours = {name: PackedLM(_lm(), name).eval() for name in ("sdpa", "flex")}
    for block in ours["flex"].lm.get_decoder().layers:
        block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        lengths = torch.randint(2, 120, (2, 20), generator=generator).numpy()
        rows = [row[: max(1, int((row.cumsum() <= 256).sum()))] for row in lengths]
        ids = torch.randint(4, 300, (2, 256), generator=generator).numpy()
        batch = collate(Rows(ids, rows, None))
        inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
        with torch.no_grad(), torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            torch.testing.assert_close(ours["flex"](*inputs), ours["sdpa"](*inputs), rtol=1e-5, atol=1e-3)


def test_a_compiled_block_is_one_graph(packed):
    """A break within a block would cost more than compiling gains."""
    lm = _lm()
    ours = PackedLM(lm)
    batch = collate(PackedRows(str(packed)).read(0, 3))
    inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    expected = float(ours(*inputs).detach())
    for block in lm.get_decoder().layers:
        block.compile(dynamic=False, backend="eager", fullgraph=True)
    assert float(ours(*inputs).detach()) == pytest.approx(expected, rel=1e-6)
