"""Checks files: which checks a form has, and what one run of them finds."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_utils.checks.characters import check_object, check_raw_text
from data_utils.checks.copies import Copies
from data_utils.checks.dialogues import check_dialogue, check_still
from data_utils.checks.forms import SAMPLES, Form
from data_utils.checks.loading import load_file
from data_utils.checks.pictures import ImageFiles, ImageUse, check_image
from data_utils.checks.problems import Place, Problem
from data_utils.checks.reviews import check_results, check_review, check_rm_sample
from data_utils.checks.samples import check_sample, check_training_sample, missing_samples
from data_utils.checks.shape import check_shape
from data_utils.checks.surroundings import Lengths, Source, Surroundings, find_root, read_surroundings
from mmrole.base.errors import RecordError, Where
from mmrole.base.json_values import Json
from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.dialogues import Dialogue, Still, is_overlooked
from mmrole.data.records import Answer, Review, Sample, TrainingRecord

_RECORDS: dict[Form, tuple[type, Callable[[Any, Place, Source], Iterator[Problem | ImageUse]]]] = {
    Form.DIALOGUES: (Dialogue, check_dialogue),
    Form.ANNOTATIONS: (Still, check_still),
    Form.TEST: (Sample, check_sample),
    Form.ANSWERS: (Answer, check_sample),
    Form.REVIEWS: (Review, check_review),
    Form.TRAINING: (TrainingRecord, check_training_sample),
    Form.RM_TRAINING: (TrainingRecord, check_rm_sample),
}
"""How the records of a list are read, and what is checked then."""

_COUNTED = (*SAMPLES, Form.TRAINING, Form.RM_TRAINING)
"""Forms with records whose tokens are counted."""


class FileReport(NamedTuple):
    """What was found in a file."""

    file: str
    form: Form | None
    """None if the file could not be checked."""
    records: int
    """Records of a list, entries of an object, 1 for a text."""
    problems: list[Problem]


@dataclass
class Checker:
    """One run of checks: what they look up is read once."""

    data_root: Path | None = None
    """The folder of `profiles/` and `data/`; None to look for one around every file."""
    image_dir: Path | None = None
    """The image folder; None for `images/` in the data root, if it is there."""
    form: Form | None = None
    """What all files are; None to recognise each."""
    lengths: Lengths | None = None
    """The limit for the lengths of samples, if there is one."""
    look_at_images: bool = True
    """Whether image files are opened."""
    not_checked: Counter[str] = field(default_factory=Counter)
    """For what could not be checked, and why: the number of files."""

    def __post_init__(self) -> None:
        self._surroundings: dict[Path | None, Surroundings] = {}
        self._images: dict[Path | None, ImageFiles | None] = {}
        self._dialogues: dict[Path | None, Copies] = {}

    def check_file(self, path: Path, home: Path | None = None, known: Form | None = None) -> FileReport:
        """Checks a file. Nothing that is in it raises an error.

        Args:
            path: the file.
            home: where it belongs, if that is elsewhere: its place in the layout and what is around it count.
            known: of a repaired copy, what the file was recognised as.
        """
        home, place = home or path, Place(str(path))
        loaded = load_file(path, home, self.form, place, known)
        if loaded.form is None:
            return FileReport(str(path), None, 0, loaded.problems)
        source = self.source(home, loaded.form)
        copies = Copies()
        if source.form == Form.DIALOGUES:  # their ids name samples, in whichever file they are
            copies = self._dialogues.setdefault(source.around.root, copies)
        problems = [
            *loaded.problems,
            *_check_place(source, place),
            *self.check_value(loaded.value, source, place, copies),
        ]
        self._note_unchecked(source)
        records = len(loaded.value) if isinstance(loaded.value, (dict, list)) else 1
        return FileReport(str(path), loaded.form, records, problems)

    def source(self, path: Path, form: Form) -> Source:
        """What is known about a file from its path and the folder around it."""
        root = self.data_root or find_root(path)
        if root not in self._surroundings:
            self._surroundings[root] = read_surroundings(root)
        image_dir = self.image_dir or (root and root / IMAGE_FOLDER)
        return Source(path, form, self._surroundings[root], self.lengths, image_dir)

    def check_value(self, value: Json, source: Source, place: Place, copies: Copies) -> list[Problem]:
        """Checks the content of a file.

        Args:
            value: the JSON value, or the text of a table or a text file.
            source: where it is from.
            place: the file, as problems name it.
            copies: the records that came before, in this file or others.
        """
        if source.form == Form.RESULTS:
            return list(check_results(value, place))
        if source.form == Form.RAW_INFO:
            return list(check_raw_text(value, place, source))
        has_records = source.form in _RECORDS
        if not isinstance(value, list if has_records else dict):
            name = "a list" if has_records else "an object"
            return [Problem("wrong_type", place, f"the file does not hold {name}")]
        if not value:
            return [Problem("no_records", place, "there is nothing in it")]
        if isinstance(value, dict):
            return list(check_object(value, place, source))
        return self._check_records(value, source, place, copies)

    def _check_records(self, records: list[Json], source: Source, place: Place, copies: Copies) -> list[Problem]:
        problems, pictures, ids = [], [], set()
        for index, record in enumerate(records):
            where = replace(place, index=index, id=_id(record, source.form))
            ids.add(where.id)
            for found in _check_record(record, source, where, copies):
                (pictures if isinstance(found, ImageUse) else problems).append(found)
        if source.form in SAMPLES[1:]:
            problems += missing_samples(ids, place, source)
        images = self._image_files(source)
        return problems + (list(images.check(pictures)) if images else [])

    def _image_files(self, source: Source) -> ImageFiles | None:
        folder = source.image_dir
        if not self.look_at_images or folder is None:
            return None
        if folder not in self._images:
            self._images[folder] = ImageFiles(folder) if folder.is_dir() else None
        return self._images[folder]

    def _note_unchecked(self, source: Source) -> None:
        if source.form in _RECORDS and self._image_files(source) is None:
            why = "no images/ in the data root; give --image_dir" if self.look_at_images else "--no_images"
            self.not_checked[f"image files ({why})"] += 1
            if self.lengths is not None and self.lengths.by_size and source.form in _COUNTED:
                self.not_checked[f"the tokens of images, which follow from their size ({why})"] += 1
        if source.form in (*SAMPLES[1:], Form.TRAINING) and not source.around.test_files:
            self.not_checked["against test samples (no data/test/*/*_test.json; give --data_root)"] += 1
        if source.form != Form.RESULTS and not source.around.series_of:
            self.not_checked["names of characters (no profiles/*/roles.json; give --data_root)"] += 1


def _check_place(source: Source, place: Place) -> Iterator[Problem]:
    if source.form == Form.DIALOGUES and source.around.root and is_overlooked(source.path, source.around.root):
        text = "build_dataset does not read it here, but in dialogues/<distribution>/<type>/"
        yield Problem("misplaced", place, text)


def _check_record(record: Json, source: Source, place: Place, copies: Copies) -> Iterator[Problem | ImageUse]:
    faults = list(check_shape(record, source.form, place))
    yield from faults
    if faults:
        return
    record_type, check = _RECORDS[source.form]
    try:
        read = record_type.from_json(record, Where(place.file, place.index or 0))
    except RecordError as error:  # what a script would refuse is never passed over
        yield Problem("wrong_type", place, str(error).removeprefix(f"{place}: "))
        return
    yield from check(read, place, source)
    if not isinstance(read, TrainingRecord) and read.image is not None:  # that one's pictures are told from its texts
        yield from check_image(read.image, place, source.around)
    yield from copies.check(record, source.form, place)


def _id(record: Json, form: Form) -> str | None:
    """The id of a record that may be anything."""
    id_ = record.get("image" if form == Form.ANNOTATIONS else "id") if isinstance(record, dict) else None
    return str(id_) if isinstance(id_, (str, int)) else None
