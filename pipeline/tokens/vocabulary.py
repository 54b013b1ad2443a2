"""What the pipeline knows of a tokenizer without loading it: sizes, special tokens and the hash of its file.

A tokenizer is a folder that `AutoTokenizer.from_pretrained` opens; `tokenizer.json` in it is the whole truth.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster import storage
from cluster.errors import DataError, RecipeError

_TOKENIZER_FILE = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|additional_chat_templates/)[^/]*"
    r"|config\.json|[^/]*\.(model|tiktoken)"
)
"""Of the names of files in a tokenizer's folder. AutoTokenizer looks into config.json where no class is named."""
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
FIM = (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
FIM_PADDING = "<|fim_pad|>"
CHAT_START, CHAT_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, FIM_PADDING, CHAT_START, CHAT_END)
"""Reserved in every tokenizer that we train, with the ids 0 to 7 in this order."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML. The `generation` block tells transformers which tokens are the assistant's, so which are targets."""


@dataclass(frozen=True)
class Vocabulary:
    """The facts about a tokenizer that packing and `dataset.json` need.

    size      ids are in [0, size), reserved and added tokens included
    eos_id    appended to every document; pad_id fills rows
    hash      blake2b-128 hex of tokenizer.json
    specials  {token text: id} of all added tokens
    """

    folder: str
    size: int
    eos_id: int
    pad_id: int
    hash: str
    specials: dict[str, int]

    def fim_ids(self) -> tuple[int, int, int]:
        """Ids of the prefix, suffix and middle tokens. Raises RecipeError when the tokenizer has none."""
        missing = [name for name in FIM if name not in self.specials]
        if missing:
            raise RecipeError(
                f"{self.folder}: fill-in-the-middle needs the special tokens {', '.join(missing)}, which this "
                "tokenizer lacks; add them with a step 'tokens.extend: {add_special_tokens: […]}' before"
            )
        return self.specials[FIM_PREFIX], self.specials[FIM_SUFFIX], self.specials[FIM_MIDDLE]


def tokenizer_folder(own: str | None, artifacts: Mapping[str, str], step: str) -> str:
    """The folder that a step shall use: its own field, else what an earlier step of the recipe made."""
    folder = own or artifacts.get("tokenizer")
    if not folder:
        raise RecipeError(
            f"{step}: there is no tokenizer; put 'tokens.train_bpe' before it, or set its field 'tokenizer' to a "
            "folder that AutoTokenizer opens"
        )
    return str(storage.absolute(folder))


def tokenizer_files(folder: str) -> dict[str, str]:
    """{name: path} of what belongs to the tokenizer in a folder, which may be a whole model's with its weights."""
    paths = {entry.path[len(folder.rstrip("/")) + 1 :]: entry.path for entry in storage.list_files(folder)}
    return {name: path for name, path in paths.items() if _TOKENIZER_FILE.fullmatch(name)}


def tokenizer_identity(own: str | None) -> list[str]:
    """For `input_identity`: the hash of the tokenizer that a step's own field names."""
    return [read_vocabulary(str(storage.absolute(own))).hash] if own else []


def read_vocabulary(folder: str) -> Vocabulary:
    """Read the facts from tokenizer.json and tokenizer_config.json. Raises DataError."""
    path = storage.join(folder, "tokenizer.json")
    try:
        raw = storage.read_bytes(path)
    except OSError as error:
        raise DataError(f"{folder} is no tokenizer: cannot read {path}: {error}") from error
    spec = json.loads(raw)
    config = _optional_json(storage.join(folder, "tokenizer_config.json"))
    specials = {token["content"]: int(token["id"]) for token in spec.get("added_tokens", [])}
    model = spec["model"].get("vocab", {})
    ids = list(model.values()) if isinstance(model, dict) else range(len(model))
    eos = _token_text(config.get("eos_token")) or (END_OF_TEXT if END_OF_TEXT in specials else "</s>")
    pad = _token_text(config.get("pad_token")) or (PADDING if PADDING in specials else eos)

    def id_of(token: str, role: str) -> int:
        if token in specials:
            return specials[token]
        if isinstance(model, dict) and token in model:
            return int(model[token])
        raise DataError(f"{path}: the {role} token {token!r} is not in the vocabulary; set it in tokenizer_config.json")

    size = 1 + max([*ids, *specials.values()], default=-1)
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return Vocabulary(str(folder), size, id_of(eos, "end-of-text"), id_of(pad, "padding"), digest, specials)


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in tokenizer.json (Radford et al. 2019): printable for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def config_json(length: int | None = None) -> str:
    """tokenizer_config.json of a tokenizer with our special tokens."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": length or int(1e30),
        "chat_template": CHAT_TEMPLATE,
    }
    return json.dumps(config, indent=1, ensure_ascii=False)


def special_tokens_json() -> str:
    """special_tokens_map.json of a tokenizer with our special tokens."""
    tokens = {
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
    }
    return json.dumps(tokens, indent=1, ensure_ascii=False)


def _token_text(token: object) -> str | None:
    if isinstance(token, dict):
        return str(token["content"])
    return str(token) if token else None


def _optional_json(path: str) -> dict[str, object]:
    try:
        return dict(json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        return {}
