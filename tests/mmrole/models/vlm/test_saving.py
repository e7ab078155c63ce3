"""What lies beside trained weights is what lay beside the weights before, with the limit of training."""

import json
import shutil

import pytest
from fixtures.vlms.chosen import ALL
from PIL import Image
from transformers import AutoImageProcessor

from mmrole.base.errors import UserError
from mmrole.models.checkpoints import IMAGE_PROCESSOR, PROCESSOR_FILES, Checkpoint
from mmrole.models.vlm.loading import read_family


@pytest.mark.parametrize("kind", ALL)
def test_files_are_copied(kind, tiny_vlm, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("what transformers makes of it")
    read_family(Checkpoint(tiny_vlm(kind))).save(tmp_path)
    expected = {name for name in (*PROCESSOR_FILES, "generation_config.json") if (tiny_vlm(kind) / name).is_file()}
    assert {file.name for file in tmp_path.iterdir()} == expected
    for name in expected:
        assert (tmp_path / name).read_bytes() == (tiny_vlm(kind) / name).read_bytes()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_the_limit_of_an_image_is_kept(kind, tiny_vlm, tmp_path):
    family = read_family(Checkpoint(tiny_vlm(kind)), max_pixels=6000)
    family.save(tmp_path)
    picture = Image.new("RGB", (400, 300))
    expected = family.preprocess([picture])["pixel_values"]
    assert len(expected) < len(read_family(Checkpoint(tiny_vlm(kind))).preprocess([picture])["pixel_values"])
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert loaded([picture], return_tensors="pt")["pixel_values"].equal(expected)
    changed = json.loads((tmp_path / IMAGE_PROCESSOR[0]).read_text())
    assert changed["max_pixels"] == 6000


def test_a_limit_without_effect_is_refused(tiny_vlm):
    with pytest.raises(UserError, match="has no such limit"):
        read_family(Checkpoint(tiny_vlm("llava")), max_pixels=6000)


def test_an_adapter_has_its_own_limit(tiny_vlm, tmp_path):
    base = tiny_vlm("qwen3_vl")
    read_family(Checkpoint(base), max_pixels=6000).save(tmp_path)
    picture = Image.new("RGB", (400, 300))
    found, expected = (
        family.preprocess([picture])["pixel_values"]
        for family in (read_family(Checkpoint(base, tmp_path)), read_family(Checkpoint(base), max_pixels=6000))
    )
    assert found.equal(expected)
    (tmp_path / IMAGE_PROCESSOR[0]).unlink()
    assert Checkpoint(base, tmp_path).processor_directory == base


def test_settings_that_are_not_there_are_not_made(tiny_vlm, tmp_path):
    shutil.copytree(tiny_vlm("llava"), tmp_path / "base")
    (tmp_path / "base/generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text("{}")
    read_family(Checkpoint(tmp_path / "base")).save(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
