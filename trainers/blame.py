"""Which rows of an optimiser step have the highest loss: what an alarm about a loss spike names."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from trainers.batch import IGNORE, StepRows, share_of
from trainers.ranks import Ranks
from trainers.roles import Role


class Documents(Protocol):
    """Rows that know their documents: PackedRows or a Mixture."""

    def documents(self, first: int, count: int) -> list[list[bytes]]:
        """doc_ids of rows [first, first + count)."""
        ...


@torch.no_grad()
def worst_rows(role: Role, rows: StepRows, data: Documents, ranks: Ranks, micro_rows: int, most: int = 3) -> list[Any]:
    """The `most` rows of a step with the highest mean loss per target, worst first, the same on every rank.

    [{"row": global number, "loss": nats, "documents": [doc_id in hexadecimal, …]}]. One more forward pass over the
    step, by the weights as they are now: after a step, those that it has moved. A collective.
    """
    count = rows.next_row - rows.first_row
    sums, targets = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    parts = share_of(ranks.data_rank, ranks.data_world, count, micro_rows)
    role.eval()
    for part, batch in zip(parts, rows.micro_batches, strict=True):
        losses = role(batch, "token_losses").double().cpu()
        mine = slice(part.start, part.stop)
        sums[mine] = losses.sum(1)[: len(part)]
        targets[mine] = (batch.targets != IGNORE).sum(1)[: len(part)].double()
    role.train()
    whole = torch.tensor(ranks.sum([*sums.tolist(), *targets.tolist()]), dtype=torch.float64)
    means = whole[:count] / whole[count:].clamp(min=1)
    worst = torch.argsort(means.nan_to_num(nan=float("inf")), descending=True, stable=True)[:most]
    return [
        {
            "row": rows.first_row + place,
            "loss": float(means[place]),
            "documents": [one.hex() for one in data.documents(rows.first_row + place, 1)[0]],
        }
        for place in worst.tolist()
    ]
