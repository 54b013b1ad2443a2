"""`corpusmill prune`: a transformers folder in, a smaller or sparser one out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from cluster.errors import RecipeError
from cluster.settings import Settings
from trainers.prune import structured
from trainers.prune.importance import Importance, Measured, measure, weight_scores
from trainers.prune.magnitude import ALL, Scope, masks, two_of_four


class Prune(Settings):
    """What to cut; what is not given stays as it is. Train the result by start_from, or distil into it."""

    layers: int | None = Field(None, gt=0, description="blocks that stay")
    even: bool = Field(False, description="blocks stay at equal distances, not by importance: a student for distilling")
    kv_heads: int | None = Field(None, gt=0, description="key/value heads that stay, each with its query heads")
    queries_per_kv: int | None = Field(None, gt=0, description="query heads that stay for each key/value head")
    intermediate_size: int | None = Field(None, gt=0, description="feed-forward channels that stay")
    hidden_size: int | None = Field(None, gt=0, description="dimensions of the residual stream that stay")
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of single weights that become 0")
    pattern: Literal["none", "2:4"] = Field("none", description="2:4: two of four neighbours in a row become 0")
    scope: Scope = Field("layer", description="single weights compete in the model, in their matrix, or in their row")
    importance: Importance = Field("magnitude", description="what decides; taylor and wanda need calibration rows")
    calibration: str | None = Field(None, description="packed/ folder whose first rows are run through the model")
    rows: int = Field(64, gt=0, description="calibration rows")
    micro_rows: int = Field(4, gt=0, description="calibration rows per forward pass")

    @field_validator("pattern", mode="before")
    @classmethod
    def _not_minutes(cls, pattern: Any) -> Any:
        """YAML 1.1 reads 2:4 without quotes as two minutes and four seconds."""
        return "2:4" if pattern == 124 else pattern

    def check(self) -> None:
        """Refuse what cannot be. Raises RecipeError."""
        if self.importance != "magnitude" and self.calibration is None:
            raise RecipeError(f"prune: importance {self.importance} needs rows to measure on; set calibration=FOLDER")
        if self.pattern == "2:4" and self.sparsity not in (None, 0.5):
            raise RecipeError(f"prune: pattern 2:4 makes half of the weights 0; leave out sparsity {self.sparsity}")
        cuts = (
            self.layers,
            self.kv_heads,
            self.queries_per_kv,
            self.intermediate_size,
            self.hidden_size,
            self.sparsity,
        )
        if self.pattern == "none" and all(value is None for value in cuts):
            raise RecipeError(
                "prune: nothing to cut; set layers, kv_heads, queries_per_kv, intermediate_size, hidden_size, "
                "sparsity, or pattern=2:4"
            )


def prune(source: str, target: str, settings: Prune) -> Iterator[str]:
    """Prune the model in a transformers folder into another folder, tokenizer included. Yields lines to print.

    Raises RecipeError for what cannot be cut, DataError for a model it does not know.
    """
    from trainers.model import load

    settings.check()
    if Path(source).resolve() == Path(target).resolve():
        raise RecipeError(f"prune: {target} is the model itself; name another folder for the smaller one")
    lm = load(source)
    before = sum(p.numel() for p in lm.parameters())
    lm = pruned(lm, settings)
    after = sum(p.numel() for p in lm.parameters())
    zeros = sum(int((p == 0).sum()) for p in lm.parameters())
    lm.save_pretrained(target)
    written = {path.name for path in Path(target).iterdir()}
    for path in Path(source).iterdir():
        if path.is_file() and path.name not in written and path.suffix != ".safetensors" and "index" not in path.name:
            shutil.copyfile(path, Path(target, path.name))
    yield f"parameters {before:,} → {after:,} ({after / before:.1%}), {zeros / after:.1%} of them 0"
    yield f"model      {target}"


def pruned(lm: Any, settings: Prune) -> Any:
    """A pruned copy of a transformers model: blocks go first, then heads, channels, dimensions, single weights last.

    Each cut is measured on what the ones before left.
    """
    settings.check()
    by = settings.importance

    def measured(model: Any) -> Measured:
        if by == "magnitude":
            return Measured()
        from trainers.batch import PackedRows

        assert settings.calibration is not None
        data = PackedRows(settings.calibration)
        return measure(model, data, min(settings.rows, data.rows), settings.micro_rows, gradients=by == "taylor")

    if settings.layers:
        lm = structured.cut_layers(lm, settings.layers, by, measured, even=settings.even)
    if settings.kv_heads:
        lm = structured.cut_heads(lm, settings.kv_heads, by, measured)
    if settings.queries_per_kv:
        lm = structured.cut_queries(lm, settings.queries_per_kv, by, measured)
    if settings.intermediate_size:
        lm = structured.cut_ffn(lm, settings.intermediate_size, by, measured)
    if settings.hidden_size:
        lm = structured.cut_hidden(lm, settings.hidden_size, by, measured)
    if settings.sparsity or settings.pattern == "2:4":
        lm = _sparse(lm, settings, measured(lm))
    return lm


@torch.no_grad()
def _sparse(lm: Any, settings: Prune, measured: Measured) -> Any:
    state = structured.parameters(lm)
    names = [
        name for name in state if name.removesuffix(".weight").rpartition(".")[2] in ALL and name.endswith("weight")
    ]
    scores = {name: weight_scores(name, state[name], settings.importance, measured) for name in names}
    if settings.pattern == "2:4":
        kept = {name: two_of_four(value) for name, value in scores.items()}
    else:
        assert settings.sparsity is not None
        kept = masks(scores, settings.sparsity, settings.scope)
    return structured.assemble(
        lm.config, {name: value * kept[name] if name in kept else value for name, value in state.items()}, lm
    )
