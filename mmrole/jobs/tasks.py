"""An input file at work: what is asked about its records, the replies in its journal, and what is still to be asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmrole.backends.backend import Backend, NoReplyError
from mmrole.base.errors import Problems, UserError, listed, shown
from mmrole.base.journal import Journal
from mmrole.base.json_values import Json, JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.jobs.exchanges import Exchange
from mmrole.jobs.inputs import InputFile
from mmrole.jobs.origins import Origins
from mmrole.jobs.payloads import decode_reply, encode_reply
from mmrole.jobs.programs import JobRecord, Program

_LISTED = 10


class Pending(NamedTuple):
    """A request without a reply that stands, as it goes to the backend."""

    request: ChatRequest
    exchange: Exchange


@dataclass(frozen=True)
class Task:
    """An input file with its journal.

    Attributes:
        program: what is done with a record.
        file: the input.
        images: the image files, by the path that records have for them.
        fingerprint: what the output is made with, without the images.
        journal: the replies.
        max_new_tokens: at how many tokens replies are cut; None if nothing is asked.
        retry_refused: whether a refusal in the journal is asked again.
        failed: the replies that failed in this run, of all processes once they are known, by request id.
        origins: how servers made the replies, of all tasks of a job.
    """

    program: Program
    file: InputFile
    images: Mapping[Path, ImageFile]
    fingerprint: JsonObject
    journal: Journal
    max_new_tokens: int | None = None
    retry_refused: bool = False
    failed: dict[str, ChatReply] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins)

    def take_up(self, exchanges: Sequence[Exchange], backend: Backend) -> tuple[list[Pending], int]:
        """What is to be asked, after the replies that were journaled before, and the number of records without any.

        Args:
            exchanges: of the records in order, with nothing but their first requests.
            backend: what will be asked.

        Raises:
            UserError: the journal does not fit the task.
        """
        replies, images = decode_replies(self.file.output, self.journal.done)
        for reply in replies.values():
            self.origins.add(reply)
        for exchange in exchanges:
            exchange.replay(replies)
        self._compare(exchanges, replies, images)
        pending, complete = [], 0
        for exchange in exchanges:
            if self.retry_refused:
                exchange.forget_refusals()
            if not exchange.pending:
                complete += 1
                continue
            exchange.fit(backend)
            pending += [Pending(exchange.fitted(id_), exchange) for id_ in exchange.pending]
        return pending, complete

    def take(self, pending: Pending, reply: ChatReply, backend: Backend) -> list[Pending]:
        """Takes a reply, and journals it unless it failed; returns what is to be asked next.

        Raises:
            UserError: the journal cannot be written, or the reply is of another model than those before.
        """
        request, exchange = pending
        if reply.finish_reason == "failed":
            self.failed[reply.id] = reply
            return []
        self.origins.add(reply)
        self.journal.append(request.id, encode_reply(request, reply), replace=self.retry_refused)
        exchange.replies[request.id] = replace(reply, token_ids=())  # they take most of the memory
        new = exchange.go_on()
        if new:
            exchange.fit(backend)
        return [Pending(exchange.fitted(id_), exchange) for id_ in new]

    def collect(self) -> dict[str, ChatReply]:
        """The replies of all processes by request id, those that failed among them.

        Raises:
            UserError: the journal does not fit the task, or replies are missing.
        """
        replies, images = decode_replies(self.file.output, self.journal.collect())
        pending: list[str] = []

        def replayed() -> Iterator[Exchange]:
            for record in self.file.records:
                exchange = self._replayed(record, replies)
                pending.extend(id_ for id_ in exchange.pending if id_ not in self.failed)
                yield exchange

        self._compare(replayed(), replies, images)
        if pending:
            raise UserError(
                f"{self.file.output}: {len(pending)} replies are not in its journal any more (first "
                f"{shown(pending[0])}); run the same command again to make them"
            )
        return {**replies, **self.failed}

    def results(self, replies: Mapping[str, ChatReply]) -> Iterator[JsonObject]:
        """What the output holds, from all replies."""
        for record in self.file.records:
            exchange = self._replayed(record, replies)
            failed = {id_: self.failed[id_] for id_ in exchange.asked if id_ in self.failed}
            yield self.program.result(record, {**exchange.replies, **failed})

    def errors(self, replies: Mapping[str, ChatReply]) -> list[ChatReply]:
        """What was refused and what has failed, in the order of the records."""
        if all(reply.error is None for reply in replies.values()):
            return []
        asked = (id_ for record in self.file.records for id_ in self._replayed(record, replies).asked)
        return [replies[id_] for id_ in asked if id_ in replies and replies[id_].error is not None]

    def _replayed(self, record: JobRecord, replies: Mapping[str, ChatReply]) -> Exchange:
        exchange = Exchange(self.program, record, self.images)
        exchange.replay(replies, self.failed)
        return exchange

    def _compare(
        self, exchanges: Iterable[Exchange], replies: Mapping[str, ChatReply], images: Mapping[str, str]
    ) -> None:
        """Compares what the journal holds with what the task asks.

        Which records there are is no part of the fingerprint: an interrupted --limit, or images that were missing, may
        be followed by more records. Fewer would lose what is done.
        """
        lost, changed = set(replies), []
        for exchange in exchanges:
            lost.difference_update(exchange.asked)
            changed += [id_ for id_ in exchange.asked if id_ in images and images[id_] != exchange.hash_of_images(id_)]
        if lost:
            raise UserError(
                f"{self.file.output}: its journal has {len(lost)} replies to records that this run leaves out (first "
                f"{shown(min(lost))}); leave --limit out and put missing images back, or start anew with --overwrite"
            )
        if changed:
            raise UserError(
                f"{self.file.output}: {len(changed)} journaled replies were about other images than those there now "
                f"(first {shown(changed[0])}); put the images back, or start anew with --overwrite"
            )


def decode_replies(output: Path, payloads: Mapping[str, Json]) -> tuple[dict[str, ChatReply], dict[str, str]]:
    """Replies, and the hashes of the images that they are about, by request id.

    Args:
        output: in whose journal they are.
        payloads: by request id.

    Raises:
        UserError: one has another form.
    """
    replies, images = {}, {}
    for id_, payload in payloads.items():
        try:
            replies[id_] = decode_reply(id_, payload)
        except ValueError as error:
            raise UserError(
                f"{output}: its journal has a reply of another form, {shown(id_)} ({error}); delete its line (it is "
                "made again), or start anew with --overwrite"
            ) from None
        images[id_] = sys.intern(payload["image"])
    return replies, images


def begin_exchanges(
    program: Program, file: InputFile, images: Mapping[Path, ImageFile], backend: Backend
) -> tuple[list[Exchange], list[str]]:
    """What is asked about each record at first, and warnings about prompts that are cut or long.

    Raises:
        NoReplyError: the backend has no reply to some.
        UserError: prompts are too long to be asked, or the backend cannot answer them.
    """
    exchanges = []
    room = ""
    told: dict[str, list[str]] = {"cut": [], "long": []}
    problems = Problems()
    unanswered: list[NoReplyError] = []
    for record in file.records:
        exchange = Exchange(program, record, images)
        exchanges.append(exchange)
        try:
            notes = exchange.fit(backend) if exchange.go_on() else []
        except NoReplyError as error:
            unanswered.append(error)
            continue
        for note in notes:
            room = note.room
            if note.kind == "too long":
                problems.add(f"{record.where}: {note.text}")
            else:
                told[note.kind].append(shown(record.id) + (f" ({note.text})" if note.kind == "cut" else ""))
    if unanswered:
        raise NoReplyError(unanswered[0].source, [id_ for error in unanswered for id_ in error.ids])
    problems.raise_if_any(f"prompts are longer than {room}", "shorten the question, or lower --max_new_tokens")
    warnings = []
    if cut := told["cut"]:
        warnings.append(f"warning: {file.path}: {len(cut)} answers are cut to fit into {room}: {', '.join(cut)}")
    if long := told["long"]:
        warnings.append(
            f"warning: {file.path}: {len(long)} prompts are longer than {room}, for which the model was made; "
            f"shorten them: {listed(long, _LISTED)}"
        )
    return exchanges, warnings


def max_new_tokens(exchanges: Sequence[Exchange]) -> int | None:
    """At how many tokens the backend cuts replies; None if nothing is asked."""
    fitted = (exchange.fitted(id_) for exchange in exchanges for id_ in exchange.asked)
    first = next(fitted, None)
    return None if first is None else first.complete_settings().max_new_tokens
