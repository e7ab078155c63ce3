"""Takes steps of decoding and reads their tokens; on a GPU a step late, so that it never waits for Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from mmrole.engine.decoding import DecodingRows, LeafState, decode_step
from mmrole.engine.kv_cache import TreeKVCache
from mmrole.engine.paged_kv_cache import STEPS_AHEAD, PagedKVCache
from mmrole.engine.sampling import SamplingKind
from mmrole.engine.step_graphs import StepGraphs
from mmrole.models.families import TreeModel


class Decoder:
    """Decodes the leaves of a KV cache.

    With lanes the tensors of a step have the sizes that there are, and a step is read before the next begins. With
    pages they are padded to few shapes and stay where they are, the steps of a shape are a CUDA graph on a GPU, and
    one step is always under way while the tokens of the one before it are looked at.
    """

    def __init__(self, model: TreeModel, cache: TreeKVCache | PagedKVCache) -> None:
        self.model, self.cache = model, cache
        self.graphs = StepGraphs()
        self._rows: DecodingRows | None = None
        self._padded: dict[tuple[int, SamplingKind], DecodingRows] = {}
        self._begun: deque[_BegunStep] = deque()
        self._leaves = self._pool = 0

    def begin(self, leaves: Sequence[LeafState]) -> None:
        """Says where all leaves stand, row by row."""
        self._leaves = len(leaves)
        kind = SamplingKind.of([leaf.choice.settings for leaf in leaves], self.model.vocabulary_size)
        if isinstance(self.cache, TreeKVCache):
            self._rows = DecodingRows.empty(self.model, kind, len(leaves), self.cache.steps_ahead)
        else:
            self._rows = self._padded_rows(self.cache, kind)
        self._rows.fill(leaves)

    def step(self, open_leaves: Sequence[int], most: int) -> list[int]:
        """One more token of each leaf, see `Runner.step`."""
        ahead = 1 if isinstance(self.cache, TreeKVCache) else 2
        while len(self._begun) < min(ahead, most) and not self.cache.is_full:
            self._begin_step(open_leaves)
        return self._begun.popleft().tokens()

    def drain(self) -> list[list[int]]:
        """The tokens of the steps that have begun, which `step` has not returned yet."""
        tokens = [step.tokens() for step in self._begun]
        self._begun.clear()
        return tokens

    def clear(self) -> None:
        """Forgets what belongs to the memory of the KV cache."""
        self._begun.clear()
        self.graphs.clear()
        self._rows = None
        self._padded.clear()

    def _padded_rows(self, cache: PagedKVCache, kind: SamplingKind) -> DecodingRows:
        assert cache.pool is not None
        assert cache.tables is not None
        if self._pool != cache.pool.number:
            self.graphs.clear()
            self._pool = cache.pool.number
        rows = cache.tables.shape.rows
        if (rows, kind) not in self._padded:
            self._padded[rows, kind] = DecodingRows.empty(self.model, kind, rows, STEPS_AHEAD)
        return self._padded[rows, kind]

    def run(self) -> None:
        """A step: what a graph records."""
        assert self._rows is not None
        decode_step(self.model, self._rows, self.cache)

    def _begin_step(self, open_leaves: Sequence[int]) -> None:
        rows, cache = self._rows, self.cache
        assert rows is not None
        if isinstance(cache, PagedKVCache) and self.model.device.type == "cuda":
            assert cache.tables is not None
            self.graphs.run((cache.tables.shape, rows.sampling.kind), self.run)
        else:
            if isinstance(cache, TreeKVCache):
                all_choose = len(open_leaves) == self._leaves
                rows.choosing = None if all_choose else torch.tensor(open_leaves, device=self.model.device)
            self.run()
        cache.count_step()
        self._begun.append(_BegunStep(rows.chosen[: self._leaves]))


class _BegunStep:
    """Tokens that are being copied from the device."""

    def __init__(self, chosen: Tensor) -> None:
        self._event = None
        if chosen.device.type == "cuda":
            self._tokens = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
            self._tokens.copy_(chosen, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tokens = chosen.clone()

    def tokens(self) -> list[int]:
        """Waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.tolist()
