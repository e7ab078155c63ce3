"""Rotary positions with dynamic NTK, and the log-n factor of queries (spec §2.3, §2.4).

Everything is computed from positions at each call: there is no table to lose when a model is built on the meta device,
no state that one call could leave to the next, and no longest input.
"""

import math

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the original's float32 parts are computed: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ntk_alpha(lengths: Tensor, seq_length: int) -> Tensor:
    """The dynamic NTK factor of prompts (spec §2.3): max(2^(ceil(log2(n / L)) + 1) - 1, 1).

    It is 1 up to L, 3 up to 2L, 7 up to 4L and so on.

    Args:
        lengths: int, any shape: numbers of positions n of the prompts.
        seq_length: training length L.

    Returns:
        int64 factors of the same shape.
    """
    # Integers, not log2: a rounding error at a power of two would change the base of every rotation.
    ratio = torch.clamp((lengths.to(torch.int64) + seq_length - 1) // seq_length, min=1)  # ceil(n / L)
    alpha = torch.ones_like(ratio)
    for doublings in range(1, 32):
        alpha = torch.where(ratio > 2 ** (doublings - 1), 2 ** (doublings + 1) - 1, alpha)
    return alpha


def rotary_tables(
    position_ids: Tensor, alpha: Tensor, channels: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles p * base'^(-2j/r), base' = base * alpha^(r / (r - 2)).

    Args:
        position_ids: [batch, positions], int: 0-based positions p.
        alpha: [batch] or [batch, positions], int: NTK factor of each sequence, or of each position.
        channels: number r of rotated channels of a head, even.
        base: rotary base of training.
        dtype: float32 or float64.

    Returns:
        Two tensors [batch, positions, r] for `rotate`: the second half of the channels repeats the first, and the sines
        of the first half are negative.
    """
    alpha = alpha.to(device=position_ids.device, dtype=torch.float64)
    if alpha.dim() == 1:
        alpha = alpha[:, None]
    # The base in float64, then rounded: as the original, which computes it as a Python float.
    scaled_base = (base * alpha ** (channels / (channels - 2)) if channels > 2 else base * alpha).to(dtype)
    exponents = torch.arange(0, channels, 2, device=position_ids.device, dtype=dtype) / channels
    inverse_frequencies = 1.0 / scaled_base[..., None] ** exponents  # [batch, 1 or positions, r / 2]
    angles = position_ids[..., None].to(dtype) * inverse_frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first r channels of each head; the rest passes (spec §2.3). Computed in the tables' dtype.

    Args:
        states: [batch, heads, positions, head_dim] queries or keys.
        cos, sin: [batch, positions, r] of `rotary_tables`.
    """
    channels = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    whole = channels == states.shape[-1]
    rotated = (states if whole else states[..., :channels]).to(cos.dtype)
    swapped = rotated.roll(channels // 2, dims=-1)
    rotated = (rotated * cos).addcmul_(swapped, sin).to(states.dtype)
    if whole:
        return rotated
    return torch.cat((rotated, states[..., channels:]), dim=-1)


def logn_factors(position_ids: Tensor, seq_length: int, dtype: torch.dtype) -> Tensor:
    """log(i) / log(L) for 1-based positions i above L, else 1 (spec §2.4): [batch, positions] in `dtype`.

    `dtype` is the model's working dtype: the original rounds the factor to it.
    """
    index = (position_ids + 1).to(at_least_float32(dtype))
    return torch.clamp(index.log() / math.log(seq_length), min=1.0).to(dtype)
