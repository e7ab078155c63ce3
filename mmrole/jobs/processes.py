"""The processes of one job, as torchrun starts them: which of them this is, and how they wait for each other.

They meet through torchrun's key-value store. There is no process group, whose time limits (half an hour) would be too
short for a slow process and too long for a failed one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Self, TypeVar

from mmrole.base.errors import UserError
from mmrole.base.process_environment import check_process_environment

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

POLL_SECONDS = 0.1
_FAILED = "failed"


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C) or SIGTERM has come; `status` is the exit status that says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class Processes:
    """This process among those of the job; a context manager, so that the others hear of a failure.

    A failed process prints its error at once and exits with status 2; the others do so silently where they next meet.

    Attributes:
        rank: this process, from 0.
        world_size: their number.
        local_rank: this process among those of its machine.
        local_world_size: the number of those.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_world_size: int = 1,
        store: Store | None = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self._store = store
        self._meetings = 0

    @classmethod
    def from_environment(cls) -> Self:
        """The processes that torchrun started (it sets RANK, WORLD_SIZE and more), or this one alone.

        Raises:
            UserError: the variables make no sense, or the other processes cannot be reached.
        """
        check_process_environment()
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1 or "RANK" not in os.environ:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, world_size = next(rendezvous("env://"))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"WORLD_SIZE is {world_size}, but the other processes cannot be reached "
                f"({str(error).splitlines()[0]}); start them with torchrun --nproc_per_node {world_size}"
            ) from None
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        return cls(rank, world_size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), store)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if self.is_first:
            print(text, flush=True)

    def first_alone(self, step: Callable[[], T]) -> T:
        """Calls `step` in the first process, then in the others, and returns when all are through."""
        results = [step()] if self.is_first else []
        self.meet()
        if not results:
            results.append(step())
        self.meet()
        return results[0]

    def meet(self) -> None:
        """Returns when all processes have come here.

        Raises:
            SystemExit: with status 2, if another process has failed.
            UserError: the other processes are gone.
        """
        if self._store is None:
            return
        self._meetings += 1
        name = f"meeting {self._meetings}"
        try:
            self._store.add(name, 1)
            while self._store.add(name, 0) < self.world_size:
                if self._store.check([_FAILED]):
                    raise SystemExit(2)
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # the store went with the process that started the job
            raise UserError("the other processes are gone; run the same command again to go on") from None

    def gather(self, text: str) -> list[str]:
        """What each process says; for the first one, once all have said it. The others hear nothing.

        Raises:
            As `meet`.
        """
        if self._store is None:
            return [text]
        topic = f"topic {self._meetings}"
        self._store.set(f"{topic} {self.rank}", text)
        self.meet()
        if not self.is_first:
            return []
        return [self._store.get(f"{topic} {rank}").decode() for rank in range(self.world_size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._store is None or error is None or isinstance(error, SystemExit):
            return
        if isinstance(error, UserError):
            # Now, because torchrun ends this process as soon as another one has ended.
            print(f"error (process {self.rank} of {self.world_size}): {error}", file=sys.stderr, flush=True)
        with suppress(RuntimeError):  # nobody is left who could be told
            self._store.set(_FAILED, "")
        if isinstance(error, UserError):
            raise SystemExit(2) from None


class _Hold:
    """Whether interruptions wait for the end of a block, and the signal that came meanwhile."""

    active = False
    signal: int | None = None


@contextmanager
def held_interruptions() -> Iterator[None]:
    """Has `Interrupted` wait for the end of the block, which is short and must be done as a whole."""
    _Hold.active = True
    try:
        yield
    finally:
        _Hold.active = False
        number, _Hold.signal = _Hold.signal, None
        if number is not None:
            raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in the block, unless they were ignored before."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        # torchrun sends SIGTERM after Ctrl-C: the block is being left already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if _Hold.active:
            _Hold.signal = number
        else:
            raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
