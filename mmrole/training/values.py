"""Validates the values of flags before anything is loaded."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments

from mmrole.base.errors import UserError, shown


class Range(NamedTuple):
    """The numbers that a flag takes; not-a-number is in none."""

    words: str
    holds: Callable[[float], bool]


_NOT_NEGATIVE = Range("at least 0", lambda number: 0 <= number < math.inf)
_POSITIVE = Range("above 0", lambda number: 0 < number < math.inf)
_COUNT = Range("at least 1", lambda number: 1 <= number < math.inf)
_SHARE = Range("from 0 to below 1", lambda number: 0 <= number < 1)
_SEED = Range("from 0 to 4,294,967,295", lambda number: 0 <= number < 2**32)

_RANGES = {
    "per_device_train_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_batch_tokens": _COUNT,
    "model_max_length": _COUNT,
    "max_pixels": _COUNT,
    "num_train_epochs": _POSITIVE,
    "max_steps": Range("at least 1", lambda number: number >= 1 or number == -1),  # -1: as long as the epochs are
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": Range(
        "a number of steps, or a share of them below 1",
        lambda number: 0 <= number < 1 or (number >= 1 and float(number).is_integer()),
    ),
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "seed": _SEED,
    "data_seed": _SEED,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "save_total_limit": _COUNT,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    "lora_r": _COUNT,
    "lora_alpha": _POSITIVE,
    "lora_dropout": _SHARE,
}

# They need more of a trainer than a call of their `step`.
_MORE_THAN_STEP = ("galore", "apollo", "lomo", "adalomo", "schedule_free")

# Of torch.utils.checkpoint, and of transformers' switch for it.
_CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "every_n_layers", "offload"}

_TURNED_ON = {
    "ACCELERATE_USE_DEEPSPEED": "give --deepspeed",
    "ACCELERATE_USE_FSDP": "unset it, and give --deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "unset it",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "unset it",
    "ACCELERATE_USE_SAGEMAKER": "unset it",
}


def check_numbers(group: object) -> None:
    """Checks the numbers of a dataclass of flags.

    Raises:
        UserError: one is outside of what its flag takes, or no number (nan).
    """
    for name, numbers in _RANGES.items():
        value = getattr(group, name, None)
        if value is not None and not numbers.holds(value):
            raise UserError(f"--{name} {value}: give {numbers.words}")


def word(choice: str | Enum) -> str:
    """The value of a flag with choices as it is written: transformers makes members of enumerations of them."""
    return str(choice.value) if isinstance(choice, Enum) else choice


def check_values(training: TrainingArguments) -> None:
    """Checks flags as they were given, before transformers looks at them.

    Raises:
        UserError: a value cannot work, or has no effect beside the others.
    """
    _check_output_name(str(training.output_dir))
    for name in training._VALID_DICT_FIELDS:
        if name != "deepspeed":
            _check_object(name, getattr(training, name))
    given = training.activation_checkpointing_kwargs if hasattr(training, "activation_checkpointing_kwargs") else None
    given = given or training.gradient_checkpointing_kwargs
    if given:
        unknown = sorted(_object(given).keys() - _CHECKPOINTING)
        if unknown:
            known = ", ".join(sorted(_CHECKPOINTING))
            raise UserError(f"--gradient_checkpointing_kwargs: there is no {unknown[0]}; there are {known}")
        if not (training.gradient_checkpointing or getattr(training, "activation_checkpointing", None)):
            raise UserError("--gradient_checkpointing_kwargs has no effect; add --gradient_checkpointing True")
    if word(training.save_strategy) == "best":
        raise UserError("--save_strategy best is not supported; give steps, epoch or no: no checkpoint is the best one")
    optimizer = str(getattr(training.optim, "value", training.optim))
    if optimizer.startswith(_MORE_THAN_STEP):
        raise UserError(f"--optim {optimizer} is not supported; give adamw_torch_fused, adafactor, or another one")
    if training.local_rank not in (-1, int(os.environ.get("LOCAL_RANK", "-1"))):
        raise UserError(f"--local_rank {training.local_rank} is not what LOCAL_RANK says; leave it to torchrun")
    _check_loader(training)


def _check_output_name(output_dir: str) -> None:
    if not output_dir:
        raise UserError("--output_dir is empty; give a directory")
    try:
        output_dir.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"--output_dir {shown(output_dir)}: the name is not UTF-8, and weights in it could not be loaded again; "
            "give another --output_dir"
        ) from None


def _check_object(name: str, value: object) -> None:
    if value is None or isinstance(value, dict):
        return
    try:
        if isinstance(_object(value), dict):
            return
    except ValueError:
        pass
    raise UserError(f"--{name} {value}: give a JSON object, such as '{{\"name\": 1}}'")


def _object(value: object) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _check_loader(training: TrainingArguments) -> None:
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if getattr(training, name) and training.dataloader_num_workers == 0:
            raise UserError(f"--{name} has no effect without workers; add --dataloader_num_workers 2")


def check_environment(training: TrainingArguments) -> None:
    """Refuses variables of accelerate that change a run without a word: flags say what is done.

    Raises:
        UserError: a variable asks for what no flag asks for.
    """
    for name, remedy in _TURNED_ON.items():
        if _is_true(name) and not (name == "ACCELERATE_USE_DEEPSPEED" and training.deepspeed):
            raise UserError(f"{name} is set in the environment; {remedy}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    asked = "bf16" if training.bf16 else "fp16" if training.fp16 else "no"
    if precision not in ("no", asked):
        remedy = f"give --{precision} True, or unset it" if precision in ("bf16", "fp16") else "unset it"
        raise UserError(f"ACCELERATE_MIXED_PRECISION is {precision} in the environment; {remedy}")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("ACCELERATE_DYNAMO_BACKEND is set in the environment; unset it: nothing is compiled")


def wants_cpu() -> bool:
    """Whether the environment asks for the CPU."""
    return _is_true("ACCELERATE_USE_CPU") or os.environ.get("DS_ACCELERATOR") == "cpu"


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def check_device(training: TrainingArguments) -> None:
    """Refuses what the machine does not have, before transformers starts a process on it.

    Raises:
        UserError: there is no such GPU, or none at all.
    """
    if training.use_cpu or not torch.cuda.is_available():
        if training.fp16:
            raise UserError("--fp16 True needs a GPU; leave it out, or give --bf16 True --use_cpu True")
        if training.ddp_backend == "nccl":
            raise UserError("--ddp_backend nccl needs a GPU; give gloo, or leave it out")
        return
    place, number = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= number:
        raise UserError(f"there is no GPU for process {place}: this machine has {number}; start {number} processes")


def in_a_line(error: Exception) -> str:
    """A library's words, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
