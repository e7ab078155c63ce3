"""Resuming from a checkpoint with the command's own hyperparameters, which saved states would replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmrole.base.errors import UserError, listed
from mmrole.models.families import Family

_ADAPTER = "adapter_model.safetensors"


class CommandSettings(NamedTuple):
    """What the command asks of optimizer and schedule, taken before the states of a checkpoint are loaded.

    Attributes:
        groups: settings of each group of parameters: weight decay, betas, …
        rates: the rate of each group that the schedule scales.
    """

    groups: list[dict[str, Any]]
    rates: list[float]

    @classmethod
    def of(cls, optimizer: Optimizer) -> CommandSettings:
        """Those of an optimizer that has no step behind it, wrapped or not, whose schedule has been made."""
        groups = innermost(optimizer).param_groups
        settings = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
        return cls(settings, [group.get("initial_lr", group["lr"]) for group in groups])

    def use(self, optimizer: Optimizer, scheduler: Any) -> None:
        """Puts them in the place of those that were loaded: the next step is made with them.

        The rate is that of the command's schedule at the step that the loaded one stands at. A schedule that follows
        the evaluation loss stays as loaded.
        """
        optimizer, scheduler = innermost(optimizer), getattr(scheduler, "scheduler", scheduler)
        for group, settings in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = list(self.rates)
            scaled = zip(self.rates, scheduler.lr_lambdas, strict=True)
            scheduler._last_lr = [rate * scale(scheduler.last_epoch) for rate, scale in scaled]
            for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate
        elif hasattr(scheduler, "last_batch_iteration"):  # DeepSpeed's own, made from the configuration
            scheduler.step(scheduler.last_batch_iteration)


class AskedSteps(TrainerCallback):
    """Logs, evaluates and saves at the steps of the command, not at those that the checkpoint names.

    What is saved at the end of an epoch (of the run) is saved after that epoch's evaluation and log: they would be
    missing after a kill in between.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch, self._save_later = steps_per_epoch, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the command's numbers, and leaves the evaluation before the first step to the first start."""
        state.compute_steps(args, state.max_steps)
        args.eval_on_start &= state.global_step == 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Puts off saving at the end of an epoch."""
        ends = state.global_step % self._steps_per_epoch == 0 or control.should_training_stop
        self._save_later = control.should_save and ends
        control.should_save &= not ends

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Saves what was put off."""
        control.should_save |= self._save_later
        self._save_later = False


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer within accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def load_weights(model: nn.Module, folder: Path, family: Family) -> None:
    """Loads the weights of a checkpoint of this run: safetensors, and all that the model or its adapters save.

    Raises:
        UserError: weights are missing, or do not belong to the model.
    """
    if isinstance(model, PeftModel):
        found = safetensors.torch.load_file(folder / _ADAPTER)
        result = set_peft_model_state_dict(model, found)
        missing = [name for name in result.missing_keys if "lora_" in name]
    else:
        result = model.load_state_dict(family.saved_weights(folder), strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise UserError(
            f"{folder} holds other weights than this model's: {listed([*missing, *result.unexpected_keys], 3)}; "
            "give another --output_dir"
        )
