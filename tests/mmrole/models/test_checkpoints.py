"""What a checkpoint is recognised by: every byte of it, and nothing else."""

import os
import time

import pytest

from mmrole.base import file_hashes
from mmrole.base.errors import UserError
from mmrole.models.checkpoints import Checkpoint, find_checkpoint

MEBIBYTE = 1 << 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder in which hashes are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmrole" / "hashes"


@pytest.fixture
def checkpoint(tmp_path, cache):
    directory = tmp_path / "agent"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "qwen.tiktoken").write_text("AA== 0\n")
    with open(directory / "pytorch_model-00001-of-00001.bin", "wb") as file:
        file.truncate(70 * MEBIBYTE)  # sparse: it takes no room
    return Checkpoint(directory)


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


def test_weights_count_whatever_an_index_calls_them(checkpoint):
    index = checkpoint.base / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "shard.safetensors", "b": "../agent/gone", "c": 3}}')
    (checkpoint.base / "shard.safetensors").write_text("a")
    before = checkpoint.identity()
    (checkpoint.base / "shard.safetensors").write_text("b")
    assert checkpoint.identity() != before


def test_other_bin_files_are_no_weights(checkpoint):
    assert find_checkpoint(checkpoint.base, use_lora=False) == checkpoint
    next(checkpoint.base.glob("*.bin")).rename(checkpoint.base / "training_args.bin")
    with pytest.raises(UserError, match="has no weights"):
        find_checkpoint(checkpoint.base, use_lora=False)


def test_what_is_llama_cpps_is_told_apart(checkpoint):
    (checkpoint.base / "model-Q4_K_M.gguf").touch()
    assert find_checkpoint(checkpoint.base, use_lora=False) == checkpoint
    next(checkpoint.base.glob("*.bin")).unlink()
    with pytest.raises(
        UserError, match=r"holds a model for llama\.cpp \(\*\.gguf\): let its server load it, and give --api"
    ):
        find_checkpoint(checkpoint.base, use_lora=False)


def test_what_is_meant_in_the_model_hubs_cache_is_named(checkpoint, tmp_path):
    (tmp_path / "hub" / "snapshots").mkdir(parents=True)
    snapshot = checkpoint.base.rename(tmp_path / "hub" / "snapshots" / "9f6c")
    with pytest.raises(UserError, match=rf"hub/config\.json is missing; give {snapshot}$"):
        find_checkpoint(tmp_path / "hub", use_lora=False)


def test_a_configuration_that_names_no_model_is_not_taken_for_qwen_vls(checkpoint):
    (checkpoint.base / "qwen.tiktoken").rename(checkpoint.base / "tokenizer.json")
    with pytest.raises(UserError, match=r"config\.json must have the model_type of a model of transformers"):
        find_checkpoint(checkpoint.base, use_lora=False)


@pytest.mark.parametrize("name", ["config.json", "qwen.tiktoken", "model.safetensors.index.json"])
def test_every_byte_of_a_small_file_counts(checkpoint, name):
    (checkpoint.base / name).write_text("a")
    before = checkpoint.identity()
    (checkpoint.base / name).write_text("b")
    assert checkpoint.identity() != before


@pytest.mark.parametrize("place", [0, 17 * MEBIBYTE + 5, 70 * MEBIBYTE - 1])
def test_every_byte_of_a_large_file_counts(checkpoint, place):
    before = checkpoint.identity()
    change(weights(checkpoint), place)
    assert checkpoint.identity() != before


def test_the_hash_of_a_large_file_is_kept(checkpoint, cache):
    age(weights(checkpoint))
    first = checkpoint.identity()
    (kept,) = cache.iterdir()
    kept.write_text("0" * 64)
    assert checkpoint.identity() == first
    file_hashes._large.cache_clear()  # as the next process begins
    assert checkpoint.identity() != first
    file_hashes._large.cache_clear()
    kept.write_text("damaged")
    assert checkpoint.identity() == first


def test_neither_the_size_nor_the_time_hides_a_change(checkpoint, cache):
    file = weights(checkpoint)
    age(file)
    before, times = checkpoint.identity(), file.stat()
    assert cache.exists()
    change(file, 40 * MEBIBYTE)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert checkpoint.identity() != before


def test_without_a_cache_folder_every_start_computes_it(checkpoint, cache):
    cache.parents[1].write_text("a file where the folder should be")
    assert checkpoint.identity() == checkpoint.identity()


def test_replaced_weights_are_noticed(checkpoint):
    before = checkpoint.identity()
    checkpoint.check_unchanged(before | {"dtype": "float32"})
    change(weights(checkpoint), 3)
    with pytest.raises(UserError, match="have been replaced since this command has begun"):
        checkpoint.check_unchanged(before)


def test_an_adapter_beside_a_model_is_not_part_of_it(checkpoint):
    before = checkpoint.identity()
    (checkpoint.base / "adapter_config.json").write_text("{}")
    (checkpoint.base / "adapter_model.safetensors").write_text("weights")
    assert find_checkpoint(checkpoint.base, use_lora=False) == checkpoint
    assert checkpoint.identity() == before


def weights(checkpoint):
    return next(checkpoint.base.glob("*.bin"))


def change(file, place):
    with open(file, "r+b") as opened:
        opened.seek(place)
        opened.write(b"\1")


def age(file):
    """Waits until the times of a file that was just written would tell a further change."""
    while time.time() - file.stat().st_ctime < 2.1:
        time.sleep(0.1)
