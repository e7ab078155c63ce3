"""A step of decoding as a function of tensors that stay where they are: what a CUDA graph records and replays.

It reads its inputs from the tensors of `DecodingRows` and of the KV cache and leaves in them those of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmrole.engine.sampling import Choice, Sampling, SamplingKind, choose_tokens
from mmrole.models.families import TreeModel


class LeafState(NamedTuple):
    """Where a leaf stands before a step.

    Attributes:
        token: its last one, which the step reads.
        position: of that token.
        share_key: of its tree.
        choice: how its next tokens are chosen.
    """

    token: int
    position: int
    share_key: int
    choice: Choice


class StepCache(Protocol):
    """A KV cache while it decodes: the `TreeAttention` of a step."""

    def begin_step(self) -> None:
        """Opens one more slot for each leaf, in tensors."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        dropout: float = 0.0,
        window: int = 0,
    ) -> Tensor:
        """See `TreeAttention.attend`; the nodes are the rows of the step."""
        ...


@dataclass(eq=False)
class DecodingRows:
    """The leaves that decode, one a row; there may be more rows than leaves.

    Attributes:
        tokens: int64 [rows], what the next step reads.
        positions: int64 [P, rows], of these tokens.
        share_keys: int64 [rows].
        sampling: how the rows choose.
        chosen: int64 [rows], what the last step has chosen, see `choose_tokens`.
        choosing: int64 [n], the rows that choose a token; None for all. The others go on with the token that they have.
    """

    tokens: Tensor
    positions: Tensor
    share_keys: Tensor
    sampling: Sampling
    chosen: Tensor
    choosing: Tensor | None = None

    @classmethod
    def empty(cls, model: TreeModel, kind: SamplingKind, rows: int, steps: int) -> DecodingRows:
        """Room for so many rows, that draw so many times."""
        device = model.device
        return cls(
            tokens=torch.zeros(rows, dtype=torch.int64, device=device),
            positions=torch.zeros(model.family.position_rows, rows, dtype=torch.int64, device=device),
            share_keys=torch.ones(rows, dtype=torch.int64, device=device),
            sampling=Sampling.empty(kind, rows, model.vocabulary_size, steps, device),
            chosen=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def fill(self, leaves: Sequence[LeafState]) -> None:
        """Writes where these leaves stand into the first rows; what the others compute is for nobody."""
        rows = len(leaves)
        self.tokens[:rows] = torch.tensor([leaf.token for leaf in leaves])
        self.positions.zero_()
        self.positions[:, :rows] = torch.tensor([leaf.position for leaf in leaves])
        self.share_keys[:rows] = torch.tensor([leaf.share_key for leaf in leaves])
        self.sampling.fill([leaf.choice for leaf in leaves])


def decode_step(model: TreeModel, rows: DecodingRows, cache: StepCache) -> None:
    """Reads the last token of each row, chooses the next one, and makes it the last one."""
    cache.begin_step()
    hidden_states = model.hidden_states(rows.tokens, rows.positions, rows.share_keys, cache)
    if rows.choosing is None:
        rows.chosen.copy_(choose_tokens(model.logits(hidden_states), rows.sampling))
    else:
        chosen = choose_tokens(model.logits(hidden_states[rows.choosing]), rows.sampling.rows(rows.choosing))
        rows.chosen.index_copy_(0, rows.choosing, chosen)
    torch.clamp(rows.chosen, min=0, out=rows.tokens)
    rows.positions.add_(1)
    rows.sampling.take(rows.tokens)
