"""The output files of a job: `<output>.settings` beside each says what it was made with, so that none is mistaken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmrole.base.errors import Problems, UserError
from mmrole.base.files import read_json, write_json, write_json_list
from mmrole.base.journal_files import JournalState, state
from mmrole.base.journal_lines import differences
from mmrole.base.json_values import JsonObject
from mmrole.data.image_file import ImageFile
from mmrole.data.requests import ChatReply
from mmrole.jobs.inputs import InputFile
from mmrole.jobs.origins import noted
from mmrole.jobs.tasks import Task

FAILED_REQUESTS = "failed"
"""The entry of the settings that says how many requests have failed; it is there where any have."""

NOTED = "noted"
"""The entry of the settings with what is known only since there are replies. It is not compared."""


def find_finished(
    files: Sequence[InputFile], fingerprints: Sequence[JsonObject], images: Sequence[Mapping[Path, ImageFile]]
) -> tuple[set[Path], dict[Path, int]]:
    """The outputs that are complete, and what this run would make; and those that only look so.

    Args:
        files: the inputs.
        fingerprints: what each output would be made with.
        images: the image files of each input, by the path that records have for them.

    Returns:
        Those that are complete; and those in which requests have failed although their journal is gone, with the number
        of these requests: what was replied to the others is not known any more.

    Raises:
        UserError: an output is there, but is not what this run would make.
    """
    finished, failed, problems = set(), {}, Problems()
    for file, fingerprint, shown_images in zip(files, fingerprints, images, strict=True):
        if state(file.output) is not JournalState.FINISHED:
            continue
        finished.add(file.output)
        settings = _settings_file(file.output)
        if not settings.is_file():
            problems.add(f"{file.output} is not known to be this program's work (there is no {settings.name})")
            continue
        if [_id(obj) for obj in read_json(file.output)] != [record.id for record in file.records]:
            problems.add(f"{file.output} holds other records than the {len(file.records)} of this run")
            continue
        made_with = read_json(settings, dict)
        n_failed = made_with.pop(FAILED_REQUESTS, 0)
        made_with.pop(NOTED, None)
        changes = differences(made_with, _made_with(fingerprint, file, shown_images))
        if changes:
            problems.add(f"{file.output} was made with other settings: {', '.join(changes)}")
        elif n_failed:
            finished.remove(file.output)
            failed[file.output] = n_failed
    problems.raise_if_any("the output is there already", "give another --output_dir, or start anew with --overwrite")
    return finished, failed


def refuse_folders(files: Iterable[InputFile]) -> None:
    """Makes sure that the outputs, or what is there of them, are files, so that they can be written in the end.

    Raises:
        UserError: something else is in their place.
    """
    for file in files:
        for path in (file.output, _settings_file(file.output)):
            if os.path.exists(path) and not path.is_file():
                raise UserError(f"{path} is not a regular file; move it away, or give another --output_dir")


def write_output(task: Task, replies: Mapping[str, ChatReply]) -> None:
    """Writes the output, then what it was made with, and removes the journal last: without one, it is complete.

    The journal stays where a reply failed or was refused: the same command asks again what failed, with --retry_refused
    what was refused.

    Raises:
        UserError: a file cannot be written, or another job works on the output; the journal is kept.
    """
    task.journal.confirm_lock()
    write_json_list(task.file.output, task.results(replies))
    made_with = _made_with(task.fingerprint, task.file, task.images)
    if told := noted(replies.values()):
        made_with |= {NOTED: told}
    if task.failed:
        made_with |= {FAILED_REQUESTS: len(task.failed)}
    write_json(_settings_file(task.file.output), made_with)
    if all(reply.error is None for reply in replies.values()):
        task.journal.remove()


def _made_with(fingerprint: JsonObject, file: InputFile, images: Mapping[Path, ImageFile]) -> JsonObject:
    """What an output was made with: the fingerprint, and one hash of all images in the order of the records."""
    hashes = "".join(images[Path(record.image)].sha256 for record in file.records if record.image is not None)
    return {**fingerprint, "images": hashlib.sha256(hashes.encode()).hexdigest()}


def _id(obj: object) -> object:
    return obj.get("id") if isinstance(obj, dict) else None


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".settings")
