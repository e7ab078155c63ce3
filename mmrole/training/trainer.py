"""transformers' Trainer for steps made of tree batches: its loss, its checkpoints, and what the log says."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer

from mmrole.base.errors import UserError
from mmrole.models.families import Family
from mmrole.training import run_checkpoints
from mmrole.training.ahead import one_ahead
from mmrole.training.arguments import TrainingArguments
from mmrole.training.batches import TreeBatch
from mmrole.training.late_check import LateCheck, StepLosses
from mmrole.training.loss import LossSum, tree_loss
from mmrole.training.packing import Bin
from mmrole.training.progress import RunProgress
from mmrole.training.rates import Operations, TrainingRates, measure_matrix_rate
from mmrole.training.recomputation import limit_recomputation
from mmrole.training.reporters import say_faults_in_a_line
from mmrole.training.resuming import AskedSteps, CommandSettings, innermost, load_weights
from mmrole.training.run_fingerprint import RunFingerprint
from mmrole.training.states import reading
from mmrole.training.steps import StepBatches, TrainingSteps, checked, make_loader, only
from mmrole.training.tied_weights import tie_again


class TreeTrainer(Trainer):
    """Trains on `TrainingSteps`: an item of the data is an optimizer step, whatever the number of its micro-batches.

    The loss is the mean over the loss positions of the global batch, on all processes. (The published code averages
    the means of micro-batches, so that a loss position of a short sample weighs more.)

    Args:
        model: a module of a family, or a PeftModel of one.
        args: the arguments.
        steps: of the training data.
        eval_steps: of the evaluation data.
        family: of the model; its vocabulary is saved with every checkpoint.
        run: what the run is made of, for `run_checkpoints`.
    """

    args: TrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        steps: TrainingSteps,
        family: Family,
        run: RunFingerprint,
        eval_steps: TrainingSteps | None = None,
    ) -> None:
        config = vars(cast("Any", model).config)
        settings = dict(config)
        # Not as processing_class: the Trainer would write the tokenizer's special tokens into the model's settings.
        # transformers has a collator make a dictionary of tensors; here it gives the step.
        super().__init__(model, args, data_collator=only, train_dataset=steps, eval_dataset=eval_steps)  # pyright: ignore[reportArgumentType]
        # The Trainer notes there that training keeps no keys and values, which would be saved with the model.
        config.pop("use_cache", None)
        config |= {name: value for name, value in settings.items() if name == "use_cache"}
        self.family, self.run = family, run
        self._steps, self._eval_steps = steps, eval_steps
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        say_faults_in_a_line(self.callback_handler.callbacks, args)
        self.progress = RunProgress(len(steps.samples))
        for callback in (AskedSteps(steps.steps_per_epoch), self.progress):
            self.add_callback(callback)
        # transformers would count, and remove, whatever is called checkpoint-N.
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        self._asked: CommandSettings | None = None
        self._rate_used: float | None = None
        self._late = LateCheck(steps, checks_norm=not args.fp16)  # with float16, such steps are left out
        self._losses: list[Tensor] = []  # of the micro-batches of the step that is computed
        self._bins: list[Bin] = []
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self._rates = TrainingRates(
            Operations.of(model, family), measure_matrix_rate(args.device, dtype), args.world_size
        )
        self._source: Iterator[StepBatches | UserError] = iter(())
        self._ahead: Iterator[StepBatches | UserError] = self._source

    def get_train_dataloader(self) -> DataLoader:
        """The steps of the current epoch; not prepared by accelerate, since each process packs its own share."""
        return make_loader(self._steps, self.args, lambda: self.state.global_step)

    def get_batch_samples(self, epoch_iterator: Iterator[StepBatches | UserError], *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, and raises what a worker found wrong; beside a GPU the next step is made meanwhile."""
        if self.args.device.type == "cuda":
            if self._source is not epoch_iterator:
                self._source, self._ahead = epoch_iterator, one_ahead(epoch_iterator, self.args.device)
            epoch_iterator = self._ahead
        return super().get_batch_samples(map(checked, epoch_iterator), *args, **kwargs)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Samples, not steps."""
        return len(cast("TrainingSteps", dataloader.dataset).samples)

    # What transformers has as a batch, a dictionary of tensors, is a step here; so below.
    def floating_point_ops(self, inputs: StepBatches) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not counted: transformers' estimate takes no account of images and of what trees share."""
        return 0

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: StepBatches, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of all micro-batches of a step.

        Returns:
            This process's share of the loss, times the number of processes: its mean over these is the step's loss.
        """
        model.train()
        # Processes average their gradients, so each scales its share up.
        scale = self.args.world_size / max(inputs.n_targets, 1)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs.batches, 1):
            is_last = number == len(inputs.batches)
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            waits = contextlib.nullcontext() if is_last or deepspeed else self.accelerator.no_sync(model)
            self._rates.add(batch)
            with waits:
                loss = self._loss(model, batch).sum * scale
                if is_last:  # DeepSpeed steps the optimizer and the schedule in the backward pass
                    self._rate_used = self._current_rate()
                self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
            self._losses.append(loss.detach())
            total += loss.detach()
        self._bins = inputs.bins
        self.progress.samples += inputs.n_samples
        self.progress.tokens += inputs.n_tokens
        return total

    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, eval_dataset: TrainingSteps | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss over all loss positions of the evaluation data, with training's rules (no NTK, no log-n)."""
        steps = self._eval_steps if eval_dataset is None else eval_dataset
        if steps is None:
            raise ValueError("there is no evaluation data")
        model = cast("nn.Module", self.model if self.model_wrapped is None else self.model_wrapped)
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        targets = 0
        hidden = self.args.process_index != 0 or self.args.disable_tqdm or not sys.stderr.isatty()
        for number in tqdm(range(len(steps)), "evaluation", unit=" steps", leave=False, disable=hidden):
            step = checked(steps[number])
            targets += step.n_targets
            for batch in step.batches:
                with torch.no_grad():
                    total += self._loss(model, batch).sum
        if self.args.world_size > 1:
            dist.all_reduce(total)
        metrics = {f"{metric_key_prefix}_loss": float(total) / max(targets, 1)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' `log`, with the rate of the logged step, where DeepSpeed has already set the next one.

        How fast it went is shown and reported, but no part of the log that a checkpoint keeps.
        """
        if "learning_rate" in logs and self._rate_used is not None:
            logs["learning_rate"] = self._rate_used
        speed = {**self.progress.speed(), **self._rates.take()} if "loss" in logs else {}
        super().log({**logs, **speed}, start_time)
        for name in speed:
            del self.state.log_history[-1][name]

    def _loss(self, model: nn.Module, batch: TreeBatch) -> LossSum:
        batch = batch.to(self.args.device, non_blocking=True)
        with self.compute_loss_context_manager():
            return tree_loss(model, batch, self.family)

    def _current_rate(self) -> float:
        return float(innermost(self.optimizer).param_groups[0]["lr"])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """As transformers' own, which waits for it under DeepSpeed."""
        return self.accelerator.clip_grad_norm_(model.parameters(), math.inf) if grad_norm is None else grad_norm

    def store_flos(self) -> None:
        """Nothing: they are not counted, and processes need not add them up."""

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """No checkpoint is the best one: for its sake transformers would remove the others at the end."""
        return False

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Tensor | float | None,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """As transformers' own, with one wait for the device instead of one for each figure.

        Raises:
            UserError: a loss or the norm of a gradient is not finite; nothing that it has spoiled is saved.
        """
        logs = self.control.should_log and self.state.global_step > self._globalstep_last_logged
        if logs:
            self._add_up_processes(tr_loss)
        if logs or self._losses:
            self._late.add(self.state.global_step, self._bins, self._losses, grad_norm, tr_loss)
            self._losses, self._bins = [], []
        control = self.control
        ends = logs or control.should_evaluate or control.should_save or control.should_training_stop
        figures = self._late.check(last=ends)
        if logs and figures is not None:
            self._log_step(figures, start_time, learning_rate)
            tr_loss.zero_()
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
        )

    def _add_up_processes(self, loss: Tensor) -> None:
        """Makes the mean of all processes of a loss, in its place."""
        if self.args.world_size > 1:
            dist.all_reduce(loss)
            loss /= self.args.world_size

    def _log_step(self, figures: StepLosses, start_time: float, learning_rate: float | None) -> None:
        steps = self.state.global_step - self._globalstep_last_logged
        logs = {"loss": figures.running / steps}
        if figures.norm is not None:
            logs["grad_norm"] = figures.norm
        logs["learning_rate"] = self._current_rate() if learning_rate is None else learning_rate
        self._total_loss_scalar += figures.running
        self._globalstep_last_logged = self.state.global_step
        self.log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """As transformers' own, and notes what the command asks for, before a checkpoint's states are loaded.

        DeepSpeed gives the optimizer while `self.optimizer` is still a stand-in.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._asked = CommandSettings.of(cast("Optimizer", self.optimizer if optimizer is None else optimizer))
        return scheduler

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        """As transformers' own, which DeepSpeed lets load the states of a checkpoint; gradient checkpointing is on now.

        Raises:
            UserError: they do not fit.
        """
        limit_recomputation(cast("nn.Module", self.model), self.family, self.args.checkpoint_layers)
        folder = resume_from_checkpoint if self.is_deepspeed_enabled else None
        with contextlib.nullcontext() if folder is None else reading(folder):
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._rates.take()  # what it took is no part of the first step
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights that `_save_checkpoint` wrote; transformers would take others that lie there."""
        with reading(resume_from_checkpoint):
            trained = cast("nn.Module", self.model if model is None else model)
            load_weights(trained, Path(resume_from_checkpoint), self.family)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with contextlib.nullcontext() if checkpoint is None else reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers' own, but with the command's settings; DeepSpeed's optimizer then goes on exactly."""
        if checkpoint is None:
            return
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        optimizer = cast("Optimizer", self.optimizer)
        if self._asked is not None:
            self._asked.use(optimizer, self.lr_scheduler)
        if self.is_deepspeed_enabled:
            from mmrole.training.deepspeed_adam import restore_powers

            restore_powers(optimizer)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' own, which trains a step even where the last one was made before a kill."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As transformers' own, with tied weights once, which DeepSpeed hands over in copies."""
        if state_dict is not None:
            tie_again(state_dict, cast("nn.Module", self.model))
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint, seals it when all processes are through, and only then removes older ones.

        Raises:
            UserError: it cannot be written (full disk); the previous checkpoint is whole.
        """
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            self._claim(folder)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # A pickle that would run code when loaded; the manifest says how the run was made.
                (folder / "training_args.bin").unlink(missing_ok=True)
                self.family.save(folder)
                run_checkpoints.seal(folder, self.run)
                self.remove_surplus()
            self.accelerator.wait_for_everyone()
        except Exception as error:
            run_checkpoints.give_up(folder, self.run, error)

    def remove_surplus(self) -> None:
        """Removes the older checkpoints that --save_total_limit leaves no room for, in the process that saves."""
        if self.args.should_save:
            run_checkpoints.remove_surplus(Path(self.args.output_dir), self.run, self._save_total_limit)

    def _claim(self, folder: Path) -> None:
        try:
            run_checkpoints.claim(folder, self.run)
        except OSError as error:
            run_checkpoints.give_up(folder, self.run, error)
