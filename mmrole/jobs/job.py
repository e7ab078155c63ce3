"""A long job of a script: from its input files over requests, a backend and journals to the output files.

What makes a program of its own is a `Program`; reading, checking, resuming, several processes, interruptions and
reporting are the same for all, and are here. What is on disk at any moment: see `mmrole.base.journal`; beside a
finished output lies `<output>.settings`, which says what it was made with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

from tqdm import tqdm

from mmrole.backends.backend import Backend, find_engine
from mmrole.backends.options import TEST_FILES
from mmrole.base.errors import UserError
from mmrole.base.journal import Journal, JournalState, state
from mmrole.base.journal_files import remove_leftovers
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.jobs.inputs import InputFile, find_images, find_inputs, read_inputs
from mmrole.jobs.outputs import find_finished, refuse_folders, write_output
from mmrole.jobs.processes import Interrupted, Processes, interruptible
from mmrole.jobs.sharing import share
from mmrole.jobs.tasks import Program, Task, make_requests

__all__ = ["Program", "run"]

Json = dict[str, Any]


FindBackend = Callable[[argparse.Namespace, Processes, bool], Backend]


class Work(NamedTuple):
    """A task, and what of it has no reply yet."""

    task: Task
    pending: list[ChatRequest]


def run(program: Program, options: argparse.Namespace, find_backend: FindBackend = find_engine) -> int:
    """Runs a job with the flags of `options.add_arguments`; returns the exit status.

    Args:
        program: what is done with a record.
        options: the flags.
        find_backend: what answers, from the flags; the third argument says whether replies may be tried again.

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
                _work(backend, work, processes)
    except Interrupted as interruption:
        kept = sum(len(task.journal.collect()) for task, _ in work)
        processes.say(f"interrupted: {kept} replies are kept, and {again} goes on")
        return interruption.status
    return 0


def _prepare(
    program: Program,
    options: argparse.Namespace,
    find_backend: FindBackend,
    processes: Processes,
    work: list[Work],
    journals: ExitStack,
) -> Backend:
    """Checks everything, opens the journals of what is not finished, and says what there is to do."""
    given = _read_inputs(program, options, processes)
    files = [file for file in given if file.records]
    backend = find_backend(options, processes, program.retry is not None)
    common = _fingerprint(program, backend)
    fingerprints = [{**common, "input": file.sha256} for file in files]
    images = [find_images(file, options.image_dir) for file in files]
    finished = set() if options.overwrite else find_finished(files, fingerprints, images)
    refuse_folders(files)
    context = None
    if len(finished) < len(files):
        context = backend.check()
        processes.say(str(backend))
    for file in given:
        if file.left_out:
            processes.say(file.describe_left_out())
        if not file.records:
            processes.say(f"{file.path}: nothing to do, {file.why_empty()}; no output is written")
    for file, fingerprint, shown_images in zip(files, fingerprints, images, strict=True):
        if file.output in finished:
            remove_leftovers(file.output)
            processes.say(f"{file.output}: finished before, {len(file.records)} records; --overwrite starts anew")
            continue
        requests = make_requests(program, file, shown_images, backend.settings, context, processes)
        journal = Journal.open(file.output, fingerprint, processes.rank, processes.world_size, options.overwrite)
        journals.enter_context(journal)
        task = Task(program, file, requests, shown_images, fingerprint, backend.sampling, journal)
        pending, complete = task.progress()
        work.append(Work(task, pending))
        processes.say(f"{file.path}: {len(file.records)} records, {complete} of them done before")
        if options.overwrite:
            processes.say(f"{file.output}: started anew; after an interruption go on without --overwrite")
    return backend


def _read_inputs(program: Program, options: argparse.Namespace, processes: Processes) -> list[InputFile]:
    names = [options.input_file]
    if options.input_file is None:
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


def _fingerprint(program: Program, backend: Backend) -> Json:
    """Everything but the input that changes what a job makes."""
    fingerprint = {"program": program.name, **backend.fingerprint(), **program.settings}
    if program.retry is not None and not backend.settings.do_sample:
        fingerprint["retry_sampling"] = asdict(backend.sampling)
    return fingerprint


def _work(backend: Backend, work: Sequence[Work], processes: Processes) -> None:
    """Generates what is pending; the first process then writes the output files."""
    before = {id_ for task, _ in work for id_ in task.journal.done}
    task_of = {request.id: task for task, pending in work for request in pending}
    requests = share((request for _, pending in work for request in pending), processes.rank, processes.world_size)
    began = time.monotonic()
    if requests:
        began = _generate(backend, requests, task_of, processes)
    if not processes.is_first:
        for task, _ in work:
            task.journal.close()
    processes.meet()
    if processes.is_first:
        _write_outputs([task for task, _ in work], before, time.monotonic() - began, backend.settings, processes)


def _write_outputs(
    tasks: Sequence[Task], before: Set[str], seconds: float, settings: GenerationSettings, processes: Processes
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
        new = [reply for id_, reply in replies.items() if id_ not in before]
        made += len(new)
        new_tokens += sum(reply.usage.new_tokens for reply in new)
        cut = sum(reply.finish_reason == "length" for reply in replies.values())
        empty = sum(not reply.text for reply in replies.values())
        processes.say(
            f"{task.file.output}: {len(task.file.records)} records written; of {len(replies)} replies "
            f"{cut} are cut at {settings.max_new_tokens} new tokens, {empty} are empty"
        )
        reports += task.program.report(task.file.output, task.results(replies))
    if made:
        rate = f"{new_tokens / seconds:.1f} tokens/s"
        processes.say(f"{made} replies, {new_tokens:,} new tokens in {seconds:.1f} s ({rate})")
    for line in reports:
        processes.say(line)
    if failures:
        raise UserError(*failures)


def _generate(
    backend: Backend, requests: Sequence[ChatRequest], task_of: Mapping[str, Task], processes: Processes
) -> float:
    """Journals a reply to each request, and to its retries; returns the time at which the backend was ready.

    A process asks its retries itself, when all its requests of the round before have replies.
    """
    with backend.open() as generate:
        began = time.monotonic()
        new_tokens = 0
        asked = {request.id: (request, task_of[request.id]) for request in requests}
        # tqdm's None: no bar where stderr is not a terminal.
        with tqdm(total=len(asked), unit=" replies", disable=None if processes.is_first else True) as bar:
            while asked:
                retries = {}
                for reply in generate([request for request, _ in asked.values()]):
                    request, task = asked[reply.id]
                    task.append(request, reply)
                    retry = task.retry(request, reply)
                    if retry is not None:
                        retries[retry.id] = retry, task
                    new_tokens += reply.usage.new_tokens
                    bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
                    bar.update()
                asked = retries
                bar.total += len(retries)
    return began
