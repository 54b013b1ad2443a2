import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import DataError, RecipeError
from trainers import shelf
from trainers.export import export_checkpoint
from trainers.train import train


def test_any_checkpoint_becomes_the_model_that_the_run_would_have_written(recipe, crew, tmp_path):
    out = tmp_path / "run"
    train(
        recipe(checkpoint_every=1, keep=1, keep_every=3, schedule={"rate": 1e-2, "shape": "cosine"}),
        str(out),
        crew=crew,
    )
    kept = [path.rpartition("-")[2].lstrip("0") for path in shelf.published(str(out / "checkpoints"))]
    assert kept == ["3", "6", "7", "8"]  # each third, the last regular one, and the end
    made = load_file(f"{export_checkpoint(str(out), str(tmp_path / 'newest'))}/model.safetensors")
    end = load_file(out / "model/model.safetensors")
    assert made.keys() == end.keys()
    assert all(torch.equal(made[name], end[name]) for name in end)
    assert (tmp_path / "newest/config.json").read_text() == (out / "model/config.json").read_text()
    early = export_checkpoint(str(out / "checkpoints/step-00000003"), str(tmp_path / "early"), "bfloat16")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(early)
    assert lm.dtype == torch.bfloat16
    assert lm(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert any(not torch.equal(value, made[name].bfloat16()) for name, value in lm.named_parameters())
    assert AutoTokenizer.from_pretrained(early).eos_token == "<eos>"


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(DataError, match="no checkpoint; a folder checkpoints/step-"):
        export_checkpoint(str(tmp_path), str(tmp_path / "model"))
    about = {"format": "corpusmill.checkpoint/1", "world": 1, "step": 3, "cursor": 0, "tokens": 0}
    path = tmp_path / "checkpoints/step-00000003"
    path.with_suffix(".tmp").mkdir(parents=True)
    shelf.publish(str(path), {**about, "recipe": {"peft": {"method": "lora"}}})
    with pytest.raises(DataError, match=r"is damaged: state-00000-of-00001\.safetensors is not there"):
        export_checkpoint(str(tmp_path), str(tmp_path / "model"))
    (path / shelf.files(1)[0]).write_bytes(b"")
    with pytest.raises(RecipeError, match="of a run with peft"):
        export_checkpoint(str(tmp_path), str(tmp_path / "model"))
