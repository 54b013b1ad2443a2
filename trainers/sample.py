"""Text from an exported model."""

from __future__ import annotations


def sample(
    folder: str, prompt: str, *, tokens: int = 64, temperature: float = 0.8, top_k: int = 50, seed: int = 0
) -> str:
    """Continue `prompt` by up to `tokens` tokens; temperature 0 takes the likeliest one. Returns prompt and text.

    `folder` is what a training run exports (OUT/model) or any local transformers model. The same seed gives the
    same text on the same machine.
    """
    import torch
    from transformers.utils import logging

    from trainers.model import load, load_tokenizer

    logging.disable_progress_bar()
    model = load(folder)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    if ids.shape[1] == 0:
        ids = torch.tensor([[model.config.eos_token_id]])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.to(device).generate(
            ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            max_new_tokens=tokens,
            do_sample=temperature > 0,
            pad_token_id=model.config.pad_token_id,
            **({"temperature": temperature, "top_k": top_k} if temperature > 0 else {}),
        )
    return str(tokenizer.decode(out[0], skip_special_tokens=True))
