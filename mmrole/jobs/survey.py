"""Looks over all that a job has to do, before it touches anything: inputs, images, backend, what is finished."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmrole.backends.backend import Backend, ProcessPlace, Rehearsing
from mmrole.base.errors import UserError
from mmrole.base.journal_files import JournalState, read_done, state
from mmrole.base.json_values import JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.requests import ChatRequest
from mmrole.jobs.exchanges import Exchange
from mmrole.jobs.inputs import InputFile, find_images, find_inputs, read_inputs
from mmrole.jobs.options import TEST_FILES, JobOptions
from mmrole.jobs.outputs import find_finished, refuse_folders
from mmrole.jobs.processes import Processes
from mmrole.jobs.programs import Program
from mmrole.jobs.tasks import begin_exchanges, decode_replies

FindBackend = Callable[[ProcessPlace], Backend]


class PlannedFile(NamedTuple):
    """An input file, and what there is to do about it.

    Attributes:
        file: the input.
        fingerprint: what the output would be made with.
        images: the image files, by the path that records have for them.
        exchanges: of its records, with their first requests; None where the output is finished.
        warnings: about its prompts.
        n_failed: the requests that have failed in an output whose journal is gone: all are asked again.
    """

    file: InputFile
    fingerprint: JsonObject
    images: Mapping[Path, ImageFile]
    exchanges: list[Exchange] | None
    warnings: list[str]
    n_failed: int = 0


class Survey(NamedTuple):
    """What a job has to do, and what answers."""

    backend: Backend
    planned: list[PlannedFile]


def look_over(program: Program, options: JobOptions, find_backend: FindBackend, processes: Processes) -> Survey:
    """Reads and checks everything, says what is used, and what is left out. Nothing is written.

    Raises:
        UserError: something cannot be used.
    """
    given = _read_inputs(program, options, processes)
    files = [file for file in given if file.records]
    shows_progress = processes.is_first and sys.stderr.isatty()
    backend = find_backend(
        ProcessPlace(processes.local_rank, processes.local_world_size, shows_progress, processes.world_size)
    )
    common = _fingerprint(program, backend)
    fingerprints = [{**common, "input": file.sha256} for file in files]
    images = [find_images(file, options.image_dir) for file in files]
    finished, failed = (set(), {}) if options.overwrite else find_finished(files, fingerprints, images)
    refuse_folders(files)
    if len(finished) < len(files):
        backend.fit([])
    planned = []
    for file, fingerprint, of_file in zip(files, fingerprints, images, strict=True):
        exchanges, warnings = None, []
        if file.output not in finished:
            exchanges, warnings = begin_exchanges(program, file, of_file, backend)
        planned.append(PlannedFile(file, fingerprint, of_file, exchanges, warnings, failed.get(file.output, 0)))
    if len(finished) < len(files):
        processes.say(str(backend))
    for file in given:
        if file.left_out:
            processes.say(file.describe_left_out())
        if not file.records:
            processes.say(f"{file.path}: nothing to do, {file.why_empty()}; no output is written")
    return Survey(backend, planned)


def rehearse_job(survey: Survey, options: JobOptions) -> str:
    """What has come, in place of replies, of the requests that have none yet; those that follow from replies are not
    known.

    Raises:
        UserError: the backend cannot do so, or a journal does not fit.
    """
    backend = survey.backend
    if not isinstance(backend, Rehearsing):
        raise UserError("--dry_run is for a server's model, which is paid for; leave it out")
    return backend.rehearse([request for file in survey.planned for request in _pending(file, backend, options)])


def _pending(planned: PlannedFile, backend: Backend, options: JobOptions) -> list[ChatRequest]:
    if planned.exchanges is None:
        return []
    output = planned.file.output
    done = {} if options.overwrite else read_done(output, planned.fingerprint)
    replies, _ = decode_replies(output, done)
    requests = []
    for exchange in planned.exchanges:
        exchange.replay(replies)
        if options.retry_refused:
            exchange.forget_refusals()
        exchange.fit(backend)
        requests += [exchange.fitted(id_) for id_ in exchange.pending]
    return requests


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
