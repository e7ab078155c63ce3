"""Dry run of optimizer, schedule and adapters: what libraries would refuse, found before the model loads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.optimization import get_scheduler

from mmrole.base.errors import UserError
from mmrole.models.families import Family
from mmrole.training.adapters import check_adapters
from mmrole.training.arguments import Arguments, TrainingArguments
from mmrole.training.deepspeed_config import check_config
from mmrole.training.recomputation import check_checkpoint_layers
from mmrole.training.values import in_a_line, word


def check_settings(arguments: Arguments, family: Family, total_steps: int) -> None:
    """Tries what libraries will make of the flags.

    Args:
        arguments: the command line.
        family: of the model.
        total_steps: of the run.

    Raises:
        UserError: one of them would fail.
    """
    training, sections = arguments.training, {}
    if training.deepspeed:
        check_config(training, family.hidden_size, total_steps)
        sections = training.hf_deepspeed_config.config
    check_optimizer(
        training, total_steps, own_optimizer="optimizer" not in sections, own_schedule="scheduler" not in sections
    )
    check_checkpoint_layers(training.checkpoint_layers, family)
    if training.use_lora:
        check_adapters(family, arguments.lora)


def check_optimizer(training: TrainingArguments, total_steps: int, *, own_optimizer: bool, own_schedule: bool) -> None:
    """Makes the optimizer and the schedule once, for a single number.

    Args:
        training: the flags.
        total_steps: of the run.
        own_optimizer: false where DeepSpeed's configuration has one.
        own_schedule: false where DeepSpeed's configuration has one.

    Raises:
        UserError: a package is missing, or a value cannot work.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    name = word(training.optim)
    if own_optimizer:
        try:
            build, settings = Trainer.get_optimizer_cls_and_kwargs(training)
            optimizer = build([nn.Parameter(torch.zeros(1))], **settings)
        except Exception as error:
            raise UserError(f"--optim {name}: {in_a_line(error)}") from None
        _check_optim_args(training, settings)
    name, settings = word(training.lr_scheduler_type), training.lr_scheduler_kwargs
    if own_schedule:
        try:
            warmup = training.get_warmup_steps(total_steps)
            get_scheduler(name, optimizer, warmup, total_steps, settings if isinstance(settings, dict) else None)
        except Exception as error:
            raise UserError(f"--lr_scheduler_type {name}, --lr_scheduler_kwargs: {in_a_line(error)}") from None
        if settings and name in ("constant", "constant_with_warmup"):
            raise UserError(f"--lr_scheduler_kwargs has no effect on --lr_scheduler_type {name}; leave it out")


def _check_optim_args(training: TrainingArguments, settings: dict[str, Any]) -> None:
    """Refuses each of --optim_args without which the optimizer is the same."""
    given = (training.optim_args or "").replace(" ", "").split(",")
    for index, item in enumerate(given if training.optim_args else []):
        rest = ",".join(given[:index] + given[index + 1 :])
        kept, training.optim_args = training.optim_args, rest or None
        _, without = Trainer.get_optimizer_cls_and_kwargs(training)
        training.optim_args = kept
        if without == settings:
            raise UserError(f"--optim_args {item} has no effect on --optim {word(training.optim)}; leave it out")
