"""From requests to prompt trees: what may share keys and values, and in which order trees are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree, group_by_prefix
from mmrole.qwen_vl.rotary import ntk_alpha

# Prompts with less in common than an image are decoded as trees of their own: a common row of the batch would cost
# more in padding than it saves.
MIN_SHARED = 256
MAX_LEAVES = 16


@dataclass(eq=False)
class Prompt:
    """A request with its token ids; `images` are the numbers in `ImageFeatures` of the images that it holds."""

    request: ChatRequest
    settings: GenerationSettings
    sequence: TokenSequence
    images: list[int]


@dataclass(eq=False)
class PlannedTree:
    """Prompts that are prefilled together.

    Attributes:
        prompts: one for each sequence of the tree.
        tree: the merged token ids.
        alpha: NTK factor of all of them.
    """

    prompts: list[Prompt]
    tree: PromptTree
    alpha: int

    @property
    def positions(self) -> int:
        """Slots that the tree takes in the end at the most: its nodes and all tokens that may be generated."""
        return len(self.tree) + sum(prompt.settings.max_new_tokens for prompt in self.prompts)


def plan_trees(prompts: Sequence[Prompt], seq_length: int) -> list[PlannedTree]:
    """Merges prompts with a long common prefix and equal NTK factors.

    Returns:
        Trees with many leaves first and longer ones before shorter ones, so that what runs together is alike.
    """
    lengths = torch.tensor([len(prompt.sequence) for prompt in prompts])
    alphas = ntk_alpha(lengths, seq_length).tolist()
    trees = []
    for alpha in sorted(set(alphas)):
        members = [prompt for prompt, other in zip(prompts, alphas, strict=True) if other == alpha]
        for group in group_by_prefix([prompt.sequence for prompt in members], MIN_SHARED):
            for start in range(0, len(group), MAX_LEAVES):
                chosen = [members[index] for index in group[start : start + MAX_LEAVES]]
                trees.append(PlannedTree(chosen, build_tree([prompt.sequence for prompt in chosen]), alpha))
    return sorted(trees, key=lambda tree: (-len(tree.prompts), -tree.positions))


def images_of(trees: Iterable[PlannedTree]) -> list[int]:
    """The numbers of the images that these trees show."""
    return [number for tree in trees for prompt in tree.prompts for number in prompt.images]
