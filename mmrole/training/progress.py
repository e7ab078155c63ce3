"""Progress of a training run: a bar with samples, tokens/s and the time left; lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from mmrole.training.arguments import TrainingArguments as MMRoleArguments

_SHOWN = {"loss": ".4f", "grad_norm": ".3g", "learning_rate": ".3g", "eval_loss": ".4f"}


class RunProgress(TrainerCallback):
    """Shows the progress of a run, in its first process.

    Attributes:
        samples: done so far in this call; the trainer counts.
        tokens: of those samples.
    """

    def __init__(self, samples_per_epoch: int) -> None:
        self.samples = self.tokens = 0
        self._samples_per_epoch = samples_per_epoch
        self._bar: tqdm | None = None
        self._shown = self._start_step = 0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar, where it was if the run goes on."""
        self._started, self._start_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero or args.disable_tqdm or not sys.stderr.isatty():
            return
        steps_per_epoch = state.max_steps / args.num_train_epochs if args.max_steps <= 0 else None
        per_step = cast("MMRoleArguments", args).samples_per_step
        if steps_per_epoch:
            per_step = self._samples_per_epoch / steps_per_epoch
        total, done = round(per_step * state.max_steps), round(per_step * state.global_step)
        self._bar = tqdm(total=total, initial=done, unit=" samples", dynamic_ncols=True, file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self.samples - self._shown)
            self._shown = self.samples

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the logged figures."""
        if not state.is_world_process_zero or not logs:
            return
        figures = {name: format(logs[name], form) for name, form in _SHOWN.items() if name in logs}
        if not figures:
            return
        rate = f"{self.speed()['tokens_per_second']:,.0f} tokens/s"
        if "nodes_per_second" in logs:
            rate += f", {logs['nodes_per_second']:,.0f} nodes/s"
        if "matrix_rate_share" in logs:
            rate += f", {logs['matrix_rate_share']:.0%} of the matrix rate"
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([rate, *(f"{name} {value}" for name, value in figures.items())]))
            return
        done = state.global_step - self._start_step
        left = (time.monotonic() - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        shown = [f"step {state.global_step:,} of {state.max_steps:,}", f"epoch {state.epoch or 0:.2f}"]
        shown += [f"{name} {value}" for name, value in figures.items()]
        shown += [f"{self.samples:,} samples", rate, f"{tqdm.format_interval(left)} left"]
        print(", ".join(shown), flush=True)

    def speed(self) -> dict[str, float]:
        """Tokens a second of the samples one by one, whatever trees share, since this call began to train."""
        return {"tokens_per_second": self.tokens / (time.monotonic() - self._started)}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
