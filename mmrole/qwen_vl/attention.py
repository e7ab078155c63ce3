"""Attention through transformers' interface: eager (the original's arithmetic), SDPA, FlexAttention, FlashAttention."""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The original's attention (spec §2.2). The softmax runs in the working dtype, a quirk kept here only.

    Args:
        module: the attention module (its `training` flag switches dropout).
        query: [batch, heads, queries, d]; key, value: [batch, heads, keys, d].
        attention_mask: additive, broadcastable to [batch, heads, queries, keys], or None.
        scaling: factor of the scores; 1 / sqrt(d) if None.
        dropout: probability of dropping a weight in training.

    Returns:
        The output [batch, queries, heads, d] and the weights [batch, heads, queries, keys].
    """
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * factor, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of the vision tower: no mask; [n, heads, q, d] and [n, heads, p, d] → [n, q, heads * d]."""
    # Nothing is masked here, so SDPA already runs the flash kernel where there is one: the implementations that are
    # worth choosing for the language model's masks would only restrict head sizes.
    config = cast("PreTrainedConfig", module.config)
    name = "eager" if config._attn_implementation == "eager" else "sdpa"
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    output, _ = attention(module, query, key, value, None, dropout=0.0, is_causal=False)
    return rearrange(output, "n q head d -> n q (head d)")


def prepare_mask(
    config: PreTrainedConfig,
    attention_mask: Tensor | BlockMask | None,
    inputs_embeds: Tensor,
    past_key_values: Cache | None,
) -> Tensor | BlockMask | None:
    """The mask in the form that the chosen attention implementation takes.

    Args:
        attention_mask: None; [batch, keys] with 0 at padding (a causal mask is added); [batch, 1, queries, keys],
            boolean or integer (True or 1: may attend) or additive; or a FlexAttention BlockMask.
        inputs_embeds: [batch, queries, hidden_size], for sizes, dtype and device.

    Raises:
        ValueError: if the implementation cannot take such a mask.
    """
    implementation = config._attn_implementation or "eager"
    if isinstance(attention_mask, BlockMask):
        if implementation != "flex_attention":
            raise ValueError(f"a BlockMask needs attn_implementation='flex_attention', not {implementation!r}.")
        return attention_mask
    if attention_mask is None or attention_mask.dim() == 2:
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if past and attention_mask is not None and attention_mask.shape[1] < past + inputs_embeds.shape[1]:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} columns; with a cache it covers all positions, "
                f"{past} past and {inputs_embeds.shape[1]} new ones."
            )
        # Without position_ids: transformers takes a jump in them for the start of another, packed sequence.
        return create_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
    if attention_mask.dim() != 4:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; "
            "expected [batch, keys] or [batch, 1, queries, keys]."
        )
    if "flash" in implementation:
        raise ValueError(
            f"attn_implementation={implementation!r} cannot take a mask for each query; "
            "use 'sdpa', 'flex_attention' or 'eager'."
        )
    attention_mask = attention_mask.to(inputs_embeds.device)
    if attention_mask.is_floating_point():
        # The lowest float32 is minus infinity in bfloat16, and a row of nothing but that would be NaN.
        return attention_mask.to(inputs_embeds.dtype).clamp(min=torch.finfo(inputs_embeds.dtype).min)
    return boolean_mask_for(implementation, attention_mask.bool(), inputs_embeds.dtype)


def boolean_mask_for(implementation: str, mask: Tensor, dtype: torch.dtype) -> Tensor | BlockMask:
    """A boolean mask [batch, 1, queries, keys] in the form that an attention implementation takes.

    Args:
        implementation: "sdpa", "flex_attention", or one that adds its mask to the scores ("eager").
        mask: True where a query may attend.
        dtype: of the scores.
    """
    if implementation == "flex_attention":
        return _block_mask(mask)
    if implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _block_mask(mask: Tensor) -> BlockMask:
    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[batch, 0, query, key]

    batch, _, queries, keys = mask.shape
    return create_block_mask(allowed, batch, None, queries, keys, device=mask.device)
