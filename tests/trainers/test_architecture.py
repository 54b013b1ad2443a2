"""Models of every supported architecture train and sample as transformers' own code says; all others are refused."""

import json

import pytest
import torch

import corpusmill
from cluster.errors import DataError, RecipeError
from trainers import architecture, model
from trainers.model import PackedLM
from trainers.reward import PackedReward, classifier
from trainers.rollout import Sampler, Sampling

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": 1,
    "bos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
OWN = {
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 40},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
LENGTHS = (40, 24)


def _lm(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **OWN.get(kind, {})}))
    with torch.no_grad():  # biases and norms are 0 or 1 in new models, where a forgotten one would not show
        for value in lm.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return lm.eval()


def _folder(path, kind, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": kind, **SHAPE, **config}))
    return path


@pytest.mark.parametrize("kind", architecture.MODELS)
@torch.no_grad()
def test_documents_in_a_row_are_read_as_transformers_reads_each_alone(kind):
    lm = _lm(kind)
    lm.set_attn_implementation("eager")
    ids = torch.randint(3, 300, (1, 64), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([lm(part, use_cache=False).logits for part in ids.split(LENGTHS, 1)], 1)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    documents = torch.repeat_interleave(torch.arange(2), torch.tensor(LENGTHS))[None]
    targets = ids.roll(-1, 1)
    packed = PackedLM(lm).eval()
    logits = packed(ids, positions, documents, targets, "logits")
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(alone[0], targets[0], reduction="sum")
    torch.testing.assert_close(packed(ids, positions, documents, targets), loss, rtol=1e-5, atol=0)
    assert PackedReward(classifier(lm, None, 0))(ids, positions, documents, targets).shape == ids.shape


@pytest.mark.parametrize("kind", architecture.MODELS)
@torch.no_grad()
def test_attention_is_told_what_sharing_rows_needs_or_that_is_refused(kind, monkeypatch):
    ids, index = torch.zeros((1, 8), dtype=torch.long), torch.zeros((1, 16), dtype=torch.int32)
    packed = PackedLM(_lm(kind)).eval()
    packed.sequence_group = "no group of ranks"
    positions = torch.arange(8)[None]
    if kind in architecture.DEAF:
        with pytest.raises(RecipeError, match=f"engine: sequence: not for model_type '{kind}'"):
            packed(ids, positions, index, ids)
        with pytest.raises(RecipeError, match=r"attention: varlen: not for .* attention: flex"):
            architecture.check_arguments(kind, varlen=True, shared=False)
        return
    asked = []

    def size(group):
        asked.append(group)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "get_world_size", size)
    with pytest.raises(InterruptedError):
        packed(ids, positions, index, ids)
    assert asked == ["no group of ranks"]


@pytest.mark.parametrize("kind", architecture.MODELS)
@torch.no_grad()
def test_answers_have_the_probabilities_that_transformers_gives(kind):
    lm = _lm(kind)
    sampler = Sampler(lm.config, _NoTemplate(), torch.device("cpu"), slots=3)
    sampler.take({name: value.detach() for name, value in lm.named_parameters()})
    lm.set_attn_implementation("eager")
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    for answer in sampler.generate(prompts, Sampling(max_tokens=8, samples=2)):
        whole = torch.tensor([prompts[answer.prompt] + answer.tokens])
        told = lm(whole, use_cache=False).logits[0].log_softmax(-1)
        first = len(prompts[answer.prompt]) - 1
        expected = [float(told[first + i, token]) for i, token in enumerate(answer.tokens)]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)


class _NoTemplate:
    eos_token_id, chat_template = 1, None

    def get_vocab(self):
        return {}


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "granite", "mamba", "gpt2", "made_up"])
def test_what_would_train_as_another_model_is_refused_by_name(kind, tmp_path, capsys):
    folder = _folder(tmp_path / "model", kind)
    changes = ["--set", f"start_from={folder}", "--set", "data=nothing"]
    assert corpusmill.main(["plan", "recipes/sft.yaml", *changes]) == 2
    assert f"start_from: {folder}: model_type '{kind}' is not supported" in capsys.readouterr().err


def test_a_model_that_cannot_learn_from_the_data_is_refused_before_anything_starts(packed, tmp_path, capsys):
    def refused(folder, told):
        changes = ["--set", f"start_from={folder}", "--set", f"data={packed}"]
        assert corpusmill.main(["plan", "recipes/sft.yaml", *changes]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert corpusmill.main(["train", "recipes/sft.yaml", *changes, "--out", str(tmp_path / "run")]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    refused(_folder(tmp_path / "short", "llama", max_position_embeddings=48), "reads 48 tokens")
    refused(_folder(tmp_path / "window", "mistral", sliding_window=32), "reads 32 tokens")
    refused(_folder(tmp_path / "few", "qwen2", vocab_size=200), "vocabulary of 200, the data need 300")
    refused(_folder(tmp_path / "gptq", "llama", quantization_config={"quant_method": "gptq"}), "quantised (gptq)")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    refused(adapter, "holds an adapter of some/base, no whole model; merge it")
    other = _folder(tmp_path / "other", "llama")
    spec = json.loads((packed / "tokenizer/tokenizer.json").read_text())
    spec["model"]["vocab"] = {token + "x": number for token, number in spec["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps({**spec, "model": {**spec["model"], "merges": []}}))
    refused(other, "pack the data with this model's tokenizer")


def test_a_window_that_is_switched_off_bounds_nothing():
    assert architecture.longest({"max_position_embeddings": 64, "sliding_window": 8, "use_sliding_window": False}) == 64


def test_a_name_of_the_hub_is_told_how_to_come(tmp_path):
    with pytest.raises(RecipeError, match="hf download some/model"):
        architecture.read_config("some/model", "start_from")


def test_weights_that_are_not_in_the_files_are_never_drawn(tmp_path):
    lm = _lm("llama")
    state = {name: value for name, value in lm.state_dict().items() if name != "model.layers.1.mlp.up_proj.weight"}
    lm.save_pretrained(tmp_path / "model", state_dict=state)
    with pytest.raises(DataError, match=r"lack 1 of the weights.*up_proj"):
        model.load(str(tmp_path / "model"))
