"""Merges sequences that share prefixes into one tree that the model reads once.

`sequences` orders sequences by prefix, `tree` flattens them to index arrays (both NumPy only); `mask` turns the
arrays into attention masks and is imported on its own, because it loads torch.
"""

from mmrole.prompt_tree.sequences import TokenSequence, group_by_prefix
from mmrole.prompt_tree.tree import PromptTree, build_tree, concatenate

__all__ = ["PromptTree", "TokenSequence", "build_tree", "concatenate", "group_by_prefix"]
