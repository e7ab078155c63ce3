"""Validates the values of a `config.json`: types, ranges, and sizes that belong together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmrole.base.errors import shown
from mmrole.qwen_vl.errors import CheckpointError

if TYPE_CHECKING:
    from mmrole.qwen_vl.configuration import QWenConfig

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_channels",
    "intermediate_size",
    "seq_length",
    "max_position_embeddings",
)
VISUAL_SIZES = ("heads", "image_size", "image_start_id", "layers", "output_dim", "patch_size", "width")
_SWITCHES = ("use_dynamic_ntk", "use_logn_attn", "no_bias", "tie_word_embeddings", "use_cache")
_PROBABILITIES = ("emb_dropout_prob", "attn_dropout_prob")
_LARGEST = 2**31 - 1
_MOST_LAYERS = 1000  # a model is laid out before its weights are looked at, and layers are what that takes time for


def check_config_values(config: QWenConfig, name: str) -> None:
    """Raises CheckpointError for a value of no use, and for sizes that contradict each other; `name` comes first."""
    values = {key: getattr(config, key) for key in (*_SIZES, *_SWITCHES, *_PROBABILITIES)}
    values |= {key: getattr(config, key) for key in ("rotary_emb_base", "rotary_pct", "layer_norm_epsilon")}
    values |= {"initializer_range": config.initializer_range, "scale_attn_weights": config.scale_attn_weights}
    values |= {f"visual.{key}": config.visual[key] for key in (*VISUAL_SIZES, "mlp_ratio")}
    for key, value in values.items():
        expected = _fault(key, value)
        if expected:
            raise CheckpointError(f"{name}: {key} in config.json is {shown(value)}, not {expected}.")
    if config.dtype is not None and not getattr(config.dtype, "is_floating_point", False):
        raise CheckpointError(
            f"{name}: torch_dtype in config.json is {shown(config.dtype)}, not a floating-point type."
        )
    broken = [message for holds, message in _rules(config) if not holds]
    if broken:
        raise CheckpointError(f"{name}: sizes in config.json contradict each other: {'; '.join(broken)}.")


def _fault(key: str, value: Any) -> str:
    """What the field must be, if the value is not."""
    if key in _SIZES or key.removeprefix("visual.") in VISUAL_SIZES:
        if type(value) is not int or value <= 0:
            return "a positive whole number"
        if value > _LARGEST:
            return f"at most {_LARGEST:,}"
        return f"at most {_MOST_LAYERS:,}" if key.endswith("layers") and value > _MOST_LAYERS else ""
    if key in _SWITCHES:
        return "" if type(value) is bool else "true or false"
    if key == "scale_attn_weights":
        return "" if value is True else "true, the only way in which attention is computed here"
    number = value if type(value) in (int, float) and abs(value) <= _LARGEST else math.nan
    if key in _PROBABILITIES:
        return "" if 0 <= number < 1 else "a probability below 1"
    if key == "initializer_range":
        return "" if number >= 0 else "a number of at least 0"
    return "" if number > 0 else "a positive number"


def _rules(config: QWenConfig) -> list[tuple[bool, str]]:
    """What must hold between sizes, and what to say where it does not."""
    visual = config.visual
    heads = visual["output_dim"] // 128
    return [
        (
            config.kv_channels * config.num_attention_heads == config.hidden_size,
            f"hidden_size {config.hidden_size} is not kv_channels {config.kv_channels} x "
            f"num_attention_heads {config.num_attention_heads}",
        ),
        (
            config.rotary_pct <= 1 and _rotated(config) > 0 and _rotated(config) % 2 == 0,
            f"rotary_pct {config.rotary_pct} of kv_channels {config.kv_channels} is not an even number of channels",
        ),
        (config.intermediate_size % 2 == 0, f"intermediate_size {config.intermediate_size} is odd"),
        (
            config.seq_length > 1 or not config.use_logn_attn,
            f"seq_length {config.seq_length} leaves use_logn_attn nothing to divide by",
        ),
        (
            visual["output_dim"] == config.hidden_size,
            f"visual.output_dim {visual['output_dim']} is not hidden_size {config.hidden_size}",
        ),
        (
            heads > 0 and visual["output_dim"] % heads == 0,
            f"visual.output_dim {visual['output_dim']} cannot be split into heads of about 128 channels",
        ),
        (
            visual["width"] % visual["heads"] == 0,
            f"visual.width {visual['width']} is not a multiple of visual.heads {visual['heads']}",
        ),
        (
            visual["image_size"] % visual["patch_size"] == 0,
            f"visual.image_size {visual['image_size']} is not a multiple of patch_size {visual['patch_size']}",
        ),
        (
            visual["image_start_id"] + 2 < config.vocab_size,
            f"visual.image_start_id {visual['image_start_id']} lies outside of vocab_size {config.vocab_size}",
        ),
    ]


def _rotated(config: QWenConfig) -> int:
    return int(config.kv_channels * config.rotary_pct)
