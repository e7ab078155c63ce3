"""A long job of a script: from its input files over requests, engine and journals to the output files.

What makes a program of its own is a `Program`; reading, checking, resuming, several processes, interruptions and
reporting are the same for all, and are here. What is on disk at any moment: see `data_utils.journal`; beside a finished
output lies `<output>.settings`, which says what it was made with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_utils.errors import UserError
from data_utils.files import sha256
from data_utils.images import resolve_image
from data_utils.journal import Journal
from mmrole.generation.inputs import InputFile, read_inputs
from mmrole.generation.loading import Model, check_checkpoint, find_model, load
from mmrole.generation.options import TEST_FILES
from mmrole.generation.outputs import find_finished, write_output
from mmrole.generation.processes import Interrupted, Processes, interruptible
from mmrole.generation.requests import ChatRequest
from mmrole.generation.sharing import share
from mmrole.generation.tasks import Program, Task, check_journal, make_requests

__all__ = ["Program", "run"]

Json = dict[str, Any]


def run(program: Program, options: argparse.Namespace) -> int:
    """Runs a job with the flags of `options.add_arguments`; returns the exit status.

    Raises:
        UserError: for everything that the user can mend; what is finished is kept.
    """
    processes = Processes.from_environment()
    tasks: list[Task] = []
    again = "the same command without --overwrite" if options.overwrite else "the same command"
    try:
        with interruptible(), processes, ExitStack() as journals:
            model = processes.first_alone(lambda: _prepare(program, options, processes, tasks, journals))
            if tasks:
                _work(options, model, tasks, processes)
    except Interrupted as interruption:
        kept = sum(len(task.journal.collect()) for task in tasks)
        processes.say(f"interrupted: {kept} replies are kept, and {again} goes on")
        return interruption.status
    return 0


def _prepare(
    program: Program, options: argparse.Namespace, processes: Processes, tasks: list[Task], journals: ExitStack
) -> Model:
    """Checks everything, opens the journals of what is not finished, and says what there is to do."""
    given = read_inputs(
        options.input_dir,
        TEST_FILES if options.input_file is None else [options.input_file],
        options.output_dir,
        program.record_type,
        options.image_dir,
        limit=options.limit,
        skip_missing_images=options.skip_missing_images,
        how_to_get=program.how_to_get,
    )
    files = [file for file in given if file.records]
    place = processes.local_rank, processes.local_world_size
    model = find_model(options, *place, retries=program.retry is not None)
    common = _fingerprint(program, model)
    fingerprints = [{**common, "input": sha256(file.path)} for file in files]
    images = [_image_hashes(file, options.image_dir) for file in files]
    finished = set() if options.overwrite else find_finished(files, fingerprints, images)
    context = None
    if len(finished) < len(files):
        context = check_checkpoint(model.checkpoint)
        processes.say(str(model))
    for file in given:
        if file.left_out:
            processes.say(file.describe_left_out())
        if not file.records:
            processes.say(f"{file.path}: nothing to do, {file.why_empty()}; no output is written")
    for file, fingerprint, shown_images in zip(files, fingerprints, images, strict=True):
        if file.output in finished:
            processes.say(f"{file.output}: finished before, {len(file.records)} records; --overwrite starts anew")
            continue
        requests = make_requests(program, file, model.settings, options.image_dir, context, processes)
        journal = Journal.open(file.output, fingerprint, processes.rank, processes.world_size, options.overwrite)
        journals.enter_context(journal)
        task = Task(program, file, requests, shown_images, fingerprint, model.sampling, journal)
        check_journal(task)
        tasks.append(task)
        processes.say(f"{file.path}: {len(file.records)} records, {task.done} of them done before")
        if options.overwrite:
            processes.say(f"{file.output}: started anew; after an interruption go on without --overwrite")
    return model


def _fingerprint(program: Program, model: Model) -> Json:
    """Everything but the input that changes what a job makes."""
    fingerprint = {"program": program.name, **model.fingerprint(), **program.settings}
    if program.retry is not None and not model.settings.do_sample:
        fingerprint["retry_sampling"] = asdict(model.sampling)
    return fingerprint


def _image_hashes(file: InputFile, image_dir: Path) -> dict[str, str]:
    """SHA-256 of each record's image file, by record id."""
    hashes = {image: sha256(resolve_image(image_dir, image)) for image in {record.image for record in file.records}}
    return {record.id: hashes[record.image] for record in file.records}


def _work(options: argparse.Namespace, model: Model, tasks: Sequence[Task], processes: Processes) -> None:
    """Generates what is pending; the first process then writes the output files."""
    before = {id_ for task in tasks for id_ in task.journal.done}
    task_of = {request.id: task for task in tasks for request in task.pending}
    requests = share((request for task in tasks for request in task.pending), processes.rank, processes.world_size)
    began = time.monotonic()
    if requests:
        began = _generate(model, requests, task_of, options.max_batch_tokens, processes)
    if not processes.is_first:
        for task in tasks:
            task.journal.close()
    processes.meet()
    if not processes.is_first:
        return
    seconds = time.monotonic() - began
    made = new_tokens = 0
    reports = []
    for task in tasks:
        replies = task.collect()
        new = [reply for id_, reply in replies.items() if id_ not in before]
        made += len(new)
        new_tokens += sum(reply.new_tokens for reply in new)
        results = task.results(replies)
        write_output(task, results)
        cut = sum(reply.finish_reason == "length" for reply in replies.values())
        empty = sum(not reply.text for reply in replies.values())
        processes.say(
            f"{task.file.output}: {len(task.file.records)} records written; of {len(replies)} replies "
            f"{cut} are cut at {model.settings.max_new_tokens} new tokens, {empty} are empty"
        )
        reports += task.program.report(task.file.output, results)
    if made:
        rate = f"{new_tokens / seconds:.1f} tokens/s"
        processes.say(f"{made} replies, {new_tokens:,} new tokens in {seconds:.1f} s ({rate})")
    for line in reports:
        processes.say(line)


def _generate(
    model: Model,
    requests: Sequence[ChatRequest],
    task_of: Mapping[str, Task],
    max_batch_tokens: int | None,
    processes: Processes,
) -> float:
    """Journals a reply to each request, and to its retries; returns the time at which the model was ready.

    A process asks its retries itself, when all its requests of the round before have replies.
    """
    fingerprint = task_of[requests[0].id].fingerprint
    loaded, tokenizer = load(model, processes.is_first and sys.stderr.isatty(), fingerprint)
    with _failures_named():
        from mmrole.generation.engine import Engine

        began = time.monotonic()
        new_tokens = 0
        asked = {request.id: (request, task_of[request.id]) for request in requests}
        image_of = {image: hash_ for _, task in asked.values() for image, hash_ in task.image_of.items()}
        engine = Engine(loaded, tokenizer, max_batch_tokens)
        # tqdm's None: no bar where stderr is not a terminal.
        with tqdm(total=len(asked), unit=" replies", disable=None if processes.is_first else True) as bar:
            while asked:
                retries = {}
                for reply in engine.generate([request for request, _ in asked.values()]):
                    request, task = asked[reply.id]
                    task.append(request, reply, image_of[request.image])
                    retry = task.retry(request, reply)
                    if retry is not None:
                        retries[retry.id] = retry, task
                    new_tokens += reply.new_tokens
                    bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
                    bar.update()
                asked = retries
                bar.total += len(retries)
    return began


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
