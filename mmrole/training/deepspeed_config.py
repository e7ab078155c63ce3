"""DeepSpeed's configuration, checked against the flags and by DeepSpeed itself before a model is loaded."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
from types import SimpleNamespace
from typing import Any

from torch import nn, optim, zeros
from transformers import TrainingArguments

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json
from mmrole.training.flags import changed
from mmrole.training.values import word

_BATCH = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
_OBJECTS = (
    *("optimizer", "optimizer.params", "scheduler", "scheduler.params", "bf16", "fp16", "zero_optimization"),
    *("zero_optimization.offload_optimizer", "zero_optimization.offload_param"),
)


def read_deepspeed_config(given: dict[str, Any] | str) -> dict[str, Any]:
    """The configuration that --deepspeed gives: a file, or the JSON itself.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("--deepspeed: deepspeed is not installed; pip install deepspeed, or leave it out")
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        return _checked_form(read_json(given, dict), given)
    try:
        config = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise UserError(f"--deepspeed {shown(given)}: {error}; give a file, or a JSON object") from None
    return _checked_form(config, "--deepspeed")


def _checked_form(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration; refuses what transformers would take apart without looking."""
    for path in _OBJECTS:
        section, _, inner = path.partition(".")
        outer, key = (config.get(section, {}), inner) if inner else (config, section)
        if key in outer and not isinstance(outer[key], dict):
            raise UserError(f"{name}: {path} must be an object, not {shown(outer[key])}; correct it, or leave it out")
    for section in ("optimizer", "scheduler"):
        kind = config.get(section, {"type": ""}).get("type")
        if not isinstance(kind, str):
            raise UserError(f"{name}: {section}.type must be a name, not {shown(kind)}; correct it")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        raise UserError(f"{name}: zero_optimization.stage must be 0, 1, 2 or 3, not {shown(stage)}; correct it")
    return config


def check_mismatches(training: TrainingArguments) -> None:
    """Refuses fixed values in the configuration that are not those of the flags.

    Raises:
        UserError: names them.
    """
    mismatches = training.hf_deepspeed_config.mismatches
    if not mismatches:
        return
    if any(f"ds {name}=" in mismatch for name in _BATCH for mismatch in mismatches):
        names = [name for name in _BATCH if any(f"ds {name}=" in mismatch for mismatch in mismatches)]
        raise UserError(
            f'{_name(training)}: set {", ".join(names)} to "auto": --per_device_train_batch_size times '
            "--gradient_accumulation_steps are the samples of a step, and how many are read together differs"
        )
    words = [re.sub(r"^- ds (.*) vs hf ([^|=]*)(\|\w*)?=", r"\1, but --\2=", mismatch) for mismatch in mismatches]
    raise UserError(f'{_name(training)} has {"; ".join(words)}: set it to "auto" there, or give the same here')


def check_sections(training: TrainingArguments) -> list[str]:
    """Lines about flags that the configuration's own optimizer or schedule outweighs.

    Raises:
        UserError: a flag would have no effect.
    """
    config, given = training.hf_deepspeed_config.config, changed(training)
    for section, flags in {"optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler_kwargs",)}.items():
        for flag in flags:
            if section in config and flag in given:
                raise UserError(
                    f"--{flag} has no effect: {_name(training)} has a section {section}, which wins; leave out either"
                )
    kind = word(training.lr_scheduler_type)
    schedule = (config.get("scheduler") or {}).get("type")
    # "linear" is what it is where nobody has given it; WarmupLR is constant behind its warm-up.
    agree = kind == "linear" or (kind, schedule) == ("constant_with_warmup", "WarmupLR")
    if "scheduler" in config and not agree:
        return [
            f"note: --lr_scheduler_type {kind} is ignored: {_name(training)} has "
            f"{schedule}, which wins; the configurations *_cosine.json leave it to the flag"
        ]
    return []


def check_config(training: TrainingArguments, hidden_size: int, total_steps: int) -> None:
    """Lets DeepSpeed read the configuration as it will be in this run.

    Raises:
        UserError: it has a value that does not work.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = copy.deepcopy(training.hf_deepspeed_config)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden_size))
    try:
        filled.trainer_config_finalize(training, model, total_steps)
    except ValueError:
        training.hf_deepspeed_config.mismatches += filled.mismatches
        check_mismatches(training)
    try:
        DeepSpeedConfig(filled.config)
        _check_types(filled.config)
        check_parameters(filled.config)
    except Exception as error:  # whatever its many readers raise
        raise UserError(f"{_name(training)}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _check_types(config: dict[str, Any]) -> None:
    """Raises ValueError for an optimizer or a schedule that DeepSpeed would look for in vain."""
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    optimizer, schedule = (config.get(section, {}).get("type") for section in ("optimizer", "scheduler"))
    if optimizer is not None and optimizer.lower() not in DEEPSPEED_OPTIMIZERS and not hasattr(optim, optimizer):
        raise ValueError(f"there is no optimizer {optimizer}")
    if schedule is not None and not hasattr(lr_schedules, schedule) and not hasattr(optim.lr_scheduler, schedule):
        raise ValueError(f"there is no scheduler {schedule}")


def check_parameters(config: dict[str, Any]) -> None:
    """Raises an error of any kind for parameters that the optimizer or the schedule does not take."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime import lr_schedules

    tried = optim.AdamW([nn.Parameter(zeros(1))])
    if "optimizer" in config and config["optimizer"]["type"].lower() in ("adam", "adamw"):
        params = dict(config["optimizer"].get("params", {}))
        params.pop("adam_w_mode", None)
        if params.pop("torch_adam", False):
            optim.AdamW(tried.param_groups[0]["params"], **params)
        else:
            known = {name for kind in (DeepSpeedCPUAdam, FusedAdam) for name in inspect.signature(kind).parameters}
            if unknown := sorted(params.keys() - known):
                raise ValueError(f"optimizer.params: {config['optimizer']['type']} takes no {unknown[0]}")
    if "scheduler" in config:
        kind = config["scheduler"]["type"]
        build = getattr(lr_schedules, kind, None) or getattr(optim.lr_scheduler, kind)
        build(tried, **config["scheduler"].get("params", {}))


def _name(training: TrainingArguments) -> str:
    return training.deepspeed if isinstance(training.deepspeed, str) else "--deepspeed"
