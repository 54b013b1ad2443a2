"""A rule of the user's own: one Python function decides which documents go."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cluster.errors import RecipeError
from pipeline.step import Documents, Filter, Rule, Verdict


class Python(Filter):
    """Calls your function, which returns why a document goes (a short reason in snake_case) or None to keep it.

    `per: document` calls `function(doc)` with a dict of the row's columns; `per: batch` calls it once with a
    pyarrow.RecordBatch and expects one reason or None per row, which is faster where the work is vectorised.
    The module is looked up where Python finds modules, the directory that the command runs in among them. It must
    be a pure function: the same row, the same answer, in any process. An exception fails the document alone. What is no
    UTF-8 in a text is U+FFFD for it.

    >>> def drop_reason(doc):                       # my_rules.py; the recipe says function: "my_rules:drop_reason"
    ...     return "too_shouty" if doc["text"].isupper() else None
    """

    function: str = Field(description='"module:function"')
    per: Literal["document", "batch"] = Field("document", description="what the function is called with")

    def check(self) -> None:
        find_function(self.function)

    def input_identity(self) -> list[Any]:
        module = self.function.partition(":")[0]
        spec = _spec(module)
        if spec is None or not spec.origin or not os.path.isfile(spec.origin):
            return [module]
        with open(spec.origin, encoding="utf-8", errors="replace") as file:
            return [module, file.read()]

    def warm(self, artifacts: Mapping[str, str]) -> None:
        find_function(self.function)

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        return {"goes": np.array([reason is not None for reason in self._reasons(docs)], float)}

    def rules(self) -> list[Rule]:
        return []

    def verdict(self, docs: Documents, scores: Mapping[str, np.ndarray]) -> Verdict:
        if "text" in docs.batch.schema.names:
            return Verdict.because(self._reasons(docs))
        return Verdict.because(["removed" if goes else None for goes in scores["goes"]])  # stored scores alone

    def _reasons(self, docs: Documents) -> list[str | None]:
        return docs.once(f"python:{self.function}:{self.per}", lambda: self._ask(docs))

    def _ask(self, docs: Documents) -> list[str | None]:
        from pipeline.kernels.text import readable

        function = find_function(self.function)
        at = docs.batch.schema.get_field_index("text")
        batch = docs.batch.set_column(at, docs.batch.schema.field(at), readable(docs.column("text")))
        if self.per == "batch":
            found = list(function(batch))
            if len(found) != len(docs):
                raise RecipeError(
                    f"filters.python: {self.function} gave {len(found)} reasons for {len(docs)} documents; "
                    "return one reason or None per row"
                )
        else:
            found = [function(row) for row in batch.to_pylist()]
        wrong = next((reason for reason in found if reason is not None and not isinstance(reason, str)), None)
        if wrong is not None:
            raise RecipeError(
                f"filters.python: {self.function} returned {wrong!r}; return a reason (a string) or None to keep"
            )
        return [reason or None for reason in found]


def _spec(module: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None


@functools.lru_cache(maxsize=32)
def find_function(name: str) -> Callable[..., Any]:
    """The function "module:function". Raises RecipeError where there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise RecipeError(f'filters.python: function must be "module:function", found {name!r}')
    if _spec(module) is None:
        raise RecipeError(f"filters.python: no module '{module}' found in {os.getcwd()} or on PYTHONPATH")
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise RecipeError(f"filters.python: module '{module}' has no function '{attribute}'")
    return found  # type: ignore[no-any-return]
