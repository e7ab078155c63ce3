"""From requests to prompt trees: what may share keys and values, and in which order trees are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.engine.reply_text import ReplyText
from mmrole.models.families import Family
from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree, group_by_prefix

# Prompts with less in common are decoded as trees of their own: a common row of the batch would cost more in padding
# than it saves.
MIN_SHARED = 256
MAX_LEAVES = 16


class ShownImage(NamedTuple):
    """An image of a prompt: its number in the engine's `ImageTable`, and `EncodedImage.grid`."""

    number: int
    grid: tuple[int, int] | None


@dataclass(eq=False)
class Prompt:
    """A request, its token ids, and what its reply says.

    Attributes:
        images: its images, until its tree has been read.
    """

    request: ChatRequest
    settings: GenerationSettings
    text: ReplyText
    sequence: TokenSequence
    images: list[ShownImage]


@dataclass(eq=False)
class PlannedTree:
    """Prompts that are prefilled together.

    Attributes:
        prompts: one for each sequence of the tree.
        tree: the merged token ids.
        positions: int64 [P, N], the position ids of its nodes.
        share_key: `Family.share_keys` of all of them.
    """

    prompts: list[Prompt]
    tree: PromptTree
    positions: np.ndarray
    share_key: int

    @property
    def slots(self) -> int:
        """Slots that the tree takes in the end at the most: its nodes and all tokens that may be generated."""
        return len(self.tree) + sum(prompt.settings.max_new_tokens for prompt in self.prompts)

    @property
    def steps(self) -> int:
        """Steps that its leaves take at the most: their first token comes without one."""
        return max(prompt.settings.max_new_tokens for prompt in self.prompts) - 1


def plan_trees(prompts: Sequence[Prompt], family: Family) -> list[PlannedTree]:
    """Merges prompts with a long common prefix that may share keys and values.

    Returns:
        Trees with many leaves first and longer ones before shorter ones, so that what runs together is alike.
    """
    share_keys = family.share_keys([len(prompt.sequence) for prompt in prompts])
    trees = []
    for share_key in sorted(set(share_keys)):
        members = [prompt for prompt, other in zip(prompts, share_keys, strict=True) if other == share_key]
        for group in group_by_prefix([prompt.sequence for prompt in members], MIN_SHARED):
            most = MAX_LEAVES if family.reads_trees else 1
            for start in range(0, len(group), most):
                chosen = [members[index] for index in group[start : start + most]]
                tree = build_tree([prompt.sequence for prompt in chosen])
                grids = {image.number: image.grid for prompt in chosen for image in prompt.images}
                trees.append(PlannedTree(chosen, tree, family.positions(tree, grids), share_key))
    return sorted(trees, key=lambda tree: (-len(tree.prompts), -tree.slots))


def in_passes(trees: Iterable[PlannedTree], nodes: int) -> Iterator[list[PlannedTree]]:
    """Trees in their order, as many together as have so many nodes at the most; a larger one comes alone."""
    together: list[PlannedTree] = []
    for planned in trees:
        if together and sum(len(each.tree) for each in together) + len(planned.tree) > nodes:
            yield together
            together = []
        together.append(planned)
    if together:
        yield together


def images_of(trees: Iterable[PlannedTree]) -> list[int]:
    """The numbers of the images that these trees show."""
    return [image.number for tree in trees for prompt in tree.prompts for image in prompt.images]
