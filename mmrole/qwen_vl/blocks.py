"""Building blocks of the language model (spec §2.2)."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmrole.qwen_vl.attention import eager_attention_forward
from mmrole.qwen_vl.compiled import gated, rotated
from mmrole.qwen_vl.configuration import QWenConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in at least float32, cast back, times the weight in the working dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., size] → the same."""
        # Given the weight as well, rms_norm would multiply before it casts back.
        return nn.functional.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps) * self.weight


class LayerAttention(Protocol):
    """Keys and values that are not one tensor, and the attention to them (in place of a transformers Cache)."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """Keeps a layer's new keys and values, attends; [batch, heads, positions, d] → [batch, positions, heads, d]."""
        ...


class QWenAttention(nn.Module):
    """Causal self-attention with rotary positions; queries far out are scaled by the log-n factor."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1  # transformers' attention functions ask
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=not config.no_bias)
        # For its initial values. torch declares tensors and modules only as what a module may be given.
        self.c_proj.ends_branch = True  # pyright: ignore[reportArgumentType]

    @property
    def attention_dropout(self) -> float:
        """Probability with which weights are dropped now."""
        return self.config.attn_dropout_prob if self.training else 0.0

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | BlockMask | None,
        rotary: tuple[Tensor, Tensor],
        logn: Tensor | None,
        past_key_values: Cache | None = None,
        tree_attention: LayerAttention | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[batch, positions, hidden_size] → the same, and the weights if the implementation returns them.

        Args:
            rotary: cosines and sines [batch, positions, r].
            logn: factors of the queries [batch, positions], or None.
            tree_attention: takes the place of cache, mask and attention implementation.
        """
        states = self.c_attn(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        heads = states.shape[1] // 3
        # Of a split the gradient is one copy; of two slices it is a sum of two padded ones.
        queries_and_keys, value = states.split((2 * heads, heads), dim=1)
        query, key = rotated(queries_and_keys, *rotary).chunk(2, dim=1)
        if logn is not None:
            query = query * logn[:, None, :, None]
        if tree_attention is not None:
            output = tree_attention.attend(self.layer_idx, query, key, value, self.scaling, self.attention_dropout)
            return self.c_proj(output.flatten(2)), None
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = cast(str, self.config._attn_implementation)  # set when the model was made
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )
        return self.c_proj(output.flatten(2)), weights


class QWenMLP(nn.Module):
    """c_proj(w1(x) * silu(w2(x))): w2 is the gate."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        width, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, width, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, width, bias=bias)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=bias)
        # As in the attention.
        self.c_proj.ends_branch = True  # pyright: ignore[reportArgumentType]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, positions, hidden_size] → the same."""
        return self.c_proj(gated(self.w1(hidden_states), self.w2(hidden_states)))


class QWenBlock(GradientCheckpointingLayer):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Returns the new hidden states and the attention weights, if any; `kwargs` go to the attention."""
        attended, weights = self.attn(self.ln_1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states)), weights
