"""From a checkpoint directory and flags to a model that can generate. torch is imported when a function runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from mmrole.base.errors import UserError
from mmrole.data.requests import GenerationSettings
from mmrole.models.adapters import lora_config
from mmrole.models.checkpoints import Checkpoint, find_checkpoint
from mmrole.models.context import Context
from mmrole.models.generation_config import generation_settings, sampling_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mmrole.models.families import Family, TreeModel
    from mmrole.models.vlm.family import Vlm


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint, and how it is run; each as the flag of that name."""

    model_path: Path
    use_lora: bool = False
    dtype: str = "auto"
    device: str = "auto"
    no_random: bool = False
    seed: int = 1234
    max_new_tokens: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Model:
    """A checkpoint and how it is run; `sampling` are the settings with which a reply is tried again."""

    checkpoint: Checkpoint
    settings: GenerationSettings
    sampling: GenerationSettings
    device: torch.device
    dtype: torch.dtype
    max_pixels: int | None = None

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
        pixels: dict[str, Any] = {"pixels": self.checkpoint.pixels}
        if self.max_pixels is not None:
            pixels["max_pixels"] = self.max_pixels
        return {**self.checkpoint.identity(), "dtype": _name(self.dtype), **pixels, **settings}


def find_model(
    options: ModelOptions, local_rank: int = 0, local_world_size: int = 1, *, resampling: bool = False
) -> Model:
    """A checkpoint and how it is run, for the process with this number on its machine.

    Args:
        options: which it is.
        local_rank: the process among those of its machine.
        local_world_size: their number.
        resampling: whether replies may be sampled that `--no_random` or the checkpoint has greedy: only then the
            settings of it must be sound.

    Raises:
        UserError: there is no such checkpoint or device, or the settings are faulty.
    """
    checkpoint = find_checkpoint(options.model_path, options.use_lora)
    flags = {"seed": options.seed, "max_new_tokens": options.max_new_tokens}
    settings = generation_settings(checkpoint, no_random=options.no_random, **flags)
    sampling = sampling_settings(checkpoint, **flags) if resampling else settings
    device = choose_device(options.device, local_rank, local_world_size)
    return Model(checkpoint, settings, sampling, device, choose_dtype(options.dtype, device), options.max_pixels)


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


def check_checkpoint(checkpoint: Checkpoint, max_pixels: int | None = None) -> Context:
    """Reads configurations, vocabulary and the headers of all weight files; returns what prompts must fit into.

    Raises:
        UserError: something is missing, damaged, or does not fit together, or `max_pixels` has no effect.
    """
    _torch()
    return _kind(checkpoint).check(checkpoint, max_pixels)


def read_family(checkpoint: Checkpoint, max_pixels: int | None = None, reads_trees: bool = True) -> Family:
    """The family of a checkpoint that `check_checkpoint` has found sound.

    Args:
        checkpoint: the model.
        max_pixels: most pixels of an image; None for the checkpoint's own limit.
        reads_trees: whether prompt trees are exact with it, as far as `why_no_trees` has found out.
    """
    return _kind(checkpoint).read_family(checkpoint, max_pixels, reads_trees)


def why_no_trees(checkpoint: Checkpoint, family: Family) -> str | None:
    """A line that says why prompt trees are not exact with a checkpoint's model; None if they are.

    Tried on a few layers of it, in float32 on the CPU, before it is loaded otherwise; kept for the next time.

    Raises:
        UserError: its weights cannot be loaded, or it is not read as transformers does, even without trees.
    """
    if checkpoint.is_qwen_vl:  # its implementation is the project's own, and made for trees
        return None
    from mmrole.models.vlm.kept_proof import prove_once

    reason = prove_once(cast("Vlm", family), checkpoint.base)
    if reason is None:
        return None
    return (
        f"note: prompt trees are not exact with this model ({reason}): each sequence is read alone: slower, never wrong"
    )


def _kind(checkpoint: Checkpoint) -> ModuleType:
    if checkpoint.is_qwen_vl:
        from mmrole.models import qwen_vl_loading

        return qwen_vl_loading
    from mmrole.models.vlm import loading

    return loading


def load(model: Model, progress: bool, identity: Mapping[str, object] | None = None) -> TreeModel:
    """Loads weights and vocabulary; a LoRA adapter is merged into the weights.

    Weights go from the mapped files to the device one by one: they are never all in the memory of the host as well. For
    a GPU a line says how long it took. Of generation_config.json nothing is left in the model: `Model.settings` are
    what it says.

    Args:
        model: what to load, and where to.
        progress: show transformers' progress bar.
        identity: what `Checkpoint.identity` said before, if it matters whether the files are still the same.

    Raises:
        UserError: the checkpoint cannot be used, has been replaced, or does not fit into the GPU's memory.
    """
    torch = _torch()
    from transformers import GenerationConfig
    from transformers.utils import logging

    if not progress:
        logging.disable_progress_bar()
    checkpoint, kind = model.checkpoint, _kind(model.checkpoint)
    start = time.perf_counter()
    try:
        family = kind.read_family(checkpoint, model.max_pixels)
        line = why_no_trees(checkpoint, family)
        if line is not None:
            print(line, file=sys.stderr, flush=True)
            family = kind.read_family(checkpoint, model.max_pixels, reads_trees=False)
        module = family.load_module(
            checkpoint.base,
            dtype=model.dtype,
            device_map={"": model.device},
            generation_config=GenerationConfig(),
        )
        if checkpoint.adapter is not None:
            module = _merged(module, checkpoint.adapter)
        if identity is not None:
            checkpoint.check_unchanged(identity)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
            nbytes, seconds = sum(weight.nbytes for weight in module.parameters()), time.perf_counter() - start
            print(f"{nbytes / 1e9:.1f} GB of weights on {model.device} in {seconds:.1f} s", file=sys.stderr, flush=True)
        return kind.tree_model(module, family)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{checkpoint} does not fit into the memory of {model.device} ({str(error).splitlines()[0]}); "
            "free it, or use another --device or a smaller --dtype"
        ) from None


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    torch = _torch()
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it gives up
            adapted = PeftModel.from_pretrained(model, adapter, config=lora_config(adapter), low_cpu_mem_usage=False)
        return adapted.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{adapter}: this adapter does not fit {model.name_or_path}: {text}") from None


def _torch() -> ModuleType:
    for name in ("torch", "transformers", "peft", "tiktoken"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; run: pip install -e . (or bash scripts/setup.sh)")
    # Huge pages for large tensors on the CPU, some 5 % of a prompt's time; torch asks at its first allocation only.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # On recent GPUs SDPA would prefer cuDNN, which prepares itself for each length that it has not seen: in every step
    # of generate(). torch asks at the first call only.
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    import torch

    return torch


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
