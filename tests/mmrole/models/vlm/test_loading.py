"""Checkpoints that cannot be used get one line before their weights are loaded; whole ones none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.vlms import templates
from fixtures.vlms.chosen import ALL
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmrole.base.errors import UserError
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import check_checkpoint, read_family


@pytest.fixture
def copy(tiny_vlm: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(tiny_vlm("qwen2_5_vl"), tmp_path / "model")


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("kind", ALL)
def test_whole_checkpoints_are_sound(kind, tiny_vlm):
    check_checkpoint(find_checkpoint(tiny_vlm(kind), False))


def refused(directory: Path, line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        check_checkpoint(find_checkpoint(directory, False))
    assert "\n" not in str(raised.value)


def test_weights_that_are_missing_are_noticed_from_the_files_headers(copy):
    weights = load_file(copy / "model.safetensors")
    save_file(dict(list(weights.items())[:-1]), copy / "model.safetensors", {"format": "pt"})
    refused(copy, r"its weight files hold [\d,]+ numbers, the model of config.json has [\d,]+")


def test_weights_that_are_cut_off_are_refused(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(copy, "model.safetensors")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("chat_template.jinja", "has no chat template"),
        ("tokenizer.json", "tokenizer"),
        ("preprocessor_config.json", "image processor"),
    ],
)
def test_a_missing_file_is_named(copy, file, line):
    (copy / file).unlink()
    refused(copy, line)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"model_type": "brand_new"}, "model_type 'brand_new' cannot be loaded: it needs code of its own"),
        ({"model_type": "llama"}, "is no model of transformers that reads images and text"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized checkpoints are not supported"),
    ],
)
def test_other_models_are_refused(copy, fields, line):
    change(copy / "config.json", **fields)
    refused(copy, line)


def test_an_image_processors_former_name_is_known_by_the_model(copy):
    """Qwen2.5-VL was first published with one of its own, which transformers has replaced by Qwen2-VL's."""
    family = read_family(find_checkpoint(copy, False))
    change(copy / "preprocessor_config.json", image_processor_type="Qwen2_5_VLImageProcessor")
    check_checkpoint(find_checkpoint(copy, False))
    renamed = read_family(find_checkpoint(copy, False))
    picture = Image.linear_gradient("L").convert("RGB").resize((90, 60))
    before, after = (each.preprocess([picture]) for each in (family, renamed))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_template_that_wants_strings_is_sound(copy):
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    template = templates.PRINTING.replace("<|image|>", image)
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    check_checkpoint(find_checkpoint(copy, False))


def test_weights_in_several_files_are_sound(copy):
    module: Any = AutoModelForImageTextToText.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    module.save_pretrained(copy, max_shard_size="400KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 2
    check_checkpoint(find_checkpoint(copy, False))
    next(copy.glob("model-*.safetensors")).unlink()
    refused(copy, "model-0000")
