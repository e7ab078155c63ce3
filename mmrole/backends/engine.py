"""The engine as a backend: a checkpoint that is loaded when it is opened."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmrole.backends.backend import ALONE, Generator, Note, ProcessPlace
from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.models.context import Context, longest_quotation
from mmrole.models.loading import Model, ModelOptions, check_checkpoint, find_model, load

if TYPE_CHECKING:
    from mmrole.engine.engine import Engine

# Prompts of so many contexts are no mistake of a few words: they would take hours and all memory, for nothing.
_MOST_CONTEXTS = 4


@dataclass(frozen=True)
class EngineBackend:
    """The engine, with a checkpoint that is loaded when it is opened.

    Attributes:
        model: the checkpoint and how it is run.
        made_with: the model's fingerprint, with which its files are compared again when they have been loaded.
        resampling: whether requests may ask for sampling where the settings are greedy.
        max_batch_tokens: positions whose keys and values may be in memory at once; None for what fits.
        progress: show a progress bar while the checkpoint loads.
    """

    model: Model
    made_with: dict[str, Any]
    resampling: bool = False
    max_batch_tokens: int | None = None
    progress: bool = False

    def __str__(self) -> str:
        return str(self.model)

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the model that changes a reply."""
        if self.resampling and not self.model.settings.do_sample:
            return {**self.made_with, "retry_sampling": asdict(self.model.sampling)}
        return self.made_with

    @cached_property
    def context(self) -> Context:
        """What prompts must fit into. Reads all of the checkpoint but the weights.

        Raises:
            UserError: something is missing, damaged, or does not fit together.
        """
        return check_checkpoint(self.model.checkpoint, self.model.max_pixels)

    def fit(self, requests: Sequence[ChatRequest]) -> tuple[list[ChatRequest], list[Note]]:
        """The requests with the settings of checkpoint and flags, cut to the context where they may be cut."""
        context = self.context
        filled = [replace(request, settings=self._settings(request)) for request in requests]
        excess = context.excess(filled) if filled else 0
        if not excess:
            return filled, []
        length, most = context.length, filled[0].complete_settings().max_new_tokens
        room = f"the context of {length:,} positions less {most:,} for the reply"
        if longest_quotation(filled) is None:
            kind = "too long" if excess > (_MOST_CONTEXTS - 1) * length else "long"
            return filled, [Note(kind, f"the prompt has {excess:,} positions more than fit", room, excess)]
        try:
            cut = context.cut(filled, excess)
        except ValueError as error:
            return filled, [Note("too long", f"the prompt is too long for the context: {error}", room, excess)]
        left = longest_quotation(cut)
        return cut, [Note("cut", f"to {len(left.text) if left else 0:,} characters", room)]

    @contextmanager
    def open(self) -> Iterator[Generator]:
        """Loads the checkpoint; what fails while it generates is a line that says what to do."""
        loaded = load(self.model, self.progress, self.made_with)
        from mmrole.engine.engine import Engine

        engine = Engine(loaded, self.max_batch_tokens)
        try:
            with _failures_named():
                if self.model.device.type == "cuda":
                    warm_up(engine)
                yield engine
        finally:
            engine.close()

    def _settings(self, request: ChatRequest) -> GenerationSettings:
        asked = request.settings
        if isinstance(asked, GenerationSettings):
            return asked
        return asked.filled(self.model.settings, self.model.sampling)


def find_engine(
    options: ModelOptions, max_batch_tokens: int | None = None, *, place: ProcessPlace = ALONE, resampling: bool = False
) -> EngineBackend:
    """The engine with a checkpoint.

    Args:
        options: the checkpoint and how it is run.
        max_batch_tokens: positions whose keys and values may be in memory at once; None for what fits.
        place: the process in which it runs.
        resampling: whether requests may ask for sampling where the settings are greedy: then those of it must be sound.

    Raises:
        UserError: there is no such checkpoint or device, or the settings are faulty.
    """
    model = find_model(options, place.local_rank, place.local_world_size, resampling=resampling)
    return EngineBackend(model, model.fingerprint(), resampling, max_batch_tokens, place.progress)


def warm_up(engine: Engine) -> None:
    """Answers a short request, for which a GPU compiles kernels, takes memory and records a step; prints how long."""
    start = time.perf_counter()
    settings = GenerationSettings(max_new_tokens=4, do_sample=False)
    request = ChatRequest("warm-up", one_turn("Count.", "Count from one to a hundred."), settings)
    with suppress(FloatingPointError):  # the first real request says it better
        list(engine.generate([request]))
    print(f"ready {time.perf_counter() - start:.1f} s after loading", file=sys.stderr, flush=True)


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
    except FloatingPointError as error:
        raise UserError(f"{error}, or download or copy the checkpoint again, if its weights are damaged") from None
    except OSError as error:
        raise UserError(
            f"an image cannot be read any more: {error}; what is finished is kept: run the same command again to go on"
        ) from None
