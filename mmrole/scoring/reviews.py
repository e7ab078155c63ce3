"""Reviews of any number of models: their files, the answers that they are about, and the scores as arrays."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmrole.base.errors import Problems, UserError, Where
from mmrole.base.files import read_records
from mmrole.base.json_values import JsonObject
from mmrole.data.profiles import category
from mmrole.data.prompts import METRICS, language
from mmrole.data.records import MetricReview, Review, Sample
from mmrole.data.splits import find_test_files
from mmrole.scoring.judges import judge_folder, judge_of_folders

IN_TEST, OUT_TEST = "In-Test", "Out-Test"
SPLITS = (IN_TEST, OUT_TEST)

_SPLIT_OF = {"in-test": IN_TEST, "out-test": OUT_TEST, "in-distribution": IN_TEST, "out-of-distribution": OUT_TEST}
_SPLIT_FOLDER = re.compile(rf"({'|'.join(_SPLIT_OF)})(?![a-z])")


@dataclass(frozen=True, eq=False)
class ReviewFile:
    """A file of reviews, and the answers that it should review.

    Attributes:
        path: the reviews.
        records: the reviews in order; a record with an answer but without reviews has none of the eight.
        answers_path: where the answers are, or should be.
        answers: the answers by id, in order; None if there is no such file.
    """

    path: Path
    records: tuple[Review, ...]
    answers_path: Path
    answers: dict[str, str] | None

    @property
    def model(self) -> str:
        """The model whose answers are reviewed: the name of the folder."""
        return Path(os.path.abspath(self.path)).parent.name

    @property
    def split(self) -> str:
        """In-Test or Out-Test, as the nearest folder says that is named so (`in-test_reviews`).

        Raises:
            UserError: no folder says it.
        """
        for part in reversed(Path(os.path.abspath(self.path)).parent.parts):
            if match := _SPLIT_FOLDER.match(part):
                return _SPLIT_OF[match[1]]
        raise UserError(
            f"{self.path} does not tell whether it is In-Test or Out-Test; put it below a folder that is named so, "
            "as in in-test_reviews/<model>"
        )

    @property
    def type(self) -> str:
        """The kind of dialogue: comment, human-role, inter-role."""
        return self.path.stem.removesuffix("_test")

    @property
    def n_expected(self) -> int:
        """How many answers there are to review, empty ones included; without their file, those in the reviews."""
        return len(self.records if self.answers is None else self.answers)

    @functools.cached_property
    def is_swapped(self) -> bool:
        """Whether the answers were also reviewed with the reference shown first (`--swap`)."""
        return any(record.swapped for record in self.records)


@dataclass(frozen=True, eq=False)
class ModelReviews:
    """All reviews of one model's answers; n samples, in the order of the files.

    Attributes:
        model: the name.
        files: its files, In-Test first, in the order comment, human-role, inter-role.
        categories: categories of series whose names tell them otherwise (`mmrole.data.profiles.category`).
    """

    model: str
    files: tuple[ReviewFile, ...]
    categories: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def records(self) -> tuple[Review, ...]:
        """The samples."""
        return tuple(record for file in self.files for record in file.records)

    @functools.cached_property
    def keys(self) -> tuple[tuple[str, str, str], ...]:
        """(split, type, id) of every sample: what tells that two models answered the same one."""
        return tuple(
            (*kind, record.id) for file in self.files for kind in [(file.split, file.type)] for record in file.records
        )

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """float64 [n, 8, 2]: (evaluated answer, reference) by metric, in the order of `METRICS`; NaN without a pair."""
        return score_array([record.reviews for record in self.records])

    @functools.cached_property
    def swapped_scores(self) -> np.ndarray:
        """float64 [n, 8, 2]: as `scores`, of the reviews with the reference shown first."""
        return score_array([record.swapped for record in self.records])

    @property
    def is_swapped(self) -> bool:
        """Whether any answers were also reviewed with the reference shown first."""
        return any(file.is_swapped for file in self.files)

    @functools.cached_property
    def ratios(self) -> np.ndarray:
        """float64 [n, 8]: evaluated over reference; NaN without a pair.

        In a file with swapped reviews, the mean of both orders; NaN if one of them has no pair.
        """
        ratios = pair_ratios(self.scores)
        swapped = np.repeat([file.is_swapped for file in self.files], [len(file.records) for file in self.files])
        both = (ratios + pair_ratios(self.swapped_scores)) / 2
        return np.where(swapped[:, None], both, ratios)

    @functools.cached_property
    def complete(self) -> np.ndarray:
        """bool [n]: samples with all eight ratios, over which means are taken."""
        return np.all(~np.isnan(self.ratios), axis=1)

    @functools.cached_property
    def overall(self) -> np.ndarray:
        """float64 [n]: the mean of the eight ratios; NaN unless complete."""
        return self.ratios.mean(axis=1)

    @functools.cached_property
    def length_ratios(self) -> np.ndarray:
        """float64 [n]: characters of the answer over characters of the reference; 0 for an empty answer."""
        return np.array([len(record.answer) / len(record.reference) for record in self.records])

    @functools.cached_property
    def empty(self) -> np.ndarray:
        """bool [n]: empty answers, which get no review."""
        return np.array([is_empty(record) for record in self.records], bool)

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Texts [n] that samples are grouped by: split, type, image, character, series, category, language.

        In place of an image that a sample does not have stands its id.
        """
        rows = [
            (
                split,
                kind,
                record.id if record.image is None else record.image,
                record.role,
                record.script,
                category(record.script, self.categories),
                language(record.script),
            )
            for (split, kind, _), record in zip(self.keys, self.records, strict=True)
        ]
        names = ("split", "type", "image", "character", "series", "category", "language")
        return dict(zip(names, np.array(rows, object).reshape(-1, len(names)).T, strict=True))


def score_array(reviews: Sequence[Mapping[str, MetricReview]]) -> np.ndarray:
    """float64 [n, 8, 2]: the pairs of n samples by metric, NaN where there is none."""
    nothing = (np.nan, np.nan)
    pairs = [
        (review.score or nothing) if (review := sample.get(metric)) else nothing
        for sample in reviews
        for metric in METRICS
    ]
    return np.array(pairs, np.float64).reshape(len(reviews), len(METRICS), 2)


def pair_ratios(scores: np.ndarray) -> np.ndarray:
    """float64 [...]: the evaluated answer's score over the reference's; `scores` is [..., 2], no reference is 0."""
    return scores[..., 0] / scores[..., 1]


def is_empty(record: Review) -> bool:
    """Whether the answer is empty: such a sample has no reviews and needs none."""
    return not record.answer.strip() and not record.reviews and record.answer_error is None


def is_unanswered(record: Review) -> bool:
    """Whether there is no answer, since it was refused or has failed: such a sample has no reviews, either."""
    return not record.reviews and record.answer_error is not None


def answers_beside(path: Path) -> Path | None:
    """Where the published layout has the answers of a file of reviews.

    `…/in-test_reviews/<model>/<type>_test.json` is about `…/in-test_answers/<model>/<type>_test.json`, and so is
    `…/in-test_reviews@JUDGE/<model>/<type>_test.json`. None if no folder above the file is named so.
    """
    for place in (path, Path(os.path.abspath(path))):
        folder = judge_folder(place.parent)
        if folder is not None and folder.name.endswith("_reviews"):
            parts = list(place.parts)
            parts[folder.place] = folder.name.removesuffix("_reviews") + "_answers"
            return Path(*parts)
    return None


def read_review_file(path: Path, answers_path: Path | None = None, problems: Problems | None = None) -> ReviewFile:
    """Reads a file of reviews, and the file of its answers if there is one.

    Args:
        path: the reviews.
        answers_path: the answers; by default where the published layout has them.
        problems: receives faulty records, as in `read_records`.

    Raises:
        UserError: a file cannot be read, or a record is faulty and `problems` is None.
    """
    answers_path = answers_path or answers_beside(path) or path.with_name(f"{path.stem}_answers.json")
    records = tuple(read_records(path, _PartlyReviewed, problems))
    answers = None
    if answers_path.exists():
        turns = {sample.id: sample.json["conversations"][1] for sample in read_records(answers_path, Sample, problems)}
        answers = {id_: turn["answer"] for id_, turn in turns.items() if "answer" in turn}
    return ReviewFile(path, records, answers_path, answers)


def read_models(
    places: Sequence[str | os.PathLike], categories: Mapping[str, str], judge: str | None = None
) -> list[ModelReviews]:
    """Reads the reviews of all models in or below some folders, by name.

    Args:
        places: folders with `<model>/<type>_test.json` in or below them, or single files; folders of answers,
            `…_answers`, are passed over.
        categories: categories of series whose names tell them otherwise.
        judge: passes over what is not in a folder `…_reviews@JUDGE`; by default all folders must be of one judge.

    Raises:
        UserError: there are none, they are in folders of several judges, a file cannot be read, records are faulty (all
            of them are named), a file does not tell its split, or two files are of the same model, split and type.
    """
    problems = Problems()
    files: dict[tuple[str, str, str], ReviewFile] = {}
    for path in _find_review_files(places, judge):
        file = read_review_file(path, problems=problems)
        key = (file.model, file.split, file.type)
        if files.setdefault(key, file) is not file:
            problems.add(f"{path} and {files[key].path} are both the {key[2]} reviews of {key[0]}, {key[1]}")
    if not files:
        where = ", ".join(map(str, places))
        problems.add(
            f"there are no reviews in {where}, only answers"
            if judge is None
            else f"there are no reviews by {judge} in {where}, which would be in a folder …_reviews@{judge}"
        )
    problems.raise_if_any("the reviews cannot be used", "correct them, or give other files")
    by_model: dict[str, list[ReviewFile]] = {}
    for (model, _, _), file in sorted(files.items()):
        by_model.setdefault(model, []).append(file)
    return [ModelReviews(model, tuple(own), categories) for model, own in by_model.items()]


def _find_review_files(places: Sequence[str | os.PathLike], judge: str | None) -> list[Path]:
    """The files of reviews in or below some folders: of a judge, or of the only one.

    Raises:
        UserError: there are no test files, or they are in folders of several judges.
    """
    folders = ((path, Path(os.path.abspath(path)).parent) for path in find_test_files(places))
    # Answers are beside the reviews, where the folder of both is given.
    paths = {path: folder for path, folder in folders if not folder.parent.name.endswith("_answers")}
    if judge is None:
        judge_of_folders(paths)
        return list(paths)
    named = {path: judge_folder(folder) for path, folder in paths.items()}
    return [path for path, folder in named.items() if folder is not None and folder.judge == judge]


class _PartlyReviewed(Review):
    """A record whose reviews may be missing: that is counted where means are taken, and no fault of the file."""

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        return super()._values({"rm_review": {}} | obj, where)
