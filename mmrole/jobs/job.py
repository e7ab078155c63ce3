"""A long job of a script: from its input files over requests, a backend and journals to the output files.

What makes a program of its own is a `Program`; reading, checking, resuming, several processes, interruptions and
reporting are the same for all, and are here. What is on disk at any moment: see `mmrole.base.journal`; beside a
finished output lies `<output>.settings`, which says what it was made with.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mmrole.backends.backend import Backend, ProcessPlace, generate
from mmrole.base.errors import UserError
from mmrole.base.journal import Journal
from mmrole.base.journal_files import JournalState, remove_leftovers, state
from mmrole.base.json_values import JsonObject
from mmrole.data.requests import ChatReply
from mmrole.jobs.inputs import InputFile, find_images, find_inputs, read_inputs
from mmrole.jobs.options import TEST_FILES, JobOptions
from mmrole.jobs.outputs import find_finished, refuse_folders, write_output
from mmrole.jobs.processes import Interrupted, Processes, interruptible
from mmrole.jobs.programs import Program
from mmrole.jobs.reporting import count_replies, name_errors
from mmrole.jobs.sharing import share
from mmrole.jobs.tasks import Pending, Task, begin_exchanges, max_new_tokens

FAILED = 3
"""Exit status of a job some of whose requests have failed."""

FindBackend = Callable[[ProcessPlace], Backend]


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
    try:
        with interruptible(), processes, ExitStack() as journals:
            backend = processes.first_alone(lambda: _prepare(program, options, find_backend, processes, work, journals))
            if work:
                _work(backend, work, processes, options.overwrite)
    except Interrupted as interruption:
        kept = sum(len(task.journal.collect()) for task, _ in work)
        processes.say(f"interrupted: {kept} replies are kept, and {again} goes on")
        return interruption.status
    # The others end with 0: a status would have torchrun end the first process, which may still be writing.
    return FAILED if processes.is_first and any(task.failed for task, _ in work) else 0


def _prepare(
    program: Program,
    options: JobOptions,
    find_backend: FindBackend,
    processes: Processes,
    work: list[Work],
    journals: ExitStack,
) -> Backend:
    """Checks everything, opens the journals of what is not finished, and says what there is to do."""
    given = _read_inputs(program, options, processes)
    files = [file for file in given if file.records]
    backend = find_backend(
        ProcessPlace(processes.local_rank, processes.local_world_size, processes.is_first and sys.stderr.isatty())
    )
    common = _fingerprint(program, backend)
    fingerprints = [{**common, "input": file.sha256} for file in files]
    images = [find_images(file, options.image_dir) for file in files]
    finished, failed = (set(), {}) if options.overwrite else find_finished(files, fingerprints, images)
    refuse_folders(files)
    if len(finished) < len(files):
        backend.fit([])
    begun = {
        file.output: begin_exchanges(program, file, of_file, backend)
        for file, of_file in zip(files, images, strict=True)
        if file.output not in finished
    }
    if begun:
        processes.say(str(backend))
    for file in given:
        if file.left_out:
            processes.say(file.describe_left_out())
        if not file.records:
            processes.say(f"{file.path}: nothing to do, {file.why_empty()}; no output is written")
    for file, fingerprint, of_file in zip(files, fingerprints, images, strict=True):
        if file.output in finished:
            remove_leftovers(file.output)
            processes.say(f"{file.output}: finished before, {len(file.records)} records; --overwrite starts anew")
            continue
        exchanges, warnings = begun.pop(file.output)
        for warning in warnings:
            processes.say(warning)
        anew = options.overwrite or file.output in failed
        journal = Journal.open(file.output, fingerprint, processes.rank, processes.world_size, anew)
        journals.enter_context(journal)
        task = Task(program, file, of_file, fingerprint, journal, max_new_tokens(exchanges), options.retry_refused)
        pending, complete = task.take_up(exchanges, backend)
        work.append(Work(task, pending))
        processes.say(f"{file.path}: {len(file.records)} records, {complete} of them done before")
        if file.output in failed:
            processes.say(
                f"{file.output}: {failed[file.output]} requests had failed, and its journal is gone: "
                "all are asked again, and what is there stays until then"
            )
        if options.overwrite:
            processes.say(f"{file.output}: started anew; after an interruption go on without --overwrite")
    return backend


def _read_inputs(program: Program, options: JobOptions, processes: Processes) -> list[InputFile]:
    if options.input_file is not None:
        names: Sequence[Path | str] = [options.input_file]
    else:
        names, absent = find_inputs(options.input_dir, TEST_FILES, program.how_to_get)
        for path in absent:
            unfinished = " (it is not finished)" if state(path) is JournalState.UNFINISHED else ""
            processes.say(f"{path} is not there{unfinished}: nothing is done about it")
    return read_inputs(
        options.input_dir,
        names,
        options.output_dir,
        program.record_type,
        options.image_dir,
        limit=options.limit,
        skip_missing_images=options.skip_missing_images,
        how_to_get=program.how_to_get,
    )


def _fingerprint(program: Program, backend: Backend) -> JsonObject:
    """Everything but the input that changes what a job makes."""
    fingerprint = {"program": program.name, **backend.fingerprint(), **program.settings}
    if "retry_sampling" in fingerprint:  # where it always stood: equal runs make equal files
        fingerprint["retry_sampling"] = fingerprint.pop("retry_sampling")
    return fingerprint


def _work(backend: Backend, work: Sequence[Work], processes: Processes, overwrite: bool) -> None:
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
        _write_outputs([task for task, _ in work], before, time.monotonic() - began, processes, overwrite)


def _gather_failures(tasks: Sequence[Task], processes: Processes) -> None:
    """Lets the first process know what failed in the others; waits for all of them."""
    own = [{id_: reply.error for id_, reply in task.failed.items()} for task in tasks]
    for said in processes.gather(json.dumps(own)):
        for task, failed in zip(tasks, json.loads(said), strict=True):
            task.failed.update({id_: ChatReply(id_, "", "failed", error=error) for id_, error in failed.items()})


def _write_outputs(
    tasks: Sequence[Task], before: Set[str], seconds: float, processes: Processes, overwrite: bool
) -> None:
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
        reports += name_errors(task.file.output, task.errors(replies), overwrite)
    if made:
        rate = f"{new_tokens / seconds:.1f} tokens/s"
        processes.say(f"{made} replies, {new_tokens:,} new tokens in {seconds:.1f} s ({rate})")
    for line in reports:
        processes.say(line)
    if failures:
        raise UserError(*failures)


def _generate(backend: Backend, asked: dict[str, tuple[Pending, Task]], processes: Processes) -> float:
    """Takes a reply to each request, and to what is asked after it; returns the time at which the backend was ready.

    A process asks what follows itself, when all its requests of the round before have replies.

    Args:
        backend: what answers.
        asked: requests by their id; empty afterwards.
        processes: the first of them shows a bar.
    """
    with backend.open() as generator:
        began = time.monotonic()
        new_tokens = 0
        # tqdm's None: no bar where stderr is not a terminal.
        with tqdm(total=len(asked), unit=" replies", disable=None if processes.is_first else True) as bar:
            while asked:
                following: dict[str, tuple[Pending, Task]] = {}
                for reply in generate(generator, (pending.request for pending, _ in asked.values())):
                    pending, task = asked.pop(reply.id)
                    for new in task.take(pending, reply, backend):
                        following[new.request.id] = new, task
                    new_tokens += reply.usage.new_tokens
                    bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
                    bar.update()
                asked = following
                bar.total += len(following)
    return began
