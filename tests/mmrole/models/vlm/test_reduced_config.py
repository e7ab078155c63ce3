"""A reduced model has a layer of each kind, and all that its vision tower hands to it."""

from typing import Any

import pytest
from transformers import AutoConfig, Gemma3Config, LlavaConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from mmrole.models.vlm import facts
from mmrole.models.vlm.reduced_config import WINDOW, reduced


def test_each_kind_of_layer_is_kept_and_its_window_is_short():
    config = Gemma3Config(text_config={"num_hidden_layers": 34, "sliding_window": 1024})
    before = config.to_dict()
    small = reduced(config)
    assert small.text_config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert facts.windows(small) == [WINDOW] * 5 + [0]
    assert small.text_config.num_hidden_layers == 6
    assert small.vision_config.num_hidden_layers == 2
    assert config.to_dict() == before


def test_layers_that_see_an_image_once_more_are_kept():
    small = reduced(Qwen3VLConfig(vision_config={"depth": 27, "deepstack_visual_indexes": [8, 16, 24]}))
    assert small.text_config.num_hidden_layers == 3
    assert (small.vision_config.depth, small.vision_config.deepstack_visual_indexes) == (3, [0, 1, 2])


def test_a_vision_tower_keeps_both_kinds_of_its_layers():
    small = reduced(Qwen2_5_VLConfig(vision_config={"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}))
    assert small.text_config.num_hidden_layers == 2
    assert (small.vision_config.depth, small.vision_config.fullatt_block_indexes) == (4, [0, 1, 2, 3])


@pytest.mark.parametrize(("taken", "layers"), [(-2, 3), (-1, 2), (5, 24), ([3, 8, -2], 24)])
def test_features_are_taken_from_the_same_layer_of_what_is_left(taken, layers):
    small = reduced(
        LlavaConfig(
            vision_feature_layer=taken, vision_config={"model_type": "clip_vision_model", "num_hidden_layers": 24}
        )
    )
    assert small.vision_config.num_hidden_layers == layers


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
def test_a_small_model_is_kept_whole(kind, tiny_vlm):
    config: Any = AutoConfig.from_pretrained(tiny_vlm(kind))
    small = reduced(config)
    assert small.text_config.num_hidden_layers == 2
    assert small.text_config.hidden_size == config.text_config.hidden_size
