"""Asynchronous transfer of losses and gradient norms: checked a step late, so that no step waits for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mmrole.base.errors import UserError, listed
from mmrole.training.packing import Bin
from mmrole.training.steps import TrainingSteps

_REMEDY = "nothing later than the last checkpoint is saved: look at these samples, or lower --learning_rate"


class StepLosses(NamedTuple):
    """Figures of an optimizer step.

    Attributes:
        step: its number, from 1.
        bins: the samples of this process's micro-batches.
        losses: the losses of these, each times its share of the step.
        norm: of the gradient; None if nobody has computed it.
        running: the loss since the last log.
    """

    step: int
    bins: list[Bin]
    losses: list[float]
    norm: float | None
    running: float


class _Pending(NamedTuple):
    """Figures that are being copied: [losses, norm, running loss], and what tells that they have arrived."""

    step: int
    bins: list[Bin]
    has_norm: bool
    values: Tensor
    arrived: torch.cuda.Event | None


class LateCheck:
    """Reads the figures of steps and refuses those that are not finite.

    Figures are copied while the device works on; to look at those of the step before waits for nothing that it still
    has to do. Before weights are saved or evaluated, the last step's are waited for.
    """

    def __init__(self, steps: TrainingSteps, *, checks_norm: bool) -> None:
        """Checks steps of this data; the norm only where steps with an infinite one are not left out (float16)."""
        self._steps, self._checks_norm = steps, checks_norm
        self._pending: list[_Pending] = []

    def add(
        self, step: int, bins: list[Bin], losses: Sequence[Tensor], norm: Tensor | float | None, running: Tensor
    ) -> None:
        """Starts to copy the figures of a step."""
        known = torch.as_tensor(math.nan if norm is None else norm, device=running.device)
        figures = torch.stack([figure.detach().float() for figure in (*losses, known, running)])
        self._pending.append(_Pending(step, list(bins), norm is not None, *_start_copy(figures)))

    def check(self, *, last: bool) -> StepLosses | None:
        """Checks all steps that were added but the last one, or that one as well, with at most one wait.

        Returns:
            The figures of the last step that was checked, None if there is none.

        Raises:
            UserError: a loss or a gradient's norm is not finite.
        """
        ready = self._pending if last else self._pending[:-1]
        self._pending = self._pending[len(ready) :]
        if ready and ready[-1].arrived is not None:
            ready[-1].arrived.synchronize()  # copies arrive in the order in which they were started
        figures = [_read(pending) for pending in ready]
        for each in figures:
            self._require_finite(each)
        return figures[-1] if figures else None

    def _require_finite(self, figures: StepLosses) -> None:
        problem = self._loss_problem(figures)
        if self._checks_norm and figures.norm is not None and not math.isfinite(figures.norm):
            # Every process has this norm, but the loss at fault may be that of one of them.
            problem = _of_all_processes(problem, self._norm_problem(figures))
        if problem is not None:
            raise UserError(problem)

    def _loss_problem(self, figures: StepLosses) -> str | None:
        for loss, bin_ in zip(figures.losses, figures.bins, strict=True):
            if not math.isfinite(loss):
                places = ", ".join(str(self._steps.places[index]) for index in bin_)
                return f"step {figures.step:,}: the loss is {loss} in a batch of these samples: {places}; {_REMEDY}"
        return None

    def _norm_problem(self, figures: StepLosses) -> str:
        places = listed([str(place) for place in self._steps.places_of(figures.step - 1)], 10)
        return (
            f"step {figures.step:,}: the norm of the gradient is {figures.norm} on these samples: {places}; {_REMEDY}"
        )


def _start_copy(figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not figures.is_cuda:
        return figures.cpu(), None
    values = torch.empty_like(figures, device="cpu", pin_memory=True).copy_(figures, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return values, arrived


def _read(pending: _Pending) -> StepLosses:
    *losses, norm, running = pending.values.tolist()
    return StepLosses(pending.step, pending.bins, losses, norm if pending.has_norm else None, running)


def _of_all_processes(own: str | None, common: str) -> str:
    """What a process says of a fault that all of them have: the first one with a problem of its own names it."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return own or common
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, own)
    speaker = next((rank for rank, problem in enumerate(problems) if problem is not None), 0)
    return own or common if dist.get_rank() == speaker else f"process {speaker} of this run has failed and says why"
