"""The output files of a job: `<output>.settings` beside each says what it was made with, so that none is mistaken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_utils.errors import Problems
from data_utils.files import read_json, write_json
from data_utils.journal import State, state
from data_utils.journal_lines import differences
from mmrole.generation.inputs import InputFile
from mmrole.generation.tasks import Task

Json = dict[str, Any]


def find_finished(
    files: Sequence[InputFile], fingerprints: Sequence[Json], images: Sequence[Mapping[str, str]]
) -> set[Path]:
    """The outputs that are complete, and what this run would make.

    Args:
        files: the inputs.
        fingerprints: what each output would be made with.
        images: hash of each record's image by record id, for each input.

    Raises:
        UserError: an output is there, but is not what this run would make.
    """
    finished, problems = set(), Problems()
    for file, fingerprint, shown_images in zip(files, fingerprints, images, strict=True):
        if state(file.output) is not State.FINISHED:
            continue
        finished.add(file.output)
        settings = _settings_file(file.output)
        if not settings.is_file():
            problems.add(f"{file.output} is not known to be this program's work (there is no {settings.name})")
            continue
        if [_id(obj) for obj in read_json(file.output)] != [record.id for record in file.records]:
            problems.add(f"{file.output} holds other records than the {len(file.records)} of this run")
            continue
        changes = differences(read_json(settings, dict), _made_with(fingerprint, shown_images))
        if changes:
            problems.add(f"{file.output} was made with other settings: {', '.join(changes)}")
    problems.raise_if_any("the output is there already", "give another --output_dir, or start anew with --overwrite")
    return finished


def write_output(task: Task, results: Sequence[Json]) -> None:
    """Writes the output, then what it was made with, and removes the journal last: without one, it is complete.

    Raises:
        UserError: a file cannot be written, or another job works on the output; the journal is kept.
    """
    task.journal.confirm_lock()
    write_json(task.file.output, list(results))
    write_json(_settings_file(task.file.output), _made_with(task.fingerprint, task.images))
    task.journal.remove()


def _made_with(fingerprint: Json, images: Mapping[str, str]) -> Json:
    """What an output was made with: the fingerprint, and one hash of all images in the order of the records."""
    return {**fingerprint, "images": hashlib.sha256("".join(images.values()).encode()).hexdigest()}


def _id(obj: object) -> object:
    return obj.get("id") if isinstance(obj, dict) else None


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".settings")
