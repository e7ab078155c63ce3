"""What config.json says: windows as the modules of transformers have them."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, Gemma3Config, Mistral3Config

from mmrole.models.vlm import facts

SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": 9}


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
