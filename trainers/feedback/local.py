"""A local model as a writer: texts by the rollout protocol, labels by their log-probability."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.answers import turn_end
from trainers.feedback.writer import Chat, Draw, cut, key_of
from trainers.rollout import Rollouts, Sampler, Sampling


class Local:
    """Texts come from `rollouts`, log-probabilities from `lm`; both have the same weights."""

    def __init__(self, name: str, lm: Any, tokenizer: Any, rollouts: Rollouts, *, rows: int = 16):
        self.name, self.lm, self.tokenizer, self.rollouts, self.rows = name, lm, tokenizer, rollouts, rows

    def render(self, chat: Chat) -> str:
        """The text that an answer follows: by the chat template, or the messages line by line where there is none."""
        if getattr(self.tokenizer, "chat_template", None):
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        return "\n".join(message["content"] for message in chat) + "\n"

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def write(self, chats: Sequence[Chat], draw: Draw) -> list[list[str]]:
        """See `Writer.write`. The random stream of a text is named by its chat, so batches may be cut anywhere."""
        prompts = [self.ids(self.render(chat)) for chat in chats]
        fields = draw.model_dump()
        turn = turn_end(self.tokenizer)
        sampling = Sampling(**fields | {"stop": (*draw.stop, *([turn] if turn else []))})
        answers = self.rollouts.generate(prompts, sampling, [int(key_of(chat)[:12], 16) for chat in chats])
        found: list[list[str]] = [[] for _ in chats]
        for answer in answers:
            text = self.tokenizer.decode(answer.tokens, skip_special_tokens=False)
            if turn:
                text = text.split(turn)[0]
            text = self.tokenizer.decode(self.ids(text), skip_special_tokens=True)
            found[answer.prompt].append(cut(text, draw.stop))
        return found

    @torch.no_grad()
    def label_log_probs(self, chats: Sequence[Chat], labels: Sequence[str]) -> list[list[float]]:
        """See `Writer.label_log_probs`. Labels that differ in their last token alone share one forward pass."""
        rows: dict[tuple[int, ...], int] = {}
        wanted: list[tuple[int, list[int]]] = []
        for chat in chats:
            before = self.render(chat)
            for label in labels:
                encoded = self.tokenizer(before + label, add_special_tokens=False, return_offsets_mapping=True)
                ids = list(encoded.input_ids)
                first = next(i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(before))
                row = rows.setdefault(tuple(ids[:-1]), len(rows))
                wanted.append((row, ids[first:]))
        most = max((len(tokens) for _, tokens in wanted), default=1)
        logs = self._last(list(rows), most)
        flat = [sum(float(logs[row][i - len(tokens), t]) for i, t in enumerate(tokens)) for row, tokens in wanted]
        return [flat[i : i + len(labels)] for i in range(0, len(flat), len(labels))]

    def _last(self, rows: list[tuple[int, ...]], most: int) -> list[Tensor]:
        """log-softmax after the last `most` positions of each row, [at most `most`, vocabulary]."""
        device = next(self.lm.parameters()).device
        found: dict[int, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            width = max(len(rows[row]) for row in chosen)
            ids = torch.zeros((len(chosen), width), dtype=torch.long)
            seen = torch.zeros((len(chosen), width), dtype=torch.long)
            for place, row in enumerate(chosen):
                ids[place, : len(rows[row])], seen[place, : len(rows[row])] = torch.tensor(rows[row]), 1
            logits = self.lm(input_ids=ids.to(device), attention_mask=seen.to(device)).logits
            for place, row in enumerate(chosen):
                found[row] = torch.log_softmax(logits[place, : len(rows[row])][-most:].float(), -1).cpu()
        return [found[row] for row in range(len(rows))]


@functools.lru_cache(maxsize=1)
def open_model(folder: str, slots: int = 64) -> Local:
    """A transformers folder as a writer, on the GPU where there is one. The last one stays loaded."""
    from trainers.model import load, load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(folder)
    lm: Any = load(folder).eval().requires_grad_(False)
    lm.to(device)
    sampler = Sampler(lm.config, tokenizer, device, slots=slots)
    sampler.take(dict(lm.named_parameters()))
    return Local(folder, lm, tokenizer, sampler)
