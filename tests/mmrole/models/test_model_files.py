"""Each file that may lie in a model directory is used, cannot change a reply, or is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from mmrole.base.errors import UserError
from mmrole.models.checkpoints import Checkpoint, find_checkpoint
from mmrole.models.loading import check_checkpoint
from mmrole.models.model_files import QUANTIZED, WITH_ADDED_TOKENS
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import byte_vocabulary


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound") / "model"
    config = random_config(256, num_hidden_layers=1, visual_layers=1, image_size=224)
    write_checkpoint(directory, random_model(config, seed=1, dtype=torch.float32), byte_vocabulary())
    return directory


@pytest.fixture
def model(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(scope="module")
def told():
    """What docs/qwen_vl.md says about files: their names, and what becomes of them."""
    text = (Path(__file__).parents[3] / "docs" / "qwen_vl.md").read_text(encoding="utf-8")
    section = text.split("## Files of a model directory")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return {name: what.strip() for names, what, *_ in rows for name in re.findall(r"`([^`]+)`", names)}


def check(directory):
    return check_checkpoint(find_checkpoint(directory, use_lora=False))


def test_what_cannot_change_a_reply_is_not_even_opened(model, told):
    before = find_checkpoint(model, use_lora=False).identity()
    names = [name.replace("*", "x") for name, what in told.items() if what == "passed over"]
    assert len(names) > 15
    for name in names:
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"\x80\x04not what it should be")
    check(model)
    assert Checkpoint(model).identity() == before


def test_each_file_that_is_used_is_told(told):
    used = {name for name, what in told.items() if what == "used"}
    assert {"config.json", "qwen.tiktoken", "generation_config.json", "model.safetensors"} <= used
    assert {*QUANTIZED} <= {name for name, what in told.items() if what == "refused"}
    assert {*WITH_ADDED_TOKENS} <= {name for name, what in told.items() if what.startswith("refused if")}


@pytest.mark.parametrize("name", QUANTIZED)
def test_settings_of_quantized_weights(model, name):
    (model / name).write_text('{"bits": 4}')
    with pytest.raises(UserError, match="quantized checkpoints are not supported"):
        check(model)


@pytest.mark.parametrize(
    ("name", "known", "unknown"),
    [
        ("added_tokens.json", {"<|im_end|>": 258}, {"<|mira|>": 999}),
        ("special_tokens_map.json", {"pad_token": "<|endoftext|>"}, {"additional_special_tokens": ["<|mira|>"]}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"258": {"content": "<|im_end|>"}}, "chat_template": "{{ messages }}"},
            {"added_tokens_decoder": {"999": {"content": "<|mira|>"}}},
        ),
    ],
)
def test_tokens_that_the_vocabulary_has_not(model, name, known, unknown):
    (model / name).write_text(json.dumps(known))
    check(model)
    (model / name).write_text(json.dumps(unknown))
    with pytest.raises(UserError, match=rf"{name} adds the token '<\|mira\|>'"):
        check(model)
    (model / name).write_text("{")
    with pytest.raises(UserError, match="JSON"):
        check(model)
