"""The attention function that transformers' language models call: it asks the tree that is handed through the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from mmrole.prompt_tree.attention import TreeAttention

NAME = "mmrole_tree"
"""Under which it is registered, for `set_attn_implementation`. transformers makes no mask for it."""

FLEX = "mmrole_tree_flex"
"""The same, where training hands a tree's attention as FlexAttention computes it."""


def attend_in_tree(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree_attention: TreeAttention | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[1, heads, N, d] each, keys and values perhaps with fewer heads → [1, N, heads, d].

    Args:
        module: the attention module, with its `layer_idx`.
        query: of N nodes, or of a step's leaves; key, value: the same.
        attention_mask: None.
        scaling: factor of the scores; 1 / sqrt(d) if None.
        dropout: probability of dropping a weight.
        sliding_window: positions that a query sees, itself included; None for all.
        tree_attention: knows who sees whom.
        softcap: of the scores; not supported.
        s_aux: attention sinks; not supported.
        kwargs: what other implementations take.

    Raises:
        NotImplementedError: this attention does what a tree's cannot.
        ValueError: no tree was handed through the model.
    """
    if tree_attention is None:
        raise ValueError("this model reads prompt trees only; set_attn_implementation('sdpa') makes it usual again")
    if attention_mask is not None or softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with a mask of its own, a soft cap or sinks is not computed in trees")
    layer: Any = module.layer_idx
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return tree_attention.attend(layer, query, key, value, factor, dropout, window=sliding_window or 0), None


AttentionInterface.register(NAME, attend_in_tree)
AttentionInterface.register(FLEX, attend_in_tree)
