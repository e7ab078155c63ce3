"""Rank-0-first execution, errors that one process prints for all, and the lock of an output directory."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from mmrole.base.disk import open_locked
from mmrole.base.errors import UserError, reason
from mmrole.training.arguments import TrainingArguments

T = TypeVar("T")

_PATIENCE = 20  # seconds; torchrun ends all processes as soon as one has ended
_LOST = ("closed by peer", "reset by peer", "Broken pipe")


@contextmanager
def said_once() -> Iterator[None]:
    """Lets only the first process of each machine say what is wrong, for all of them find the same."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) <= 0:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
        time.sleep(_PATIENCE)
        raise SystemExit(2) from None


@contextmanager
def quiet_where_others_fail() -> Iterator[None]:
    """Lets a process that failed say why before those that miss it say that they do."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or any(words in str(error) for words in _LOST):
            time.sleep(_PATIENCE)
        raise


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends a process of several with its exit status, without the interpreter's shutdown.

    In that, threads of torch or DeepSpeed sometimes abort the process when all of its work is done, which makes the
    whole run look as if it had failed.
    """
    try:
        yield
    except SystemExit as end:
        if "LOCAL_RANK" in os.environ:
            atexit._run_exitfuncs()  # what is logged to a server is finished there
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def rank0_first(training: TrainingArguments, step: Callable[[], T]) -> T:
    """Calls `step` on rank 0, then, unless it failed there, on the other ranks: an error is printed once."""
    error: UserError | None = None
    results: list[T] = []
    if training.process_index == 0:
        try:
            results.append(step())
        except UserError as failure:
            error = failure
    failed = [error is not None]
    if training.world_size > 1:
        dist.broadcast_object_list(failed, device=training.device)
    if error is not None:
        raise error
    if failed[0]:
        raise UserError("the first process of this run has failed and says why")
    return results[0] if results else step()


def from_rank0(training: TrainingArguments, step: Callable[[], T]) -> T:
    """Calls `step` on rank 0 alone and broadcasts what it returns; an error is printed once."""
    results: list[Any] = [rank0_first(training, lambda: step() if training.process_index == 0 else None)]
    if training.world_size > 1:
        dist.broadcast_object_list(results, device=training.device)
    return results[0]


def lock_output_dir(training: TrainingArguments) -> int | None:
    """Makes the first process the only one that trains into --output_dir: workers outlive a killed torchrun.

    Returns:
        A descriptor to be kept open, in the first process.

    Raises:
        UserError: another run holds the directory, or it cannot be written.
    """
    if training.process_index != 0:
        return None
    try:
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        held = open_locked(Path(training.output_dir) / ".lock", os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write to {training.output_dir}: {reason(error)}; give another --output_dir") from None
    if held is None:
        raise UserError(f"another process trains into {training.output_dir}; wait for it, or stop it")
    return held


def say(training: TrainingArguments, text: str) -> None:
    """Prints a line, once for all processes."""
    if training.process_index == 0:
        print(text, flush=True)
