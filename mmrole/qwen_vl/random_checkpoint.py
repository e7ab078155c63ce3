"""Seeded random checkpoints in the original layout of Qwen-VL-Chat, small enough to run anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import GenerationConfig

from mmrole.base.disk import set_usual_mode
from mmrole.base.output_folder import filling, is_new, remove_leftover
from mmrole.qwen_vl.bpe import IM_END, IMG_START, SPECIAL_TOKENS, write_ranks
from mmrole.qwen_vl.causal_lm import QWenLMHeadModel
from mmrole.qwen_vl.configuration import QWenConfig
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.tokenization import QWenTokenizer

# The tables of Qwen-VL-Chat have 151,936 rows for 151,860 tokens: the next multiple but one of 64, the next of 128.
_ROWS_MULTIPLE = 128

_CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "qwen.tiktoken",
    "model*.safetensors",
    "pytorch_model*.bin",
    "model*.index.json",
    "pytorch_model*.index.json",
)
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.*")


def random_config(
    ranks: int,
    *,
    hidden_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    intermediate_size: int = 512,
    seq_length: int = 2048,
    visual_width: int = 64,
    visual_layers: int = 2,
    visual_heads: int = 2,
    image_size: int = 448,
    patch_size: int = 14,
    init_std: float | None = None,
) -> QWenConfig:
    """The configuration of a random checkpoint; the names are those of `config.json`.

    Args:
        ranks: number of tokens in the vocabulary file, without special tokens.
        intermediate_size: twice the width of the feed-forward layers, as in the original.
        init_std: standard deviation of the initial weights; by default 2 / sqrt(hidden_size), which gives logits of
            standard deviation 2 and greedy answers that wander instead of repeating a few tokens.

    Raises:
        CheckpointError: if two sizes contradict each other.
    """
    tokens = ranks + len(SPECIAL_TOKENS)
    if hidden_size % num_attention_heads:
        raise CheckpointError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}."
        )
    config = QWenConfig(
        vocab_size=-(-tokens // _ROWS_MULTIPLE) * _ROWS_MULTIPLE,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        kv_channels=hidden_size // num_attention_heads,
        intermediate_size=intermediate_size,
        seq_length=seq_length,
        initializer_range=2 * hidden_size**-0.5 if init_std is None else init_std,
        visual={
            "heads": visual_heads,
            "image_size": image_size,
            "image_start_id": ranks + SPECIAL_TOKENS.index(IMG_START),
            "layers": visual_layers,
            "output_dim": hidden_size,
            "patch_size": patch_size,
            "width": visual_width,
        },
    )
    config.check_sizes("the sizes given")
    return config


def random_model(config: QWenConfig, *, seed: int, dtype: torch.dtype = torch.bfloat16) -> QWenLMHeadModel:
    """A model with seeded random weights, drawn in float32 and rounded to `dtype`; torch's own seed is left alone.

    The rows of the LM head for `<|extra_n|>`, image tags and ids without a token are zero, so that the answers of an
    untrained model are text.
    """
    endoftext = config.image_start_id - SPECIAL_TOKENS.index(IMG_START)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QWenLMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight[endoftext + SPECIAL_TOKENS.index(IM_END) + 1 :] = 0
    # What Qwen-VL-Chat ships (spec §1).
    model.generation_config = GenerationConfig(
        chat_format="chatml",
        do_sample=True,
        eos_token_id=endoftext,
        max_new_tokens=512,
        max_window_size=6144,
        pad_token_id=endoftext,
        top_k=0,
        top_p=0.3,
    )
    # transformers wraps `to` in a decorator that loses its `self`.
    return model.to(dtype)  # pyright: ignore[reportArgumentType]


def refuse_existing_checkpoint(directory: Path, command: Mapping[str, Any]) -> None:
    """Raises CheckpointError if files of a checkpoint lie in the directory, unless the command may replace them.

    An adapter is never replaced, nor is a model put beside it.

    Args:
        directory: of the checkpoint.
        command: the flags of the command that will write it, for `mmrole.base.output_folder`.
    """
    if any(file for pattern in _ADAPTER_FILES for file in directory.glob(pattern)):
        raise CheckpointError(f"{directory} holds a LoRA adapter, which is never replaced; give another directory.")
    files = _checkpoint_files(directory)
    if files and not command.get("overwrite") and not is_new(directory, command):
        remove_leftover(directory)
        raise CheckpointError(f"{directory} already holds a checkpoint ({files[0].name}); --overwrite replaces it.")


def write_checkpoint(
    directory: Path,
    model: QWenLMHeadModel,
    ranks: dict[bytes, int],
    *,
    weights_format: str = "safetensors",
    max_shard_size: str = "5GB",
    command: Mapping[str, Any] = MappingProxyType({}),
    generation_config: Path | None = None,
) -> None:
    """Writes configuration, weights, vocabulary and tokenizer configuration in the original layout.

    All files are written aside first and moved at the end, `config.json` last: where it exists, all of them do.

    Args:
        ranks: the vocabulary, token bytes to rank.
        weights_format: "safetensors" or "bin" (what the published checkpoints have).
        max_shard_size: such as "5GB"; a larger model becomes several shards with an index.
        command: the flags of the command, for `mmrole.base.output_folder`. With `overwrite` a checkpoint that lies
            there is replaced; other files in the directory stay.
        generation_config: a file to copy in place of the settings that the model has; if it does not exist, none is
            written.

    Raises:
        CheckpointError: a checkpoint lies there, and is not to be replaced, or an adapter.
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    refuse_existing_checkpoint(directory, command)
    stale = [file.name for file in _checkpoint_files(directory)]
    with filling(directory, command, last="config.json", stale=stale) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if generation_config is not None:
            (folder / "generation_config.json").unlink(missing_ok=True)
            if generation_config.is_file():
                shutil.copyfile(generation_config, folder / "generation_config.json")
        if weights_format == "bin":
            _rewrite_as_bin(folder, model, max_shard_size)
        write_ranks(folder / "qwen.tiktoken", ranks)
        QWenTokenizer(folder / "qwen.tiktoken", model_max_length=8192).save_pretrained(folder)
        for file in folder.iterdir():
            set_usual_mode(file)


def _checkpoint_files(directory: Path) -> list[Path]:
    return [file for pattern in _CHECKPOINT_FILES for file in sorted(directory.glob(pattern))]


def _rewrite_as_bin(directory: Path, model: QWenLMHeadModel, max_shard_size: str) -> None:
    for file in [*directory.glob("*.safetensors"), *directory.glob("*.index.json")]:
        file.unlink()
    state = model.state_dict()
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=max_shard_size
    )
    for name, keys in plan.filename_to_tensors.items():
        torch.save({key: state[key].clone() for key in keys}, directory / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (directory / "pytorch_model.bin.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
