"""Fingerprint of a training run: what must be the same to resume from a checkpoint, by the name of the flag."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrole.base.files import sha256
from mmrole.models.checkpoints import Checkpoint
from mmrole.models.families import Family
from mmrole.training.arguments import Arguments, TrainingArguments, zero_stage
from mmrole.training.encoding import EncodedSample
from mmrole.training.steps import TrainingSteps
from mmrole.training.values import word

RunFingerprint = dict[str, Any]

_FILES = ("--data_path", "--eval_data_path")
# Their rate follows from the losses of the evaluations so far, which a changed flag cannot undo.
_WITH_MEMORY = ("reduce_lr_on_plateau", "greedy")


def fingerprint_run(
    arguments: Arguments, model: Checkpoint, family: Family, steps: TrainingSteps, eval_steps: TrainingSteps | None
) -> RunFingerprint:
    """What must not change. Rates, their schedule, numbers of epochs and of steps between logs are no part of it.

    Args:
        arguments: the command line.
        model: the checkpoint to start from.
        family: of the model.
        steps: of the training data.
        eval_steps: of the evaluation data.

    Raises:
        UserError: a file or a picture cannot be read.
    """
    data, training, lora = arguments.data, arguments.training, arguments.lora
    run = {
        "--model_name_or_path": model.identity()["model"],
        "--data_path": _file(data.data_path),
        "pictures of --data_path": _pictures(steps.samples),
        "--system_message": data.system_message,
        "--model_max_length": training.model_max_length,
        "--prompt_tree": training.prompt_tree if family.reads_trees else "each sample alone",
        "--seed": training.order_seed,
        "--seed of dropout": training.seed,
        "samples per step": training.samples_per_step,
        "--freeze": ",".join(training.frozen),
        "--use_lora": training.use_lora,
        "--bf16": training.bf16,
        "--fp16": training.fp16,
        "pixels": model.pixels,
        "--max_pixels": arguments.model.max_pixels,
        "--dataloader_drop_last": training.dataloader_drop_last,
        "--deepspeed": bool(training.deepspeed),
        "ZeRO stage": zero_stage(training),
        "optimizer": _optimizer(training),
    }
    if data.eval_data_path is not None and eval_steps is not None:
        run["--eval_data_path"] = _file(data.eval_data_path)
        run["pictures of --eval_data_path"] = _pictures(eval_steps.samples)
    if zero_stage(training):
        run["number of processes"] = training.world_size  # DeepSpeed's checkpoints are cut for that number
    if training.use_lora:
        run |= {"--lora_r": lora.lora_r, "--lora_alpha": lora.lora_alpha, "--q_lora": lora.q_lora}
        run |= {"--lora_target_modules": sorted(lora.targets(family)), "--lora_bias": lora.lora_bias}
    return run | _schedule(training)


def difference(was: RunFingerprint, run: RunFingerprint) -> str | None:
    """The first name under which two fingerprints differ; None if they are of the same run.

    What one of them does not name is not compared, but for the pixels: evaluation data may be added or left out.
    """
    for name in ("pixels", *sorted(was.keys() & run.keys())):  # first what earlier versions do not name
        before, now = was.get(name), run.get(name)
        if name in _FILES and isinstance(before, str) and isinstance(now, str):
            before, now = (text.rpartition(" ")[2] for text in (before, now))  # a renamed file holds the same data
        if before != now:
            return name
    return None


def _file(path: str) -> str:
    return f"{Path(path).name} {sha256(path)[:16]}"


def _pictures(samples: Sequence[EncodedSample]) -> str:
    """A hash of the contents of all pictures, in the order of the samples; names do not matter."""
    files = [rows.file for sample in samples for rows in sample.images]
    hashes = {file: sha256(file) for file in dict.fromkeys(files)}
    return hashlib.sha256("".join(hashes[file] for file in files).encode()).hexdigest()[:16]


def _optimizer(training: TrainingArguments) -> str:
    """Whose states the checkpoints hold."""
    if not training.deepspeed:
        return word(training.optim)
    config = training.hf_deepspeed_config
    parts = [f"DeepSpeed's {config.get_value('optimizer.type') or word(training.optim)}"]
    if config.get_value("optimizer.params.torch_adam"):
        parts.append("torch_adam")
    if config.get_value("zero_optimization.offload_optimizer.device") in ("cpu", "nvme"):
        parts.append("offloaded")
    return ", ".join(parts)


def _schedule(training: TrainingArguments) -> RunFingerprint:
    """What of the schedule cannot change: any other one gives the rate of a step by the number of the step alone."""
    run: RunFingerprint = {}
    if training.deepspeed:
        run["scheduler of --deepspeed"] = training.hf_deepspeed_config.get_value("scheduler.type")
    kind = word(training.lr_scheduler_type)
    if kind in _WITH_MEMORY:
        return run | {"--lr_scheduler_type": kind, "--learning_rate": training.learning_rate}
    return run | {"--lr_scheduler_type": "a function of the step"}
