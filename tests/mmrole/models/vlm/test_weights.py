"""Weights that are not there, or do not fit, are never drawn at random."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrole.base.errors import UserError
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import ModelOptions, find_model, load
from mmrole.models.vlm.weights import load_pretrained


@pytest.fixture
def copy(tiny_vlm: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(tiny_vlm("qwen2_5_vl"), tmp_path / "model")


@pytest.fixture
def weights(copy: Path) -> dict[str, torch.Tensor]:
    return load_file(copy / "model.safetensors")


def refused(copy: Path, weights: dict[str, torch.Tensor], line: str) -> None:
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=line) as raised:
        load_pretrained(copy)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=line):
        load(find_model(ModelOptions(copy, device="cpu")), progress=False)


def last_layer(weights: dict[str, torch.Tensor]) -> str:
    """A name of the last layer, which the proof of trees does not load."""
    return next(name for name in weights if "layers.3.mlp.up_proj" in name)


def test_a_weight_by_another_name_is_missed(copy, weights):
    name = last_layer(weights)
    weights[f"{name}.old"] = weights.pop(name)
    refused(copy, weights, r"it has no weights for .*layers\.3\.mlp\.up_proj\.weight; download or copy")


def test_a_weight_of_another_shape_is_refused(copy, weights):
    name = last_layer(weights)
    weights[name] = weights[name].T.contiguous()
    line = r"config\.json has other shapes than the weights for .*layers\.3\.mlp\.up_proj\.weight; download or copy"
    refused(copy, weights, line)


def test_what_is_wrong_with_weights_is_told_in_one_line_only(copy, weights, capfd):
    refused(copy, {f"old.{name}": weight for name, weight in weights.items()}, "it has no weights for lm_head.weight, ")
    assert not capfd.readouterr().err


def test_what_files_hold_besides_is_passed_over(copy, weights):
    save_file({**weights, "more": torch.zeros(3)}, copy / "model.safetensors", {"format": "pt"})
    module = load_pretrained(copy)
    assert {name for name, _ in module.named_parameters()} != set()


@pytest.mark.parametrize("named", ["x", [True], [[]], [2, -1], 3.5])
def test_stop_tokens_that_are_none_get_a_line(copy, named):
    file = copy / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": named}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be a token id"):
        load(find_model(ModelOptions(find_checkpoint(copy, False).base, device="cpu")), progress=False)
