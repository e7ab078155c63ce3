"""A long job of a script: from its input files over requests, a backend and journals to the output files.

What makes a program of its own is a `Program`; reading, checking, resuming, several processes, interruptions and
reporting are the same for all, and are here. What is on disk at any moment: see `mmrole.base.journal`; beside a
finished output lies `<output>.settings`, which says what it was made with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress
from typing import NamedTuple, TypeAlias

from tqdm import tqdm

from mmrole.backends.backend import Backend, Generator, generate
from mmrole.base.errors import UserError
from mmrole.base.journal import Journal
from mmrole.base.journal_files import remove_leftovers
from mmrole.data.requests import ChatReply
from mmrole.jobs.options import JobOptions
from mmrole.jobs.origins import Origins
from mmrole.jobs.outputs import write_output
from mmrole.jobs.processes import Interrupted, Processes, held_interruptions, interruptible
from mmrole.jobs.programs import Program
from mmrole.jobs.reporting import count_replies, name_errors
from mmrole.jobs.sharing import share
from mmrole.jobs.survey import FindBackend, Survey, look_over, rehearse_job
from mmrole.jobs.tasks import Pending, Task, max_new_tokens

FAILED = 3
"""Exit status of a job some of whose requests have failed."""

Asked: TypeAlias = "tuple[Pending, Task]"


class Work(NamedTuple):
    """A task, and what of it has no reply yet."""

    task: Task
    pending: list[Pending]


def run(program: Program, options: JobOptions, find_backend: FindBackend) -> int:
    """Runs a job; returns the exit status: `FAILED` in the first process, where requests of any have failed.

    Args:
        program: what is done with a record.
        options: what is read and written.
        find_backend: what answers, in the process at a place.

    Raises:
        UserError: for everything that the user can mend; what is finished is kept.
    """
    processes = Processes.from_environment()
    work: list[Work] = []
    again = "the same command without --overwrite" if options.overwrite else "the same command"

    def prepare() -> Backend:
        survey = look_over(program, options, find_backend, processes)
        if options.rehearses:
            processes.say(rehearse_job(survey, options))
        else:
            _open_journals(program, options, survey, processes, work, journals)
        return survey.backend

    try:
        with interruptible(), processes, ExitStack() as journals:
            backend = processes.first_alone(prepare)
            if work:
                _work(backend, work, processes, options.without)
    except Interrupted as interruption:
        kept = sum(len(task.journal.collect()) for task, _ in work)
        processes.say(f"interrupted: {kept} replies are kept, and {again} goes on")
        return interruption.status
    # The others end with 0: a status would have torchrun end the first process, which may still be writing.
    return FAILED if processes.is_first and any(task.failed for task, _ in work) else 0


def _open_journals(
    program: Program,
    options: JobOptions,
    survey: Survey,
    processes: Processes,
    work: list[Work],
    journals: ExitStack,
) -> None:
    """Opens the journals of what is not finished, and says what there is to do."""
    origins = Origins()
    for planned in survey.planned:
        file = planned.file
        if planned.exchanges is None:
            remove_leftovers(file.output)
            processes.say(f"{file.output}: finished before, {len(file.records)} records; --overwrite starts anew")
            continue
        for warning in planned.warnings:
            processes.say(warning)
        anew = options.overwrite or planned.n_failed > 0
        journal = Journal.open(file.output, planned.fingerprint, processes.rank, processes.world_size, anew)
        journals.enter_context(journal)
        task = Task(
            program,
            file,
            planned.images,
            planned.fingerprint,
            journal,
            max_new_tokens(planned.exchanges),
            options.retry_refused,
            origins=origins,
        )
        pending, complete = task.take_up(planned.exchanges, survey.backend)
        planned.exchanges.clear()
        work.append(Work(task, pending))
        processes.say(f"{file.path}: {len(file.records)} records, {complete} of them done before")
        if planned.n_failed:
            processes.say(
                f"{file.output}: {planned.n_failed} requests had failed, and its journal is gone: "
                "all are asked again, and what is there stays until then"
            )
        if options.overwrite:
            processes.say(f"{file.output}: started anew; after an interruption go on without --overwrite")


def _work(backend: Backend, work: Sequence[Work], processes: Processes, without: str) -> None:
    """Generates what is pending; the first process then writes the output files."""
    pending = {each.request.id: (each, task) for task, of_task in work for each in of_task}
    before = {id_ for task, _ in work for id_ in task.journal.done} - pending.keys()  # refused ones are asked again
    # Each request is held in one place, and goes with its reply: its memory is what journal and outputs need.
    for _, of_task in work:
        of_task.clear()
    shared = share((each.request for each, _ in pending.values()), processes.rank, processes.world_size)
    asked = {request.id: pending[request.id] for request in shared}
    del pending, shared
    began = _generate(backend, asked, processes) if asked else time.monotonic()
    if not processes.is_first:
        for task, _ in work:
            task.journal.close()
    _gather_failures([task for task, _ in work], processes)
    if processes.is_first:
        _write_outputs([task for task, _ in work], before, time.monotonic() - began, processes, without)


def _gather_failures(tasks: Sequence[Task], processes: Processes) -> None:
    """Lets the first process know what failed in the others; waits for all of them."""
    own = [{id_: reply.error for id_, reply in task.failed.items()} for task in tasks]
    for said in processes.gather(json.dumps(own)):
        for task, failed in zip(tasks, json.loads(said), strict=True):
            task.failed.update({id_: ChatReply(id_, "", "failed", error=error) for id_, error in failed.items()})


def _write_outputs(tasks: Sequence[Task], before: Set[str], seconds: float, processes: Processes, without: str) -> None:
    """Writes every output that can be written, then fails if any could not."""
    made = new_tokens = 0
    reports, failures = [], []
    for task in tasks:
        try:
            replies = task.collect()
            write_output(task, replies)
        except UserError as error:
            failures += error.lines
            continue
        new = [reply for id_, reply in replies.items() if id_ not in before and id_ not in task.failed]
        made += len(new)
        new_tokens += sum(reply.usage.new_tokens for reply in new)
        counts = count_replies(replies, task.max_new_tokens)
        processes.say(f"{task.file.output}: {len(task.file.records)} records written; {counts}")
        reports += task.program.report(task.file.output, task.results(replies))
        reports += name_errors(task.file.output, task.errors(replies), without)
    if made:
        rate = f"{new_tokens / seconds:.1f} tokens/s"
        processes.say(f"{made} replies, {new_tokens:,} new tokens in {seconds:.1f} s ({rate})")
    for line in reports:
        processes.say(line)
    if failures:
        raise UserError(*failures)


def _generate(backend: Backend, asked: dict[str, Asked], processes: Processes) -> float:
    """Takes a reply to each request, and to what is asked after it; returns the time at which the backend was ready.

    A process asks what follows itself, when all its requests of the round before have replies.

    Args:
        backend: what answers.
        asked: requests by their id; empty afterwards.
        processes: the first of them shows a bar.
    """
    with backend.open() as generator:
        began = time.monotonic()
        # tqdm's None: no bar where stderr is not a terminal.
        with tqdm(total=len(asked), unit=" replies", disable=None if processes.is_first else True) as bar:
            progress = _Progress(bar, generator)
            while asked:
                asked = _take_replies(generator, asked, backend, progress)
                bar.total += len(asked)
        if status := generator.status():
            processes.say(f"{backend}: {status}")
    return began


def _take_replies(
    generator: Generator, asked: dict[str, Asked], backend: Backend, progress: _Progress
) -> dict[str, Asked]:
    """Takes a reply to each request, which goes with it; returns what is asked next.

    Left half-way, it takes what has arrived.
    """
    following: dict[str, Asked] = {}

    def take(reply: ChatReply) -> None:
        with held_interruptions():
            pending, task = asked.pop(reply.id)
            following.update({new.request.id: (new, task) for new in task.take(pending, reply, backend)})

    try:
        for reply in generate(generator, (pending.request for pending, _ in asked.values())):
            take(reply)
            progress.add(reply)
    except BaseException:
        for reply in generator.arrived():
            if reply.id in asked:
                with suppress(UserError):  # of the model that a server has changed to; or the disk is full
                    take(reply)
        raise
    return following


class _Progress:
    """The bar, and what stands beside it."""

    def __init__(self, bar: tqdm, generator: Generator) -> None:
        self._bar, self._generator = bar, generator
        self._began = time.monotonic()
        self._new_tokens = self._failed = 0

    def add(self, reply: ChatReply) -> None:
        """Counts a reply."""
        self._new_tokens += reply.usage.new_tokens
        self._failed += reply.finish_reason == "failed"
        speed = self._new_tokens / (time.monotonic() - self._began)
        parts = [f"{self._new_tokens:,} tokens, {speed:.0f} tokens/s"]
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [status] if (status := self._generator.status()) else []
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update()
