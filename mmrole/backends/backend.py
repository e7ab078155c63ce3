"""What answers the requests of a job, and the one that does it here: the engine with a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from mmrole.base.errors import UserError
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.jobs.processes import Processes
from mmrole.models.context import Context
from mmrole.models.loading import Model, check_checkpoint, find_model, load

Generate = Callable[[Sequence[ChatRequest]], Iterator[ChatReply]]
"""Yields a reply to each request, in the order in which they are finished."""


class Backend(Protocol):
    """What a job needs of whatever answers its requests."""

    @property
    def settings(self) -> GenerationSettings:
        """How replies are generated."""

    @property
    def sampling(self) -> GenerationSettings:
        """How a reply is generated that takes the place of one that cannot be used."""

    def __str__(self) -> str:
        """What is used, in a line."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON values by name: everything that changes a reply."""

    def check(self) -> Context:
        """What prompts must fit into; fails if anything is missing that can be known before `open`."""

    def open(self) -> AbstractContextManager[Generate]:
        """Makes it ready, as long as the context lasts."""


@dataclass(frozen=True)
class EngineBackend:
    """The engine, with a checkpoint that is loaded when it is opened."""

    model: Model
    made_with: dict[str, Any]
    """The model's fingerprint, with which its files are compared again when they have been loaded."""
    max_batch_tokens: int | None
    progress: bool
    """Show a progress bar while the checkpoint loads."""

    @property
    def settings(self) -> GenerationSettings:
        """Those of the checkpoint and the flags."""
        return self.model.settings

    @property
    def sampling(self) -> GenerationSettings:
        """Those of the checkpoint and the flags, sampled with --no_random too."""
        return self.model.sampling

    def __str__(self) -> str:
        return str(self.model)

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the model that changes a reply."""
        return self.made_with

    def check(self) -> Context:
        """Reads all of the checkpoint but the weights."""
        return check_checkpoint(self.model.checkpoint)

    @contextmanager
    def open(self) -> Iterator[Generate]:
        """Loads the checkpoint; what fails while it generates is a line that says what to do."""
        loaded = load(self.model, self.progress, self.made_with)
        from mmrole.engine.engine import Engine

        with _failures_named():
            yield Engine(loaded, self.max_batch_tokens).generate


def find_engine(options: argparse.Namespace, processes: Processes, retries: bool) -> EngineBackend:
    """The engine for the flags of `options.add_arguments`.

    Args:
        options: the flags.
        processes: those of the job.
        retries: whether replies may be tried again, sampled.

    Raises:
        UserError: there is no such checkpoint or device, or the settings are faulty.
    """
    place = processes.local_rank, processes.local_world_size
    model = find_model(options, *place, retries=retries)
    progress = processes.is_first and sys.stderr.isatty()
    return EngineBackend(model, model.fingerprint(), options.max_batch_tokens, progress)


@contextmanager
def _failures_named() -> Iterator[None]:
    """What can go wrong while a model generates, as one line that says what to do."""
    from torch import OutOfMemoryError

    try:
        yield
    except OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}); free it, or lower --max_batch_tokens; what is "
            "finished is kept: run the same command again to go on"
        ) from None
    except OSError as error:
        raise UserError(
            f"an image cannot be read any more: {error}; what is finished is kept: run the same command again to go on"
        ) from None
