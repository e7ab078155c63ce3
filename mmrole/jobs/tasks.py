"""An input file at work: its requests, the replies in its journal, and what is still to be generated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmrole.base.errors import Problems, UserError, shown
from mmrole.base.journal import Journal
from mmrole.data.image_file import ImageFile
from mmrole.data.records import Sample
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.jobs.inputs import InputFile
from mmrole.jobs.payloads import decode_reply, encode_reply
from mmrole.jobs.processes import Processes
from mmrole.models.context import Context, longest_quotation

Json = dict[str, Any]

_LISTED = 10
# Prompts of so many contexts are no mistake of a few words: they would take hours and all memory, for nothing.
_MOST_CONTEXTS = 4


@dataclass(frozen=True)
class Program:
    """What a script does with a record.

    Attributes:
        name: of the script, as journals and messages name it.
        record_type: what its input files hold.
        requests: the requests of a record (whose image file is given), or none; their ids are unique. If they have a
            quotation, it is the same in all of them.
        result: the record's place in the output, from the last replies to its requests by the request's id.
        retry: a further request, with an id of its own, in place of one whose reply cannot be used; None if it can be,
            or if it is given up. The third argument are the settings of a sampled reply.
        settings: flags of the script that change what it makes.
        report: lines about a finished output: its path and what was written, record by record.
        how_to_get: what makes or fetches its input, for a message.
    """

    name: str
    record_type: type[Sample]
    requests: Callable[[Sample, ImageFile, GenerationSettings], list[ChatRequest]]
    result: Callable[[Sample, Mapping[str, ChatReply]], Json]
    retry: Callable[[ChatRequest, ChatReply, GenerationSettings], ChatRequest | None] | None = None
    settings: Json = field(default_factory=dict)
    report: Callable[[Path, Iterator[Json]], list[str]] = lambda output, results: []
    how_to_get: str = "bash scripts/download.sh data fetches the published data"


class Progress(NamedTuple):
    """How far a task is."""

    pending: list[ChatRequest]
    """Requests, retries among them, that can be asked and have no reply."""
    complete: int
    """Records without any."""


@dataclass(frozen=True)
class Task:
    """An input file with its requests, record by record, and its journal.

    Attributes:
        program: what is done with a record.
        file: the input.
        requests: the first requests of each record; retries follow from replies.
        images: the image files, by the name that records have for them.
        fingerprint: what the output is made with, without the images.
        sampling: settings of retries.
        journal: the replies.
    """

    program: Program
    file: InputFile
    requests: list[list[ChatRequest]]
    images: Mapping[str, ImageFile]
    fingerprint: Json
    sampling: GenerationSettings
    journal: Journal

    def retry(self, request: ChatRequest, reply: ChatReply) -> ChatRequest | None:
        """What is to be asked after a reply, if anything."""
        return None if self.program.retry is None else self.program.retry(request, reply, self.sampling)

    def append(self, request: ChatRequest, reply: ChatReply) -> None:
        """Journals a reply.

        Raises:
            UserError: the journal cannot be written.
        """
        self.journal.append(request.id, encode_reply(request, reply))

    def progress(self) -> Progress:
        """What was journaled when this process opened the journal, and by itself since then.

        Raises:
            UserError: the journal does not fit the task.
        """
        return self._compare(*self._decode(self.journal.done))

    def collect(self) -> dict[str, ChatReply]:
        """The replies of all processes, by request id.

        Raises:
            UserError: the journal does not fit the task, or replies are missing.
        """
        replies, images = self._decode(self.journal.collect())
        pending = self._compare(replies, images).pending
        if pending:
            raise UserError(
                f"{self.file.output}: {len(pending)} replies are not in its journal any more (first "
                f"{shown(pending[0].id)}); run the same command again to make them"
            )
        return replies

    def results(self, replies: Mapping[str, ChatReply]) -> Iterator[Json]:
        """What the output holds, from all replies."""
        for record, requests in zip(self.file.records, self.requests, strict=True):
            last = {request.id: replies[list(self._attempts(request, replies))[-1].id] for request in requests}
            yield self.program.result(record, last)

    def _attempts(self, request: ChatRequest, replies: Mapping[str, ChatReply]) -> Iterator[ChatRequest]:
        """A request and its retries, up to the first one that has no reply yet."""
        attempt: ChatRequest | None = request
        while attempt is not None:
            yield attempt
            attempt = self.retry(attempt, replies[attempt.id]) if attempt.id in replies else None

    def _decode(self, payloads: Mapping[str, Json]) -> tuple[dict[str, ChatReply], dict[str, str]]:
        """Replies, and the hashes of the images that they are about, by request id."""
        replies, images = {}, {}
        for id_, payload in payloads.items():
            try:
                replies[id_] = decode_reply(id_, payload)
            except ValueError as error:
                raise UserError(
                    f"{self.file.output}: its journal has a reply of another form, {shown(id_)} ({error}); "
                    "delete its line (it is made again), or start anew with --overwrite"
                ) from None
            images[id_] = sys.intern(payload["image"])
        return replies, images

    def _compare(self, replies: Mapping[str, ChatReply], images: Mapping[str, str]) -> Progress:
        """Compares what the journal holds with what the task asks.

        Which records there are is no part of the fingerprint: an interrupted --limit, or images that were missing, may
        be followed by more records. Fewer would lose what is done.
        """
        pending, complete, changed = [], 0, []
        lost = set(replies)
        for of_record in self.requests:
            before = len(pending)
            for request in of_record:
                for attempt in self._attempts(request, replies):
                    if attempt.id not in replies:
                        pending.append(attempt)
                        continue
                    lost.discard(attempt.id)
                    if images[attempt.id] != attempt.images[0].sha256:
                        changed.append(attempt.id)
            complete += len(pending) == before
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
        return Progress(pending, complete)


def make_requests(
    program: Program,
    file: InputFile,
    images: Mapping[str, ImageFile],
    settings: GenerationSettings,
    context: Context,
    processes: Processes,
) -> list[list[ChatRequest]]:
    """The requests of each record, cut to the context where they may be cut; says what was, or should have been.

    Raises:
        UserError: prompts are too long even without their quotation.
    """
    requests, cut, long, problems = [], [], [], Problems()
    for record in file.records:
        of_record = program.requests(record, images[record.image], settings)
        excess = context.excess(of_record) if of_record else 0
        if excess > (_MOST_CONTEXTS - 1) * context.length and longest_quotation(of_record) is None:
            problems.add(f"{record.where}: the prompt has {excess:,} positions more than fit")
        elif excess and longest_quotation(of_record) is None:
            long.append(shown(record.id))
        elif excess:
            try:
                of_record = context.cut(of_record, excess)
                quotation = longest_quotation(of_record)
                cut.append(f"{shown(record.id)} (to {len(quotation.text):,} characters)")
            except ValueError as error:
                problems.add(f"{record.where}: the prompt is too long for the context: {error}")
        requests.append(of_record)
    room = f"the context of {context.length:,} positions less {settings.max_new_tokens:,} for the reply"
    problems.raise_if_any(f"prompts are longer than {room}", "shorten the question, or lower --max_new_tokens")
    if cut:
        processes.say(f"warning: {file.path}: {len(cut)} answers are cut to fit into {room}: {', '.join(cut)}")
    if long:
        more = f" … and {len(long) - _LISTED} more" if len(long) > _LISTED else ""
        processes.say(
            f"warning: {file.path}: {len(long)} prompts are longer than {room}, for which the model was made; "
            f"shorten them: {', '.join(long[:_LISTED])}{more}"
        )
    return requests
