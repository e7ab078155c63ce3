"""Positions of M-RoPE in prompt trees: three numbers for each node (time, row, column)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmrole.prompt_tree import PromptTree
from mmrole.prompt_tree.image_keys import image_rows


def mrope_positions(tree: PromptTree, grids: Mapping[int, tuple[int, int] | None]) -> np.ndarray:
    """Positions as Qwen2-VL counts them (arXiv 2409.12191, section 2.1) along each branch.

    Text counts on by 1 in all three rows. The features of an image have the time at which it begins, and from there
    their row and column; behind it text goes on with the largest of all these numbers plus 1.

    Args:
        tree: N nodes.
        grids: rows and columns of the features of each image, by its number.

    Returns:
        int64 [3, N].
    """
    numbers, rows = image_rows(tree.image_keys)
    shift = np.zeros(len(tree) + 1, dtype=np.int64)  # of a node's position against its depth
    inside = np.zeros((3, len(tree)), dtype=np.int64)  # of an image's node against its first one
    for first in np.flatnonzero(rows == 0).tolist():
        grid = grids[int(numbers[first])]
        if grid is None:
            raise ValueError(f"image {numbers[first]} has no grid")
        height, width = grid
        stop = first + height * width
        inside[1, first:stop] = np.repeat(np.arange(height), width)
        inside[2, first:stop] = np.tile(np.arange(width), height)
        inside[:, first:stop] -= np.arange(height * width)
        # What comes behind it in its subtree, which the end of the subtree takes back.
        gained = max(height, width) - height * width
        shift[stop] += gained
        shift[tree.last[first] + 1] -= gained
    return tree.depths + np.cumsum(shift[:-1]) + inside
