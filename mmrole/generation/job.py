"""A long job of a script: from its input files over requests, engine and journals to the output files.

What makes a program of its own is a `Program`; reading, checking, resuming, several processes, interruptions and
reporting are the same for all, and are here. What is on disk at any moment: see `data_utils.journal`; beside a finished
output lies `<output>.settings`, which says what it was made with.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_utils.errors import Problems, UserError, shown
from data_utils.files import read_json, sha256, write_json
from data_utils.images import resolve_image
from data_utils.journal import Journal, State, state
from data_utils.records import Sample
from mmrole.generation.inputs import InputFile, read_inputs
from mmrole.generation.loading import Model, check_checkpoint, find_model, load
from mmrole.generation.options import TEST_FILES
from mmrole.generation.processes import Interrupted, Processes, interruptible
from mmrole.generation.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.generation.sharing import share

Json = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """What a script does with a record.

    Attributes:
        name: of the script, as journals and messages name it.
        record_type: what its input files hold.
        requests: the requests of a record (whose image file is given); their ids are unique.
        result: the record's place in the output, from the replies to its requests by request id.
    """

    name: str
    record_type: type[Sample]
    requests: Callable[[Sample, Path, GenerationSettings], list[ChatRequest]]
    result: Callable[[Sample, Mapping[str, ChatReply]], Json]


@dataclass(frozen=True)
class Task:
    """An input file with its requests, record by record, and its journal."""

    file: InputFile
    requests: list[list[ChatRequest]]
    images: Mapping[str, str]
    """Hash of each record's image, by record id."""
    fingerprint: Json
    journal: Journal

    @property
    def image_of(self) -> dict[str, str]:
        """Hash of the image that a request shows, by request id."""
        records = zip(self.file.records, self.requests, strict=True)
        return {request.id: self.images[record.id] for record, of_record in records for request in of_record}

    @property
    def pending(self) -> list[ChatRequest]:
        """Requests without a reply in the journal."""
        return [request for of_record in self.requests for request in of_record if request.id not in self.journal.done]

    @property
    def done(self) -> int:
        """Records that are complete."""
        return sum(all(request.id in self.journal.done for request in of_record) for of_record in self.requests)


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
                _work(program, options, model, tasks, processes)
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
    )
    files = [file for file in given if file.records]
    model = find_model(options, processes.local_rank, processes.local_world_size)
    common = {"program": program.name, **model.fingerprint()}
    fingerprints = [{**common, "input": sha256(file.path)} for file in files]
    images = [_image_hashes(file, options.image_dir) for file in files]
    finished = _finished(files, fingerprints, images, options.overwrite)
    if len(finished) < len(files):
        check_checkpoint(model.checkpoint)
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
        task = _open(program, file, fingerprint, shown_images, model.settings, options, processes, journals)
        tasks.append(task)
        processes.say(f"{file.path}: {len(file.records)} records, {task.done} of them done before")
        if options.overwrite:
            processes.say(f"{file.output}: started anew; after an interruption go on without --overwrite")
    return model


def _image_hashes(file: InputFile, image_dir: Path) -> dict[str, str]:
    """SHA-256 of each record's image file, by record id."""
    hashes = {image: sha256(resolve_image(image_dir, image)) for image in {record.image for record in file.records}}
    return {record.id: hashes[record.image] for record in file.records}


def _made_with(fingerprint: Json, images: Mapping[str, str]) -> Json:
    """What an output was made with: the fingerprint, and one hash of all images in the order of the records."""
    return {**fingerprint, "images": hashlib.sha256("".join(images.values()).encode()).hexdigest()}


def _finished(
    files: Sequence[InputFile], fingerprints: Sequence[Json], images: Sequence[Mapping[str, str]], overwrite: bool
) -> set[Path]:
    """The outputs that are complete, and what this run would make.

    Raises:
        UserError: an output is there, but is not what this run would make.
    """
    finished, problems = set(), Problems()
    for file, fingerprint, shown_images in zip(files, fingerprints, images, strict=True):
        if overwrite or state(file.output) is not State.FINISHED:
            continue
        finished.add(file.output)
        settings = _settings_file(file.output)
        if not settings.is_file():
            problems.add(f"{file.output} is not known to be this program's work (there is no {settings.name})")
            continue
        if [_id(obj) for obj in read_json(file.output)] != [record.id for record in file.records]:
            problems.add(f"{file.output} holds other records than the {len(file.records)} of this run")
            continue
        made_with, expected = read_json(settings, dict), _made_with(fingerprint, shown_images)
        changes = [
            f"{name} was {shown(made_with.get(name))}, is {shown(expected.get(name))}"
            for name in expected | made_with
            if made_with.get(name) != expected.get(name)
        ]
        if changes:
            problems.add(f"{file.output} was made with other settings: {', '.join(changes)}")
    problems.raise_if_any("the output is there already", "give another --output_dir, or start anew with --overwrite")
    return finished


def _id(obj: object) -> object:
    return obj.get("id") if isinstance(obj, dict) else None


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".settings")


def _open(
    program: Program,
    file: InputFile,
    fingerprint: Json,
    image_hashes: Mapping[str, str],
    settings: GenerationSettings,
    options: argparse.Namespace,
    processes: Processes,
    journals: ExitStack,
) -> Task:
    requests = [
        program.requests(record, resolve_image(options.image_dir, record.image), settings) for record in file.records
    ]
    journal = Journal.open(file.output, fingerprint, processes.rank, processes.world_size, options.overwrite)
    journals.enter_context(journal)
    # Which records there are is no part of the fingerprint: an interrupted --limit, or images that were missing, may
    # be followed by more records. Fewer would lose what is done.
    lost = sorted(journal.done.keys() - {request.id for of_record in requests for request in of_record})
    if lost:
        raise UserError(
            f"{file.output}: its journal has {len(lost)} replies to records that this run leaves out (first "
            f"{shown(lost[0])}); leave --limit out and put missing images back, or start anew with --overwrite"
        )
    task = Task(file, requests, image_hashes, fingerprint, journal)
    now = task.image_of
    changed = [id_ for id_, payload in journal.done.items() if payload.get("image") != now[id_]]
    if changed:
        raise UserError(
            f"{file.output}: {len(changed)} journaled replies were about other images than those there now (first "
            f"{shown(changed[0])}); put the images back, or start anew with --overwrite"
        )
    return task


def _work(
    program: Program, options: argparse.Namespace, model: Model, tasks: Sequence[Task], processes: Processes
) -> None:
    """Generates what is pending; the first process then writes the output files."""
    pending = {request.id: task for task in tasks for request in task.pending}
    images = {id_: image for task in tasks for id_, image in task.image_of.items()}
    requests = share((request for task in tasks for request in task.pending), processes.rank, processes.world_size)
    began = time.monotonic()
    if requests:
        began = _generate(model, requests, pending, images, options.max_batch_tokens, processes)
    if not processes.is_first:
        for task in tasks:
            task.journal.close()
    processes.meet()
    if not processes.is_first:
        return
    seconds = time.monotonic() - began
    new_tokens = 0
    for task in tasks:
        replies = {id_: _reply(id_, payload) for id_, payload in task.journal.collect().items()}
        new_tokens += sum(reply.new_tokens for id_, reply in replies.items() if id_ in pending)
        _finish(program, task, replies)
        cut = sum(reply.finish_reason == "length" for reply in replies.values())
        empty = sum(not reply.text for reply in replies.values())
        processes.say(
            f"{task.file.output}: {len(task.file.records)} records written; of {len(replies)} replies "
            f"{cut} are cut at {model.settings.max_new_tokens} new tokens, {empty} are empty"
        )
    if pending:
        rate = f"{new_tokens / seconds:.1f} tokens/s"
        processes.say(f"{len(pending)} replies, {new_tokens:,} new tokens in {seconds:.1f} s ({rate})")


def _generate(
    model: Model,
    requests: Sequence[ChatRequest],
    tasks: Mapping[str, Task],
    images: Mapping[str, str],
    max_batch_tokens: int | None,
    processes: Processes,
) -> float:
    """Journals a reply to each request; returns the time at which the model was ready."""
    loaded, tokenizer = load(model, progress=processes.is_first and sys.stderr.isatty())
    from torch import OutOfMemoryError

    from mmrole.generation.engine import Engine

    began = time.monotonic()
    new_tokens = 0
    try:
        engine = Engine(loaded, tokenizer, max_batch_tokens)
        # tqdm's None: no bar where stderr is not a terminal.
        with tqdm(total=len(requests), unit=" replies", disable=None if processes.is_first else True) as bar:
            for reply in engine.generate(requests):
                tasks[reply.id].journal.append(reply.id, {**_payload(reply), "image": images[reply.id]})
                new_tokens += reply.new_tokens
                bar.set_postfix_str(f"{new_tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
                bar.update()
    except OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}); free it, or lower --max_batch_tokens; what is "
            "finished is kept: run the same command again to go on"
        ) from None
    except OSError as error:
        raise UserError(
            f"an image cannot be read any more: {error}; what is finished is kept: run the same command again to go on"
        ) from None
    return began


def _finish(program: Program, task: Task, replies: Mapping[str, ChatReply]) -> None:
    """Writes the output, then what it was made with, and removes the journal last: without one, it is complete."""
    results = [
        program.result(record, {request.id: replies[request.id] for request in requests})
        for record, requests in zip(task.file.records, task.requests, strict=True)
    ]
    write_json(task.file.output, results)
    write_json(_settings_file(task.file.output), _made_with(task.fingerprint, task.images))
    task.journal.remove()


def _payload(reply: ChatReply) -> Json:
    return {name: value for name, value in asdict(reply).items() if name != "id"}


def _reply(id_: str, payload: Json) -> ChatReply:
    fields = {name: value for name, value in payload.items() if name != "image"}
    return ChatReply(**{**fields, "id": id_, "token_ids": tuple(payload["token_ids"])})
