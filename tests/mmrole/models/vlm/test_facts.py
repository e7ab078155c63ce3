"""What config.json says: windows as the modules of transformers have them, positions, stop tokens."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    InternVLConfig,
    LlavaConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from mmrole.models.vlm import facts
from mmrole.models.vlm.parts import hold_rotary

SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": 9}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [2.0] * 16,
    "original_max_position_embeddings": 4096,
}


@pytest.mark.parametrize("longest", [64, 8])
@pytest.mark.parametrize(("made", "kind"), [(Gemma3Config, "gemma3_text"), (Mistral3Config, "mistral")])
def test_windows_are_those_that_modules_hand_to_their_attention(made, kind, longest):
    """Also where nothing is longer than the window: attention in trees is told of it in any case."""
    text = {**SMALL, "model_type": kind, "sliding_window": 8, "sliding_window_pattern": 2}
    config = made(text_config={**text, "max_position_embeddings": longest, "pad_token_id": 0})
    found = facts.windows(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    layers = model.model.language_model.layers
    own = [getattr(layer.self_attn, "sliding_window", config.text_config.sliding_window) for layer in layers]
    assert found == [window or 0 for window in own]
    assert any(found)


def test_three_numbers_say_where_a_position_is_with_m_rope():
    configs = (Qwen2_5_VLConfig(text_config={"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}),)
    assert [facts.position_rows(config) for config in configs] == [3]
    assert [facts.position_rows(config) for config in (Gemma3Config(), LlavaConfig())] == [1, 1]


@pytest.mark.parametrize(("rope", "depends"), [(DYNAMIC, False), (LONG, True), ({"rope_type": "default"}, False)])
def test_keys_depend_on_the_length_where_a_prompt_within_the_limit_can_change_them(rope, depends):
    """InternVL3 says "dynamic", which begins behind the longest prompt."""
    text = {"model_type": "qwen2", "rope_parameters": {"rope_theta": 1e6, **rope}}
    assert facts.keys_depend_on_length(InternVLConfig(text_config=text)) == depends


def test_frequencies_that_cannot_change_are_looked_at_no_more():
    from transformers import Qwen2Config, Qwen2Model

    model = Qwen2Model(
        Qwen2Config(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_parameters=DYNAMIC,
        )
    )
    before = model.rotary_emb.inv_freq.clone()
    hold_rotary(model)
    assert model.rotary_emb.rope_type == "default"
    assert model.rotary_emb.inv_freq.equal(before)


@pytest.mark.parametrize(
    ("generation", "config", "own", "found"),
    [
        ({"eos_token_id": [1, 106]}, 1, 1, {1, 106}),
        ({"eos_token_id": 7}, 1, None, {7}),
        ({}, [4, 5], 6, {4, 5, 6}),
        ({}, None, 6, {6}),
    ],
)
def test_replies_end_at_the_tokens_of_the_files(generation, config, own, found):
    text = LlavaConfig(text_config={"model_type": "llama", "eos_token_id": config})
    assert facts.stop_ids(text, generation, SimpleNamespace(eos_token_id=own)) == found


def test_deepstack_and_sizes():
    config = Qwen3VLConfig(text_config={"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 2})
    assert (facts.head_size(config), facts.kv_heads(config)) == (24, 2)
    assert not facts.images_both_ways(config)
    assert facts.images_both_ways(Gemma3Config())
