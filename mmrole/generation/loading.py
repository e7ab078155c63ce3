"""From a checkpoint directory and flags to a model that can generate. torch is imported when a function runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data_utils.errors import UserError
from data_utils.images import PIXELS
from mmrole.generation.checkpoints import (
    VOCABULARY,
    Checkpoint,
    find_checkpoint,
    generation_settings,
    sampling_settings,
)
from mmrole.generation.context import Context
from mmrole.generation.requests import GenerationSettings

if TYPE_CHECKING:
    import torch

    from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer


@dataclass(frozen=True)
class Model:
    """A checkpoint and how it is run; `sampling` are the settings with which a reply is tried again."""

    checkpoint: Checkpoint
    settings: GenerationSettings
    sampling: GenerationSettings
    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        way = f"sampling with top_p {self.settings.top_p} and seed {self.settings.seed}"
        return (
            f"{self.checkpoint}: {_name(self.dtype)} on {self.device}, {way if self.settings.do_sample else 'greedy'}, "
            f"at most {self.settings.max_new_tokens} new tokens"
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the model that changes a reply."""
        settings = asdict(self.settings)
        if not self.settings.do_sample:
            settings = {key: settings[key] for key in ("do_sample", "max_new_tokens", "repetition_penalty")}
        return {**self.checkpoint.identity(), "dtype": _name(self.dtype), "pixels": PIXELS, **settings}


def find_model(options: argparse.Namespace, local_rank: int, local_world_size: int) -> Model:
    """The model that the flags of `options.add_arguments` name, for the process with this number on its machine.

    Raises:
        UserError: there is no such checkpoint or device, or the settings are faulty.
    """
    checkpoint = find_checkpoint(options.model_path, options.use_lora)
    flags = {"seed": options.seed, "max_new_tokens": options.max_new_tokens}
    settings = generation_settings(checkpoint, no_random=options.no_random, **flags)
    sampling = sampling_settings(checkpoint, **flags)
    device = choose_device(options.device, local_rank, local_world_size)
    return Model(checkpoint, settings, sampling, device, choose_dtype(options.dtype, device))


def choose_device(device: str, local_rank: int, local_processes: int) -> torch.device:
    """The device that `--device` means for the process with this number on its machine.

    Raises:
        UserError: there is no such device, or not one for each process.
    """
    torch = _torch()
    try:
        wanted = torch.device(
            "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        )
    except RuntimeError:
        raise UserError(f"--device {device}: give auto, cpu, cuda or cuda:N") from None
    if wanted.type == "cpu":
        return wanted
    if wanted.type != "cuda":
        raise UserError(f"--device {device}: give auto, cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count()
    if wanted.index is not None and local_processes > 1:
        raise UserError(
            f"--device {device} with {local_processes} processes; leave it out: each takes a GPU of its own"
        )
    index = local_rank if wanted.index is None else wanted.index
    if index >= gpus:
        raise UserError(
            f"--device {device}: torch finds {gpus} GPUs for {local_processes} processes"
            if wanted.index is None
            else f"--device {device}: torch finds {gpus} GPUs, numbered from 0"
        )
    return torch.device("cuda", index)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that `--dtype` means; auto: bfloat16 where the GPU computes with it, else float16; float32 on a CPU."""
    torch = _torch()
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def check_checkpoint(checkpoint: Checkpoint) -> Context:
    """Reads configuration, vocabulary and the headers of the weight files; returns what prompts must fit into.

    Raises:
        UserError: something is missing, damaged, or does not fit together.
    """
    _torch()
    from mmrole.qwen_vl import CheckpointError, QWenLMHeadModel, QWenTokenizer
    from mmrole.qwen_vl.checkpoint import check_checkpoint, read_config

    try:
        config = read_config(checkpoint.base)
        check_checkpoint(QWenLMHeadModel, checkpoint.base, config)
        tokenizer = QWenTokenizer(checkpoint.file(VOCABULARY))
    except CheckpointError as error:
        raise UserError(str(error)) from None
    length = config.max_position_embeddings
    if type(length) is not int or length < 1:
        raise UserError(
            f"{checkpoint.base / 'config.json'}: max_position_embeddings is {length!r}, not a number of positions; "
            "correct the file"
        )
    return Context(tokenizer, length)


def load(model: Model, progress: bool) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Loads weights and tokenizer; a LoRA adapter is merged into the weights.

    Args:
        model: what to load, and where to.
        progress: show transformers' progress bar.

    Raises:
        UserError: the checkpoint cannot be used, or does not fit into the GPU's memory.
    """
    torch = _torch()
    from transformers.utils import logging

    from mmrole.qwen_vl import CheckpointError, QWenLMHeadModel, QWenTokenizer

    if not progress:
        logging.disable_progress_bar()
    checkpoint = model.checkpoint
    try:
        loaded = QWenLMHeadModel.from_pretrained(
            checkpoint.base, dtype=model.dtype, device_map={"": model.device}, attn_implementation="sdpa"
        )
        if checkpoint.adapter is not None:
            loaded = _merged(loaded, checkpoint.adapter)
        return loaded.eval(), QWenTokenizer(checkpoint.file(VOCABULARY))
    except CheckpointError as error:
        raise UserError(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{checkpoint} does not fit into the memory of {model.device} ({str(error).splitlines()[0]}); "
            "free it, or use another --device or a smaller --dtype"
        ) from None


def _merged(model: QWenLMHeadModel, adapter: Path) -> QWenLMHeadModel:
    torch = _torch()
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            # What is missing would stay as it was initialised: an adapter that does less than was trained.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=False).merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, UserWarning, SafetensorError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{adapter}: this adapter does not fit {model.name_or_path}: {text}") from None


def _torch() -> ModuleType:
    for name in ("torch", "transformers", "peft", "tiktoken"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; run: pip install -e . (or bash scripts/setup.sh)")
    # Huge pages for large tensors on the CPU, some 5 % of a prompt's time; torch asks at its first allocation only.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    return torch


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
