"""What a checkpoint is recognised by, and the generation settings that it brings along."""

import json

import pytest
from transformers import GenerationConfig

from data_utils.errors import UserError
from mmrole.generation import GenerationSettings
from mmrole.generation.checkpoints import Checkpoint, find_checkpoint, generation_settings, sampling_settings

MEBIBYTE = 1 << 20


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "agent"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "qwen.tiktoken").write_text("AA== 0\n")
    with open(directory / "pytorch_model-00001-of-00001.bin", "wb") as file:
        file.truncate(300 * MEBIBYTE)  # sparse: it takes no room
    return Checkpoint(directory)


def settings(checkpoint, **flags):
    return generation_settings(checkpoint, **{"no_random": False, "seed": 1234, "max_new_tokens": None} | flags)


def test_identity_is_the_content(checkpoint, tmp_path):
    before = checkpoint.identity()
    assert set(before) == {"model"}
    for name in ("README.md", "training_args.bin", "optimizer.bin"):
        (checkpoint.base / name).write_text("not read")
    (checkpoint.base / "generation_config.json").write_text("{}")  # its values are part of the settings
    moved = checkpoint.base.rename(tmp_path / "moved")
    (moved / "config.json").touch()
    (tmp_path / "elsewhere").mkdir()
    again = Checkpoint(moved.rename(tmp_path / "elsewhere" / "another name"))
    assert again.identity() == before


def test_other_bin_files_are_no_weights(checkpoint):
    assert find_checkpoint(checkpoint.base, use_lora=False) == checkpoint
    next(checkpoint.base.glob("*.bin")).rename(checkpoint.base / "training_args.bin")
    with pytest.raises(UserError, match="has no weights"):
        find_checkpoint(checkpoint.base, use_lora=False)


@pytest.mark.parametrize("name", ["config.json", "qwen.tiktoken", "model.safetensors.index.json"])
def test_every_byte_of_a_small_file_counts(checkpoint, name):
    (checkpoint.base / name).write_text("a")
    before = checkpoint.identity()
    (checkpoint.base / name).write_text("b")
    assert checkpoint.identity() != before


@pytest.mark.parametrize("place", [0, 17 * MEBIBYTE, 150 * MEBIBYTE, 300 * MEBIBYTE - 3 * MEBIBYTE])
def test_changed_weights_count_in_a_large_file(checkpoint, place):
    """Three MiB, less than one matrix of the real model's resampler in bfloat16."""
    before = checkpoint.identity()
    with open(next(checkpoint.base.glob("*.bin")), "r+b") as file:
        file.seek(place)
        file.write(b"\1" * (3 * MEBIBYTE))
    assert checkpoint.identity() != before


def test_so_does_a_single_byte_at_the_end(checkpoint):
    """There are the checksums of a `.bin` file."""
    before = checkpoint.identity()
    with open(next(checkpoint.base.glob("*.bin")), "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert checkpoint.identity() != before


def test_settings_of_the_published_checkpoint(checkpoint, golden):
    (checkpoint.base / "generation_config.json").write_bytes((golden / "ckpt_full/generation_config.json").read_bytes())
    assert settings(checkpoint) == GenerationSettings(max_new_tokens=512, top_p=0.3, top_k=0, seed=1234)
    assert settings(checkpoint, seed=5, max_new_tokens=7) == GenerationSettings(max_new_tokens=7, seed=5)
    greedy = GenerationSettings(do_sample=False)
    assert settings(checkpoint, no_random=True) == settings(checkpoint, no_random=True, seed=5) == greedy


def test_settings_without_the_file_are_those_of_mmrole(checkpoint):
    assert settings(checkpoint) == GenerationSettings()
    assert sampling_settings(checkpoint, seed=1234, max_new_tokens=None) == GenerationSettings()


def test_what_the_file_leaves_out_is_what_generate_takes(checkpoint):
    (checkpoint.base / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 2}))
    assumed = GenerationConfig()._get_default_generation_params()
    found = settings(checkpoint)
    assert (found.temperature, found.max_new_tokens) == (2, 512)
    assert all(getattr(found, name) == assumed[name] for name in ("top_k", "top_p", "repetition_penalty"))
    (checkpoint.base / "generation_config.json").write_text('{"top_p": 0.7}')
    assert settings(checkpoint).do_sample is assumed["do_sample"] is False
    sampled = sampling_settings(checkpoint, seed=3, max_new_tokens=9)
    assert sampled == GenerationSettings(max_new_tokens=9, top_k=assumed["top_k"], top_p=0.7, seed=3)
