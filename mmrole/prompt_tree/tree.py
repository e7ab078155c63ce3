"""Merges token sequences into a prefix tree and flattens it, depth first, to index arrays.

The model reads every node once. Node q sees exactly its ancestors and itself, `k <= q <= last[k]`
(`mmrole.prompt_tree.mask`), at positions counted along its path: the same mathematics as each sequence alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mmrole.prompt_tree.sequences import TEXT, TokenSequence, sort_by_prefix


@dataclass(frozen=True, eq=False)
class PromptTree:
    """A prefix tree of N nodes over S sequences, flattened in depth-first order; several roots make a forest.

    Siblings are in the order of token id (text before images, images by key), so the node arrays do not depend on the
    order in which the sequences were given. All arrays are int64 and indices are positions in the flattened order.

    Attributes:
        input_ids: [N] token ids.
        image_keys: [N] -1 for text, else which image and row (`TokenSequence.image_keys`).
        depths: [N] number of ancestors: the position id.
        parent: [N] the node before it in its sequences, -1 for a root. Smaller than the node itself.
        last: [N] the last node of the subtree, at least the node itself.
        leaf: [S] the node that ends each sequence. It may be an inner node (one sequence can be a prefix of another),
            and equal sequences share it.
        target_nodes: [T] nodes that are a loss position in at least one sequence, ascending, no roots. Their tokens are
            predicted from the hidden states at `parent[target_nodes]`.
        target_counts: [T] in how many sequences each of them is a loss position: its weight in the summed loss.
    """

    input_ids: np.ndarray
    image_keys: np.ndarray
    depths: np.ndarray
    parent: np.ndarray
    last: np.ndarray
    leaf: np.ndarray
    target_nodes: np.ndarray
    target_counts: np.ndarray

    def __len__(self) -> int:
        """Number of nodes: the positions that the model computes."""
        return self.input_ids.size

    @property
    def n_tokens(self) -> int:
        """Number of positions of all sequences one by one; divided by `len(tree)` it is what the tree saves."""
        return int((self.depths[self.leaf] + 1).sum())

    def path(self, sequence: int) -> np.ndarray:
        """The nodes of one sequence in its own order, [length] int64."""
        leaf = self.leaf[sequence]
        return np.flatnonzero(self.last[: leaf + 1] >= leaf)


def build_tree(sequences: Sequence[TokenSequence]) -> PromptTree:
    """Merges sequences into one tree, or a forest where they differ at once; `leaf` keeps the order given.

    Raises:
        ValueError: there is no sequence.
    """
    if not sequences:
        raise ValueError("a prompt tree needs at least one sequence")
    order, shared = sort_by_prefix(sequences)
    ordered = [sequences[index] for index in order]
    lengths = np.array([len(sequence) for sequence in ordered])
    stops = np.cumsum(lengths - shared)
    starts = stops - (lengths - shared)
    n_nodes = int(stops[-1])
    leaf = np.empty(len(sequences), dtype=np.int64)
    leaf[order] = stops - 1
    parent = np.arange(-1, n_nodes - 1)
    last = np.empty(n_nodes, dtype=np.int64)
    target_counts = np.zeros(n_nodes, dtype=np.int64)

    # In lexicographic order the new nodes of a sequence are what follows its shared prefix, in one run.
    path = np.empty(lengths.max(), dtype=np.int64)
    path_length = 0
    columns = (shared.tolist(), lengths.tolist(), starts.tolist(), stops.tolist())
    for sequence, branch, length, start, stop in zip(ordered, *columns, strict=True):
        last[path[branch:path_length]] = start - 1
        path[branch:length] = np.arange(start, stop)
        path_length = length
        if start < stop:
            parent[start] = path[branch - 1] if branch else -1
        if sequence.targets is not None:
            target_counts[path[:length][sequence.targets]] += 1
    last[path[:path_length]] = n_nodes - 1

    target_counts[parent < 0] = 0
    target_nodes = np.flatnonzero(target_counts)
    return PromptTree(
        input_ids=_new_parts([sequence.input_ids for sequence in ordered], shared),
        image_keys=_new_parts([_image_keys(sequence) for sequence in ordered], shared),
        depths=np.arange(n_nodes) + np.repeat(shared - starts, lengths - shared),
        parent=parent,
        last=last,
        leaf=leaf,
        target_nodes=target_nodes,
        target_counts=target_counts[target_nodes],
    )


def concatenate(trees: Sequence[PromptTree]) -> PromptTree:
    """Puts trees side by side as one forest that shares nothing between them; sequences keep their order.

    For sequences that may be computed together but not share positions, such as prompts whose rotary bases differ.

    Raises:
        ValueError: there is no tree.
    """
    if not trees:
        raise ValueError("cannot concatenate no trees")
    offsets = np.cumsum([0, *(len(tree) for tree in trees[:-1])])
    joined = {field.name: np.concatenate([getattr(tree, field.name) for tree in trees]) for field in fields(PromptTree)}
    for name in ("parent", "last", "leaf", "target_nodes"):
        joined[name] += np.repeat(offsets, [getattr(tree, name).size for tree in trees])
    joined["parent"][joined["depths"] == 0] = -1
    return PromptTree(**joined)


def _new_parts(arrays: list[np.ndarray], shared: np.ndarray) -> np.ndarray:
    return np.concatenate([array[branch:] for array, branch in zip(arrays, shared, strict=True)], dtype=np.int64)


def _image_keys(sequence: TokenSequence) -> np.ndarray:
    if sequence.image_keys is None:
        return np.full(len(sequence), TEXT, dtype=np.int64)
    return sequence.image_keys
