"""An input file at work: its requests, the replies in its journal, and what is still to be generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_utils.errors import Problems, UserError, shown
from data_utils.images import resolve_image
from data_utils.journal import Journal
from data_utils.records import Sample
from mmrole.generation.context import Context
from mmrole.generation.inputs import InputFile
from mmrole.generation.processes import Processes
from mmrole.generation.requests import ChatReply, ChatRequest, GenerationSettings

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
        report: lines about a finished output: its path and what was written.
        how_to_get: what makes or fetches its input, for a message.
    """

    name: str
    record_type: type[Sample]
    requests: Callable[[Sample, Path, GenerationSettings], list[ChatRequest]]
    result: Callable[[Sample, Mapping[str, ChatReply]], Json]
    retry: Callable[[ChatRequest, ChatReply, GenerationSettings], ChatRequest | None] | None = None
    settings: Json = field(default_factory=dict)
    report: Callable[[Path, Sequence[Json]], list[str]] = lambda output, results: []
    how_to_get: str = "bash scripts/download.sh data fetches the published data"


@dataclass(frozen=True)
class Task:
    """An input file with its requests, record by record, and its journal.

    Attributes:
        program: what is done with a record.
        file: the input.
        requests: the first requests of each record; retries follow from replies.
        images: hash of each record's image, by record id.
        fingerprint: what the output is made with, without the images.
        sampling: settings of retries.
        journal: the replies.
    """

    program: Program
    file: InputFile
    requests: list[list[ChatRequest]]
    images: Mapping[str, str]
    fingerprint: Json
    sampling: GenerationSettings
    journal: Journal

    def attempts(self, request: ChatRequest, replies: Mapping[str, ChatReply]) -> Iterator[ChatRequest]:
        """A request and its retries, up to the first one that has no reply yet."""
        attempt: ChatRequest | None = request
        while attempt is not None:
            yield attempt
            attempt = self.retry(attempt, replies[attempt.id]) if attempt.id in replies else None

    def retry(self, request: ChatRequest, reply: ChatReply) -> ChatRequest | None:
        """What is to be asked after a reply, if anything."""
        return None if self.program.retry is None else self.program.retry(request, reply, self.sampling)

    @property
    def image_of(self) -> dict[Path, str]:
        """Hash of each image, by the file that requests name."""
        records = zip(self.file.records, self.requests, strict=True)
        return {request.image: self.images[record.id] for record, of_record in records for request in of_record}

    @property
    def replies(self) -> dict[str, ChatReply]:
        """The replies that were journaled when this process opened the journal, and its own since then."""
        return {id_: _reply(id_, payload) for id_, payload in self.journal.done.items()}

    @property
    def pending(self) -> list[ChatRequest]:
        """Requests, retries among them, that can be asked and have no reply."""
        replies = self.replies
        last = [list(self.attempts(request, replies))[-1] for of_record in self.requests for request in of_record]
        return [request for request in last if request.id not in replies]

    @property
    def done(self) -> int:
        """Records that are complete."""
        pending = {request.id for request in self.pending}
        replies = self.replies
        return sum(
            all(pending.isdisjoint(attempt.id for attempt in self.attempts(request, replies)) for request in of_record)
            for of_record in self.requests
        )

    def append(self, request: ChatRequest, reply: ChatReply, image_hash: str) -> None:
        """Journals a reply.

        Raises:
            UserError: the journal cannot be written.
        """
        payload = {name: value for name, value in asdict(reply).items() if name != "id"}
        self.journal.append(request.id, {**payload, "image": image_hash})

    def collect(self) -> dict[str, ChatReply]:
        """The replies of all processes, by request id."""
        return {id_: _reply(id_, payload) for id_, payload in self.journal.collect().items()}

    def results(self, replies: Mapping[str, ChatReply]) -> list[Json]:
        """What the output holds, from all replies."""
        results = []
        for record, requests in zip(self.file.records, self.requests, strict=True):
            last = {request.id: replies[list(self.attempts(request, replies))[-1].id] for request in requests}
            results.append(self.program.result(record, last))
        return results


def make_requests(
    program: Program,
    file: InputFile,
    settings: GenerationSettings,
    image_dir: Path,
    context: Context,
    processes: Processes,
) -> list[list[ChatRequest]]:
    """The requests of each record, cut to the context where they may be cut; says what was, or should have been.

    Raises:
        UserError: prompts are too long even without their quotation.
    """
    requests, cut, long, problems = [], [], [], Problems()
    for record in file.records:
        of_record = program.requests(record, resolve_image(image_dir, record.image), settings)
        excess = context.excess(of_record) if of_record else 0
        if excess > (_MOST_CONTEXTS - 1) * context.length and of_record[0].quotation is None:
            problems.add(f"{record.where}: the prompt has {excess:,} positions more than fit")
        elif excess and of_record[0].quotation is None:
            long.append(shown(record.id))
        elif excess:
            try:
                of_record = context.cut(of_record, excess)
                start, end = of_record[0].quotation
                cut.append(f"{shown(record.id)} (to {end - start:,} characters)")
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


def check_journal(task: Task) -> None:
    """Compares what the journal holds with what the task asks.

    Which records there are is no part of the fingerprint: an interrupted --limit, or images that were missing, may be
    followed by more records. Fewer would lose what is done.

    Raises:
        UserError: the journal has replies to other requests, or about other images.
    """
    replies, image_of = task.replies, task.image_of
    asked = {
        attempt.id: image_of[attempt.image]
        for of_record in task.requests
        for request in of_record
        for attempt in task.attempts(request, replies)
    }
    lost = sorted(replies.keys() - asked.keys())
    if lost:
        raise UserError(
            f"{task.file.output}: its journal has {len(lost)} replies to records that this run leaves out (first "
            f"{shown(lost[0])}); leave --limit out and put missing images back, or start anew with --overwrite"
        )
    changed = [id_ for id_, payload in task.journal.done.items() if payload.get("image") != asked[id_]]
    if changed:
        raise UserError(
            f"{task.file.output}: {len(changed)} journaled replies were about other images than those there now (first "
            f"{shown(changed[0])}); put the images back, or start anew with --overwrite"
        )


def _reply(id_: str, payload: Json) -> ChatReply:
    fields = {name: value for name, value in payload.items() if name != "image"}
    return ChatReply(**{**fields, "id": id_, "token_ids": tuple(payload["token_ids"])})
