"""What config.json says about a vision-language model: sizes, layers, windows, stop tokens."""

from __future__ import annotations

from typing import Any

# "dynamic" changes nothing up to `max_position_embeddings`. Of longer prompts people are warned; frequencies then stay.
_LENGTH_DEPENDENT = "longrope"
_M_ROPE = "mrope_section"


def text_config(config: Any) -> Any:
    """The language model's part of a configuration."""
    return config.get_text_config()


def windows(config: Any) -> list[int]:
    """Of each layer: how many positions a query sees, itself included; 0 for all."""
    text = text_config(config)
    layers = text.num_hidden_layers
    window = getattr(text, "sliding_window", None) or 0
    if not window:
        return [0] * layers
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return [window if getattr(text, "use_sliding_window", True) else 0] * layers
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def position_rows(config: Any) -> int:
    """Numbers that say where a position is: 3 with M-RoPE, else 1."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return 3 if any(_M_ROPE in each for each in (parameters, *nested)) else 1


def keys_depend_on_length(config: Any) -> bool:
    """Whether rotary positions depend on how long the whole sequence is."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return any(each.get("rope_type") == _LENGTH_DEPENDENT for each in (parameters, *nested))


def head_size(config: Any) -> int:
    """Of a key."""
    text = text_config(config)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def kv_heads(config: Any) -> int:
    """Heads of keys and values."""
    text = text_config(config)
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def active_experts(config: Any) -> int:
    """How many of a block's experts read a token; 0 where there are none."""
    return getattr(text_config(config), "num_experts_per_tok", None) or 0


def images_both_ways(config: Any) -> bool:
    """Whether the rows of an image see each other both ways, as Gemma 3's do."""
    return config.model_type in ("gemma3",)


def stop_ids(config: Any, generation: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply: those of generation_config.json, else config.json's, and the tokenizer's own."""
    text = text_config(config)
    for named in (generation.get("eos_token_id"), getattr(text, "eos_token_id", None)):
        if named is not None:
            found = set(named) if isinstance(named, list | tuple) else {named}
            break
    else:
        found = set()
    return frozenset(found | ({tokenizer.eos_token_id} - {None}))
