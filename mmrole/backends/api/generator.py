"""The loop that asks a server: many requests at once, in a thread of its own.

A request holds its place from when it is sent until its reply has been taken, so that never more are under way or
unsaved than may be under way: that is what a kill loses.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.request import getproxies_environment

from mmrole.backends.api.asking import Asking
from mmrole.backends.api.failures import ApiFailure
from mmrole.backends.api.options import ApiOptions
from mmrole.backends.api.probes import PREFIX, probe
from mmrole.backends.api.window import Window
from mmrole.base.errors import UserError
from mmrole.data.requests import ChatReply, ChatRequest, Piece

_KEPT = "; what is finished is kept: the same command goes on"
_FUTILE = 3
"""So many requests given up one after the other, without a reply between them, and the server is taken for gone."""
_COSTLY = ("timeout", "unreadable", "broken")
"""What is likely to happen again, takes long, or may have been paid for."""
_ALL = 1 - 1e-6

T = TypeVar("T")


class ApiGenerator:
    """Asks a server.

    Args:
        options: how it is asked.
        asking: how one request is asked once; made in the loop's thread.
        say: prints a line.

    Raises:
        UserError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(self, options: ApiOptions, asking: Callable[[], Asking], say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._kept = "" if options.is_talk else _KEPT
        self._added: list[ChatRequest] = []
        self._open: set[str] = set()
        self._returned: list[str] = []
        self._probed = not options.probe
        # What follows is of the loop's thread alone.
        self._window = Window(options.concurrency)
        self._queue: OrderedDict[str, ChatRequest] = OrderedDict()
        self._delayed: dict[str, ChatRequest] = {}
        self._tries: dict[str, tuple[int, float]] = {}  # and the share of the patience that is used up
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unsaved: set[str] = set()
        self._paused_until = 0.0
        self._has_replied = False
        self._given_up = self._retries = 0
        self._told: set[str] = set()  # kinds of failures, each told once: until a reply comes the bar says nothing
        self._stop: BaseException | None = None
        # What follows is of both threads.
        self._arrived: dict[str, ChatReply] = {}
        self._error: BaseException | None = None
        self._news = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="API", daemon=True)
        self._thread.start()
        try:
            self._asking = self._run(_called(asking))
        except BaseException:
            self._end_thread()
            raise

    def add(self, request: ChatRequest) -> None:
        """Lets a request join, at the next step."""
        self._added.append(request)
        self._open.add(request.id)

    def cancel(self, id_: str) -> None:
        """Lets a request leave; what is under way is cut off."""
        self._open.discard(id_)
        if self._added:
            self._added = [request for request in self._added if request.id != id_]
        self._loop.call_soon_threadsafe(self._drop, id_)

    def step(self) -> list[Piece | ChatReply]:
        """Waits for replies; nothing if nothing was asked.

        Raises:
            UserError: going on is useless, or would cost too much. All that has arrived was returned before, and all
                requests have left.
        """
        returned, self._returned = self._returned, []
        for id_ in returned:
            self._arrived.pop(id_, None)
        added, self._added = self._added, []
        self._probe(added)
        self._loop.call_soon_threadsafe(self._go_on, added, returned)
        events: list[Piece | ChatReply] = []
        while self._open and not events:
            self._news.clear()
            error = self._error
            replies = list(self._arrived.values())
            self._returned = [reply.id for reply in replies]
            for reply in replies:
                if reply.id in self._open:
                    self._open.remove(reply.id)
                    events += [Piece(reply.id, reply.text), reply] if reply.text else [reply]
            if not events and error is not None:
                self._open.clear()
                self._run(_called(self._begin_anew))
                raise error
            if not events:
                self._news.wait()
        return events

    def arrived(self) -> Sequence[ChatReply]:
        """The replies that were not known to be taken when the last step began, and all since."""
        return list(self._arrived.values())

    def status(self) -> str:
        """How often it was asked again, and what was spent."""
        parts = [f"{self._retries} asked again"] if self._retries else []
        budget = self._asking.budget
        parts += [f"cost {budget.spent:.4f}"] if budget.prices is not None else []
        return ", ".join(parts)

    def close(self) -> None:
        """Cuts off what is under way, and ends the thread."""
        self._run(self._end())
        self._end_thread()

    def _probe(self, added: Sequence[ChatRequest]) -> None:
        """Before the first request, finds out what the server does not do."""
        if self._probed or not added:
            return
        self._probed = True
        with_images = any(request.images for request in added)
        found = self._run(probe(self._ask_until_replied, self._options.settings, with_images))
        for finding in found:
            self._say(f"warning: {self._options.base} does not honour {finding}")
        self._asking.not_honoured = tuple(found)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns in the loop's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the loop's thread.

    def _go_on(self, added: Sequence[ChatRequest], saved: Sequence[str]) -> None:
        self._queue.update((request.id, request) for request in added)
        self._unsaved.difference_update(saved)
        self._send()

    def _begin_anew(self) -> None:
        """After an error that was raised: others may be asked again, as in a talk."""
        self._queue.clear()
        self._delayed.clear()
        self._stop = self._error = None
        self._given_up = 0

    def _drop(self, id_: str) -> None:
        self._queue.pop(id_, None)
        self._delayed.pop(id_, None)
        if task := self._tasks.get(id_):
            task.cancel()

    def _send(self) -> None:
        """Sends as many requests as may be under way."""
        while self._queue and self._stop is None and len(self._tasks) + len(self._unsaved) < self._window.limit:
            pause = self._paused_until - self._loop.time()
            if pause > 0:
                self._loop.call_later(pause, self._send)
                break
            request = next(iter(self._queue.values()))
            if not self._asking.budget.reserve(request):
                if not self._tasks and not self._delayed:
                    self._stop = self._out_of_money()
                break
            self._queue.popitem(last=False)
            self._tasks[request.id] = self._loop.create_task(self._try(request))
        if self._stop is not None and not self._tasks:
            self._error = self._stop
            self._news.set()

    async def _try(self, request: ChatRequest) -> None:
        round_ = self._window.round
        try:
            reply = await self._asking.ask(request)
        except ApiFailure as failure:
            if failure.kind in ("busy", "timeout"):
                self._window.trouble(round_, self._loop.time())
            self._after(request, failure)
        except Exception as error:  # of a person, or a bug: raised by the next step
            self._stop = error
        else:
            self._window.well(round_, self._loop.time())
            self._has_replied, self._given_up = True, 0
            self._deliver(reply)
        finally:
            if self._tasks.get(request.id) is asyncio.current_task():  # else it was cancelled, and is asked anew
                del self._tasks[request.id]
            self._send()

    def _after(self, request: ChatRequest, failure: ApiFailure) -> None:
        """Goes on after a try that failed."""
        if failure.kind == "setting":
            self._queue[request.id] = request
            self._queue.move_to_end(request.id, last=False)
            return
        try:
            delay = self._delay(request, failure)
        except UserError as error:
            self._stop = self._stop or error
            return
        if delay is None:
            self._deliver(ChatReply(request.id, "", "failed", error=str(failure)))
        else:
            self._delayed[request.id] = request
            self._loop.call_later(delay, self._ask_again, request.id)

    def _delay(self, request: ChatRequest, failure: ApiFailure) -> float | None:
        """After how many seconds a request is sent again; None if it is given up.

        Raises:
            UserError: it is of no use to send it or any other.
        """
        patience, base = self._options.patience, self._options.base
        if failure.kind == "useless":
            raise UserError(f"{base}: {failure}{self._kept}")
        if failure.kind == "failed":
            return None
        if failure.wait is not None and failure.wait > patience.longest_wait:
            raise UserError(f"{base}: {failure}; it asks to wait {failure.wait:,.0f} seconds{self._kept}")
        is_costly = failure.kind in _COSTLY or request.id.startswith(PREFIX)
        is_costly = is_costly or (failure.kind == "unreachable" and not self._has_replied)
        tries, used = self._tries.get(request.id, (0, 0.0))
        tries, used = tries + 1, used + 1 / (patience.costly_tries if is_costly else patience.tries)
        self._tries[request.id] = tries, used
        if used < _ALL:
            self._retries += 1
            if failure.kind not in self._told:
                self._told.add(failure.kind)
                self._say(f"{base}: {failure}; it is asked again")
            if failure.wait is not None:
                self._paused_until = max(self._paused_until, self._loop.time() + failure.wait)
                return failure.wait
            return min(patience.longest, patience.first * 2 ** (tries - 1)) * random.uniform(0.5, 1)
        del self._tries[request.id]
        self._given_up += 1
        if failure.kind == "unreachable" and not self._has_replied:
            remedy = "correct --api_base, or start the server"
            if not {"http", "https", "all"}.isdisjoint(getproxies_environment()):
                remedy += ", or correct the environment's proxy (NO_PROXY names servers that need none)"
            raise UserError(f"{base}: {failure}; {remedy}{self._kept}")
        if self._given_up >= _FUTILE and (failure.kind != "unreadable" or not self._has_replied):
            raise UserError(f"{base}: {failure}; {self._given_up} requests in a row came to nothing{self._kept}")
        return None

    def _ask_again(self, id_: str) -> None:
        request = self._delayed.pop(id_, None)
        if request is not None:
            self._queue[id_] = request
            self._queue.move_to_end(id_, last=False)
            self._send()

    def _deliver(self, reply: ChatReply) -> None:
        self._unsaved.add(reply.id)
        self._arrived[reply.id] = reply
        self._news.set()

    async def _ask_until_replied(self, request: ChatRequest) -> ChatReply:
        """The reply to a probe, for which no other is waiting."""
        while True:
            if not self._asking.budget.reserve(request):
                raise self._out_of_money()
            try:
                return await self._asking.ask(request)
            except ApiFailure as failure:
                delay = 0.0 if failure.kind == "setting" else self._delay(request, failure)
                if delay is None:
                    return ChatReply(request.id, "", "failed", error=str(failure))
                await asyncio.sleep(delay)

    def _out_of_money(self) -> UserError:
        budget = self._asking.budget
        return UserError(
            f"--max_cost {budget.most:g} does not suffice: {budget.spent:.4f} are spent, and the next request could "
            f"cost more than is left{_KEPT.replace('same command', 'same command with a higher --max_cost')}"
        )

    async def _end(self) -> None:
        self._stop = self._stop or UserError("closed")
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._asking.close()


async def _called(function: Callable[[], T]) -> T:
    return function()
