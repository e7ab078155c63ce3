"""Checkpoints that cannot be used get one line before their weights are loaded; whole ones none."""

import io
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
        ({"text_config": {"quantization_config": {"bits": 4}}}, "quantized checkpoints are not supported"),
        ({"image_token_id": "x"}, "config.json: model_type 'qwen2_5_vl' cannot be loaded: Validation error for field"),
        (
            {"image_token_id": 5},
            "config.json: image_token_id 5 is not among the tokens that the checkpoint's processor",
        ),
    ],
)
def test_other_models_are_refused(copy, fields, line):
    change(copy / "config.json", **fields)
    refused(copy, line)


@pytest.mark.parametrize(("name", "value"), [("num_hidden_layers", 0), ("max_position_embeddings", -5)])
def test_sizes_that_are_none_are_refused(copy, name, value):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    change(copy / "config.json", text_config={**text, "layer_types": None, name: value})
    refused(copy, rf"config\.json: {name} of the language model must be a number above 0, not {value}")


def test_layers_with_heads_of_different_sizes_are_refused(copy):
    pytest.importorskip("transformers.integrations.heterogeneity")  # not in all versions of transformers
    text = {"model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 32}
    change(copy / "config.json", model_type="gemma4", text_config=text, vision_config={}, audio_config=None)
    refused(copy, r"config\.json: head_dim differs from layer to layer, which is not supported")


def test_no_quantization_may_be_said_in_words(copy):
    change(copy / "config.json", quantization_config=None)
    check_checkpoint(find_checkpoint(copy, False))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_in_eight_bits_are_refused(copy, dtype):
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    refused(copy, "model.safetensors: lm_head.weight is stored as [IUF]8.*: quantized checkpoints are not supported")


@pytest.mark.parametrize("attribute", ["AutoConfig", "AutoImageProcessor"])
def test_nobody_is_asked_to_run_a_checkpoints_code(attribute, copy, tmp_path, monkeypatch, capsys):
    (copy / "own.py").write_text(f"open({str(tmp_path / 'has_run')!r}, 'w')\nclass Own: pass\n")
    file = "config.json" if attribute == "AutoConfig" else "preprocessor_config.json"
    change(copy / file, auto_map={attribute: "own.Own"}, model_type="own", image_processor_type="Own")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    if attribute == "AutoConfig":
        refused(copy, "model_type 'own' cannot be loaded: it needs code of its own, which is not run")
    else:
        check_checkpoint(find_checkpoint(copy, False))
    assert not (tmp_path / "has_run").exists()
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_damaged_file_is_named(file, copy):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    refused(copy, rf"{file} is not JSON: .* \(line \d+, column \d+\)$")


def test_a_pointer_of_git_lfs_is_named(copy):
    (copy / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99\n")
    refused(copy, r"tokenizer\.json is a pointer of Git LFS, not the file itself; run `git lfs pull`$")


@pytest.mark.parametrize(
    "fields", [{"image_processor_type": "CLIPImageProcessor"}, {"patch_size": "16"}, {"image_mean": [0.5]}]
)
def test_an_image_processor_that_fails_is_no_fault_of_an_image(fields, copy):
    change(copy / "preprocessor_config.json", **fields)
    refused(copy, r"model: its image processor does not take an image \(\w+Error: ")


def test_a_processor_without_a_token_for_images_is_refused(copy):
    change(copy / "preprocessor_config.json", processor_class="BlipProcessor")
    refused(copy, "model: its processor has no token that stands for an image in a chat; docs/models.md lists")


def test_a_tokenizer_without_the_images_token_is_refused(copy):
    state = json.loads((copy / "tokenizer.json").read_text())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<|image_pad|>"]
    change(copy / "tokenizer.json", **state)
    change(copy / "tokenizer_config.json", added_tokens_decoder={})
    refused(copy, "its tokenizer has no token '<|image_pad|>', which stands for an image".replace("|", r"\|"))


def test_a_language_model_without_blocks_where_they_are_looked_for_is_refused(tiny_vlm, tmp_path):
    copy = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    fields = {name: config["text_config"][name] for name in ("vocab_size", "hidden_size", "num_attention_heads")}
    sizes = {
        "ffn_dim": 128,
        "tie_word_embeddings": False,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
    }
    change(copy / "config.json", text_config={**fields, **sizes, "model_type": "opt", "max_position_embeddings": 512})
    refused(copy, "a language model of the kind OPT is not supported")


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


def test_a_template_that_leaves_out_images_is_refused(copy):
    frame = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    texts = "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    (copy / "chat_template.jinja").write_text(frame + texts)
    refused(copy, "model: its chat template leaves out an image$")


def test_an_image_processor_that_needs_torchvision_is_refused(copy):
    fields = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**fields, "image_processor_type": None}))
    change(copy / "config.json", model_type="lfm2_vl")
    refused(copy, "model: its image processor needs torchvision, which is not used here; docs/models.md lists")
