"""What every method is: settings that change a model so that few parameters are trained, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import RecipeError, nearest
from cluster.settings import Settings
from trainers.attention import documents_mask
from trainers.model import PackedLM


class Method(Settings):
    """The shape of a method. Its fields are the paper's settings."""

    def attach(self, packed: PackedLM) -> None:
        """Freeze the model, add the method's parameters (from the global random state), set `packed.tuning` if needed.

        Parameters of the base model keep their transformers' name but for `.base_layer`.
        """
        raise NotImplementedError

    def merge(self, packed: PackedLM) -> None:
        """Turn `packed.lm` back into a plain transformers model with the same outputs. Raises RecipeError if no such
        model exists."""
        raise NotImplementedError

    def mergeable(self) -> str | None:
        """None, or the reason why there is no plain model with the same outputs."""
        return None

    def saved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trained tensors by parameter name → tensors as the adapter's file holds them."""
        return state

    def loaded(self, file: dict[str, Tensor], lm: Any) -> dict[str, Tensor]:
        """The reverse of `saved`, for the base model `lm`."""
        return file

    def reopened(self) -> Method:
        """The method as which a saved file is opened."""
        return self

    def peft_config(self, lm: Any) -> Any:
        """The peft configuration beside which peft itself opens the file, or None."""
        return None

    def check(self, *, zero: int, compiled: bool) -> None:
        """Refuse engine settings that this method cannot work with. Raises RecipeError."""


class Tuning(nn.Module):
    """What a method does around the forward pass and the optimiser step. As it stands: nothing."""

    def arguments(
        self, packed: PackedLM, inputs: dict[str, Any], doc_index: Tensor, targets: Tensor, parts: Tensor | None
    ) -> dict[str, Any]:
        """The decoder's arguments for `inputs` (input_ids, position_ids); positions may be added in front."""
        return {**inputs, "attention_mask": documents_mask(doc_index, packed.attention)}

    def begin(self, step: int) -> None:
        """An optimiser step begins; `step` have been taken."""

    shift = 0
    """How many keys an attention of this method has in front: a document's positions begin after them."""

    def in_front(self) -> Tensor | None:
        """Vectors [n, hidden] that stand in front of a document like tokens of its own, or None."""
        return None

    def penalties(self) -> tuple[Any, Any]:
        """What is added to the objective since the last call: (a sum over tokens, a term of the weights alone).

        The first is divided by the step's count like the objective's sum, the second counts once per optimiser step.
        """
        return 0.0, 0.0

    def figures(self) -> dict[str, float]:
        """Figures to log after a step."""
        return {}


def freeze(lm: nn.Module) -> None:
    """No parameter of the base model is trained."""
    lm.requires_grad_(False)


def linears(lm: Any, targets: Sequence[str]) -> list[tuple[str, nn.Linear]]:
    """(path, layer) of the decoder's linear layers whose last name is one of `targets`. Raises RecipeError if one of
    them matches nothing."""
    found = [
        (f"{path}.{name}".removeprefix("."), layer)
        for path, module in lm.named_modules()
        for name, layer in module.named_children()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    ]
    names = sorted({path.rpartition(".")[2] for path, _ in found})
    for target in targets:
        if target not in names:
            raise RecipeError(f"peft: no layer named '{target}'{nearest(target, names)}; there are {', '.join(names)}")
    return [(path, layer) for path, layer in found if path.rpartition(".")[2] in targets]


def wrap(lm: Any, targets: Sequence[str], make: Callable[[nn.Linear, int], nn.Module]) -> list[Any]:
    """Put `make(layer, number)` in the place of each matching linear layer; the new ones in order."""
    made = []
    for number, (path, layer) in enumerate(linears(lm, targets)):
        wrapper = make(layer, number)
        lm.set_submodule(path, wrapper)
        made.append(wrapper)
    return made


def unwrap(lm: Any, kind: type[nn.Module]) -> None:
    """Put the base layers back in the place of wrappers of one kind."""
    for path, module in list(lm.named_modules()):
        if isinstance(module, kind):
            lm.set_submodule(path, module.base_layer)


def trained(packed: PackedLM) -> Iterator[tuple[str, Tensor]]:
    """(name as in checkpoints, parameter) of what is trained, tied ones once."""
    for name, value in packed.named_parameters():
        if value.requires_grad:
            yield name.removeprefix("lm."), value


class Taken:
    """Penalty terms that layers leave during forward passes, kept until a backward pass has taken them.

    Recomputed activations leave terms again, after they were taken: those are dropped when the next pass begins.
    """

    def __init__(self) -> None:
        self.terms: dict[int, list[Tensor]] = {}
        self._taken = False

    def start(self) -> None:
        """A forward pass begins."""
        if self._taken:
            self.terms.clear()
            self._taken = False

    def leave(self, layer: int, term: Tensor) -> None:
        """A layer's term of this pass; without gradients there is none."""
        if torch.is_grad_enabled():
            self.terms.setdefault(layer, []).append(term)

    def take(self) -> list[list[Tensor]]:
        """The terms by layer, one per forward pass."""
        self._taken = True
        found = list(self.terms.values())
        self.terms = {}
        return found
