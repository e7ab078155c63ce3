"""The KV cache of the trees that are being decoded: shared nodes once, what the leaves generate after them.

The cache of a tree is a row of slots: first its nodes in depth-first order, then, step by step, one slot for each
leaf. A mask says which slots a leaf sees: its ancestors, itself, and what it has generated. Rows of like length and
equal numbers of leaves lie together in a lane, one tensor, so that little memory is read in vain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from mmrole.models.families import KVShape, TreeModel
from mmrole.prompt_tree.attention import TreeAttention, masked_attention
from mmrole.prompt_tree.forest_attention import forward_attention
from mmrole.prompt_tree.mask import Visibility

# Most steps of decoding for which memory is taken at once: growing copies everything.
STEPS_AHEAD = 128
# The shortest row of a lane has at least this share of the longest one's slots.
LIKE_LENGTH = 0.85


class Lane:
    """Rows with equal numbers of leaves.

    Attributes:
        visible: bool [rows, leaves, capacity].
        length: slots in use, the same for all rows; what a shorter row leaves unused is visible to none of its leaves.
    """

    def __init__(self, masks: Sequence[Tensor], steps: int) -> None:
        """A lane, without memory as yet, for rows whose leaves see nodes as in `masks`, each bool [leaves, nodes].

        There is room for `steps` steps.
        """
        self.lengths = [mask.shape[1] for mask in masks]
        self.length = max(self.lengths)
        rows, leaves = len(masks), masks[0].shape[0]
        self.visible = masks[0].new_zeros(rows, leaves, self.length + leaves * steps)
        for row, mask in enumerate(masks):
            self.visible[row, :, : mask.shape[1]] = mask
        self._within: dict[int, Tensor] = {}
        self.keys: list[Tensor] = []  # per layer [rows, heads, capacity, head_size]
        self.values: list[Tensor] = []

    def take_memory(self, shape: KVShape) -> Tensor:
        """Memory for a layer's keys or values, [rows, heads, capacity, head_size]."""
        rows, _, capacity = self.visible.shape
        size = rows, shape.heads, capacity, shape.head_size
        memory = torch.empty(size, dtype=shape.dtype, device=shape.device)
        for row, length in enumerate(self.lengths):
            # Masked slots still enter the weighted sum with weight 0, and 0 * NaN is NaN. A step fills its own.
            memory[row, :, length : self.length] = 0
        return memory

    @property
    def tokens(self) -> int:
        """Tokens that the lane takes at each step, one for each leaf."""
        return self.visible.shape[0] * self.visible.shape[1]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step."""
        return self.length + self.visible.shape[1] > self.visible.shape[2]

    def begin_step(self) -> None:
        """Opens one more slot for each leaf."""
        leaves = self.visible.shape[1]
        own = torch.arange(leaves, device=self.visible.device)
        self.visible[:, own, self.length + own] = True
        self._within.clear()

    def _seen(self, window: int) -> Tensor:
        """Which of the slots in use the leaves see in a layer with this window, bool [rows, leaves, slots]."""
        visible = self.visible[:, :, : self.length + self.visible.shape[1]]
        if not window:
            return visible
        if window not in self._within:  # layers with the same window share it
            # The slots that a leaf sees are its path in order, so its window is as many of them as are last.
            behind = visible.sum(-1, keepdim=True) - visible.cumsum(-1)
            self._within[window] = visible & (behind < window)
        return self._within[window]

    def attend(
        self, layer: int, implementation: str, states: Sequence[Tensor], scaling: float, window: int = 0
    ) -> Tensor:
        """Stores the step's keys and values and attends to all that a leaf sees.

        Args:
            layer: its index.
            implementation: "eager" or "sdpa".
            states: query, key and value, each [heads, tokens, head_size].
            scaling: factor of the scores.
            window: of the layer, see `TreeAttention.attend`.

        Returns:
            [tokens, heads, head_size].
        """
        leaves = self.visible.shape[1]
        query, key, value = (rearrange(each, "head (row leaf) d -> row head leaf d", leaf=leaves) for each in states)
        stop = self.length + leaves
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        mask = self._seen(window)[:, None].to(query.device)
        output = masked_attention(implementation, query, keys[:, :, :stop], values[:, :, :stop], mask, scaling)
        return rearrange(output, "row leaf head d -> (row leaf) head d")


class TreeKVCache:
    """KV cache of a batch of trees; the model's attention goes through it while it decodes.

    Attributes:
        lanes: of the rows.
        steps_ahead: steps for which the last `lay_out` has made room.
    """

    def __init__(self, model: TreeModel) -> None:
        self.model = model
        self.lanes: list[Lane] = []
        self._kept: list[tuple[int, Sequence[int]]] = []
        self._new: list[Tensor] = []
        self._steps = self.steps_ahead = 0

    @property
    def leaves(self) -> list[int]:
        """How many leaves decode, row by row."""
        return [lane.visible.shape[1] for lane in self.lanes for _ in lane.visible]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step before the next `lay_out`."""
        return any(lane.is_full for lane in self.lanes)

    def begin_step(self) -> None:
        """Opens one more slot for each leaf."""
        for lane in self.lanes:
            lane.begin_step()

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
        """One layer's attention, see `TreeAttention.attend`.

        The nodes are the tokens of the leaves, row by row in the order of the lanes.
        """
        sizes = [lane.tokens for lane in self.lanes]
        parts = zip(*(states[0].split(sizes, dim=1) for states in (query, key, value)), strict=True)
        outputs = [
            lane.attend(layer, self.model.attention, states, scaling, window)
            for lane, states in zip(self.lanes, parts, strict=True)
        ]
        return torch.cat(outputs)[None]

    def count_step(self) -> None:
        """Counts the slots of a step as used."""
        for lane in self.lanes:
            lane.length += lane.visible.shape[1]

    def prefill(self, rows: Sequence[int], sizes: Sequence[int], visibility: Visibility) -> PrefillAttention:
        """For the pass that reads the trees of some rows, which have so many nodes, as the forest that they are."""
        return PrefillAttention([self._find(row) for row in rows], sizes, prefill_attention(self.model, visibility))

    def has_room(self, nodes: int, leaves: int, steps: int) -> bool:
        """Whether there is memory for one more tree: it is taken as it is needed."""
        return True

    def keep(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> None:
        """Goes on with these rows; what only other leaves could see is freed by `lay_out`.

        Args:
            rows: the row, the columns of its leaves that go on, and how many steps they take at most.
        """
        self._kept, self._new = [(row, columns) for row, columns, _ in rows], []
        self._steps = max((steps for _, _, steps in rows), default=0)

    def add(self, mask: Tensor, steps: int) -> None:
        """Makes room for one more tree, whose leaves see nodes as in `mask`, bool [leaves, nodes].

        `prefill` then takes in its keys and values.
        """
        self._new.append(mask.to(self.model.device))
        self._steps = max(self._steps, steps)

    def lay_out(self) -> list[int]:
        """Lays the cache out anew, with room for the steps to come, up to `STEPS_AHEAD`.

        Returns:
            The order of the rows now: indices into the list of kept rows followed by new trees.
        """
        sources: list[tuple[Lane, int, Tensor] | None] = []
        masks = []
        for row, columns in self._kept:
            lane, place = self._find(row)
            mask = lane.visible[place, list(columns), : lane.length]
            slots = mask.any(0).nonzero().flatten()
            sources.append((lane, place, slots))
            masks.append(mask[:, slots])
        sources += [None] * len(self._new)
        masks += self._new

        order = sorted(range(len(masks)), key=lambda index: tuple(-size for size in masks[index].shape))
        lanes = _lanes(order, [tuple(mask.shape) for mask in masks])
        old, self.steps_ahead = self.lanes, min(self._steps, STEPS_AHEAD)
        self.lanes = [Lane([masks[index] for index in members], self.steps_ahead) for members in lanes]
        # Layer by layer, so that at most one of them exists twice.
        for shape in self.model.kv_shapes:
            for name in ("keys", "values"):
                for lane, members in zip(self.lanes, lanes, strict=True):
                    memory = lane.take_memory(shape)
                    for place, index in enumerate(members):
                        if (source := sources[index]) is not None:
                            lane_before, row, slots = source
                            kept = getattr(lane_before, name)[0]  # the layers before it are gone
                            memory[place, :, : len(slots)] = kept[row][:, slots.to(kept.device)]
                    getattr(lane, name).append(memory)
                for lane in old:
                    del getattr(lane, name)[0]
        self._kept, self._new = [], []
        return order

    def clear(self) -> None:
        """Drops all rows and their memory."""
        self.lanes, self._kept, self._new = [], [], []

    def has_more_than(self, slots: int) -> bool:
        """False: no memory is kept beyond what rows need."""
        return False

    def shrink(self, positions: int) -> None:
        """Nothing, for the same reason."""

    def _find(self, row: int) -> tuple[Lane, int]:
        for lane in self.lanes:
            if row < len(lane.visible):
                return lane, row
            row -= len(lane.visible)
        raise IndexError("no such row")


class PrefillAttention:
    """Attention of one forward pass over trees, whose keys and values go straight into their rows of lanes."""

    def __init__(self, rows: Sequence[tuple[Lane, int]], sizes: Sequence[int], attention: TreeAttention) -> None:
        self._rows, self._sizes, self._attention = rows, list(sizes), attention

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
        """Stores [1, heads, nodes, head_size] of a layer; each node attends to what it sees."""
        parts = (states[0].split(self._sizes, dim=1) for states in (key, value))
        for (lane, row), size, tree_key, tree_value in zip(self._rows, self._sizes, *parts, strict=True):
            lane.keys[layer][row, :, :size] = tree_key
            lane.values[layer][row, :, :size] = tree_value
        return self._attention.attend(layer, query, key, value, scaling, dropout, window)


def prefill_attention(model: TreeModel, visibility: Visibility) -> TreeAttention:
    """The attention of the nodes of a forest."""
    shape = model.kv_shapes[0]
    return forward_attention(visibility, model.attention, shape.head_size, shape.dtype, shape.device)


def _lanes(order: list[int], shapes: list[tuple[int, int]]) -> list[list[int]]:
    """Cuts rows, sorted by shape (leaves, nodes), where the number of leaves changes or the length falls too far."""
    lanes: list[list[int]] = []
    for index in order:
        leaves, nodes = shapes[index]
        if lanes:
            first_leaves, first_nodes = shapes[lanes[-1][0]]
            if leaves == first_leaves and nodes >= LIKE_LENGTH * first_nodes:
                lanes[-1].append(index)
                continue
        lanes.append([index])
    return lanes
