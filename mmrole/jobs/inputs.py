"""The files that a job reads, checked completely before anything slow begins: records, images, ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrole.base.errors import Problems, UserError, listed, shown
from mmrole.base.files import read_records, sha256
from mmrole.data.image_file import ImageFile
from mmrole.data.images import Selection, resolve_image, select_images
from mmrole.jobs.programs import JobRecord

_LISTED = 10


@dataclass(frozen=True)
class InputFile:
    """A file of records and the file that is made of it.

    Attributes:
        path: the input.
        output: a file of the same name in the output folder.
        records: those to work on, in order.
        left_out: those without their image file, where these may be skipped.
        sha256: of the input.
    """

    path: Path
    output: Path
    records: list[JobRecord]
    left_out: list[JobRecord]
    sha256: str

    def why_empty(self) -> str:
        """Why a file without records to work on has none."""
        return "none of its records has its image file" if self.left_out else "it holds no records"

    def describe_left_out(self) -> str:
        """What is left out and what that means; the first ten ids."""
        ids = listed([shown(record.id) for record in self.left_out], _LISTED)
        return (
            f"{self.path}: {len(self.left_out)} of {len(self.left_out) + len(self.records)} records have no image file "
            f"and are left out; they will not be in {self.output}: {ids}"
        )


def find_inputs(input_dir: Path, names: Sequence[str], how_to_get: str) -> tuple[list[str], list[Path]]:
    """Which of the files are in a folder, and the paths of those that are not.

    Raises:
        UserError: none is.
    """
    _check_folder(input_dir, how_to_get)
    present = [name for name in names if os.path.lexists(input_dir / name)]
    if not present:
        raise UserError(
            f"{input_dir} has no {' or '.join(names)}; give another --input_dir, or a file of it as --input_file "
            f"({how_to_get})"
        )
    return present, [input_dir / name for name in names if name not in present]


def read_inputs(
    input_dir: Path,
    names: Sequence[Path | str],
    output_dir: Path,
    record_type: type[JobRecord],
    image_dir: Path,
    *,
    limit: int | None,
    skip_missing_images: bool,
    how_to_get: str,
) -> list[InputFile]:
    """Reads files of records and checks every record and image.

    Args:
        input_dir: folder of the input files.
        names: the files in it.
        output_dir: folder of the output.
        record_type: what the files hold.
        image_dir: folder of the images, which need not be there where no record has one.
        limit: take only so many records of each file.
        skip_missing_images: leave records without their image file out; otherwise they are an error.
        how_to_get: what makes or fetches the input folder.

    Raises:
        UserError: the input cannot be used; all problems together.
    """
    _check_folder(input_dir, how_to_get)
    if os.path.realpath(output_dir) == os.path.realpath(input_dir):
        raise UserError(f"{output_dir} is the input folder; give another --output_dir")
    problems = Problems()
    files = []
    for name in names:
        path = input_dir / name
        output = output_dir / path.name
        if output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"{output} is the input; give another --output_dir")
        files.append(_read(path, output, record_type, image_dir, problems, limit, skip_missing_images))
    if not image_dir.is_dir() and any(record.image is not None for file in files for record in file.records):
        problems.add(f"the image folder {image_dir} does not exist")
    _check_ids(files, problems)
    if not problems and not any(file.records for file in files):
        for file in files:
            problems.add(f"{file.path}: nothing to do, {file.why_empty()}")
    missing = sum(len(file.left_out) for file in files)
    remedy = "correct the input and run the same command again"
    if missing and not skip_missing_images:
        remedy = (
            f"the image files of {missing} records are missing: put them below {image_dir} (bash scripts/download.sh "
            "images fetches those of COCO), or leave these records out with --skip_missing_images"
        )
    problems.raise_if_any("the input cannot be used", remedy)
    return files


def find_images(file: InputFile, image_dir: Path) -> dict[Path, ImageFile]:
    """The image files of an input, by the path that records have for them.

    Raises:
        UserError: one cannot be read.
    """
    names = {record.image for record in file.records if record.image is not None}
    return {Path(name): ImageFile.of(resolve_image(image_dir, name)) for name in names}


def _check_folder(input_dir: Path, how_to_get: str) -> None:
    if not input_dir.is_dir():
        raise UserError(f"the input folder {input_dir} does not exist; give another --input_dir ({how_to_get})")


def _read(
    path: Path,
    output: Path,
    record_type: type[JobRecord],
    image_dir: Path,
    problems: Problems,
    limit: int | None,
    skip_missing: bool,
) -> InputFile:
    try:
        hash_ = sha256(path)
        records = read_records(path, record_type, problems)[:limit]
        if sha256(path) != hash_:
            raise UserError(f"{path} was changed while it was read")
    except UserError as error:
        problems.add(error)
        return InputFile(path, output, [], [], "")
    selection = Selection(records, [])
    if image_dir.is_dir():
        selection = select_images(records, image_dir, problems, skip_missing)
    return InputFile(path, output, selection.usable, selection.missing, hash_)


def _check_ids(files: Sequence[InputFile], problems: Problems) -> None:
    """Replies are told apart by the record's id, from which the draws of its sampling follow as well."""
    places: dict[str, Path] = {}
    for file in files:
        for record in file.records:
            if places.setdefault(record.id, file.path) != file.path:
                problems.add(f"{record.where}: this id is in {places[record.id]} as well; use --input_file for each")
