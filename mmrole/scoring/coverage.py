"""Coverage of reviews: what is missing of what should be there; never average silently over what is there."""

from typing import NamedTuple

import numpy as np

from mmrole.base.errors import shown
from mmrole.data.prompts import METRICS
from mmrole.data.records import Review
from mmrole.scoring.reviews import ReviewFile, is_empty, is_unanswered


class Coverage(NamedTuple):
    """How many samples of a file are reviewed, and what is wrong with the others."""

    split: str
    """In-Test or Out-Test."""
    type: str
    """comment, human-role, inter-role."""
    expected: int
    """Answers to review, empty ones included."""
    scored: int
    """Samples with all eight pairs: those that means are taken over."""
    empty: int
    """Empty answers, which get no review and need none."""
    unanswered: int
    """Samples whose answer was refused or has failed."""
    missing: int
    """Expected samples that have no record, or no review at all."""
    incomplete: int
    """Samples with reviews under some of the metrics only."""
    unparseable: int
    """Samples with a review in which no usable pair of scores was found."""
    foreign: int
    """Samples that are not among the answers."""
    changed: int
    """Samples whose answer is not the one in the file of answers."""
    n_per_metric: dict[str, int]
    """Samples with a usable pair by metric; with swapped reviews, in both orders."""


class Gaps(NamedTuple):
    """The samples behind the counts of `Coverage`, by id; what follows the ids of some tells what they lack."""

    missing: list[str]
    incomplete: dict[str, str]
    unparseable: dict[str, str]
    foreign: list[str]
    changed: list[str]


def measure_coverage(split: str, file: ReviewFile) -> Coverage:
    """Counts what a file covers."""
    gaps = find_gaps(file)
    usable = np.array([[metric not in _without_pair(record, file) for metric in METRICS] for record in file.records])
    usable = usable.reshape(-1, len(METRICS))
    return Coverage(
        split,
        file.type,
        expected=file.n_expected,
        scored=int(usable.all(axis=1).sum()),
        empty=sum(map(is_empty, file.records)),
        unanswered=sum(map(is_unanswered, file.records)),
        n_per_metric=dict(zip(METRICS, usable.sum(axis=0).tolist(), strict=True)),
        **{name: len(ids) for name, ids in gaps._asdict().items()},
    )


def find_gaps(file: ReviewFile) -> Gaps:
    """The samples of a file that are not as they should be.

    The ids expected are those of the answers. Without a file of answers they are those of the reviews.
    """
    recorded = {record.id: record.answer for record in file.records}
    answers = recorded if file.answers is None else file.answers
    gaps = Gaps([id_ for id_ in answers if id_ not in recorded], {}, {}, [], [])
    for record in file.records:
        if record.id not in answers:
            gaps.foreign.append(record.id)
        elif record.answer != answers[record.id]:
            gaps.changed.append(record.id)
        if is_empty(record) or is_unanswered(record):
            continue
        if not record.reviews:
            gaps.missing.append(record.id)
        elif absent := _absent(record, file):
            gaps.incomplete[record.id] = ", ".join(absent)
        elif without := _without_pair(record, file):
            gaps.unparseable[record.id] = ", ".join(without)
    return gaps


def describe_gaps(file: ReviewFile) -> list[str]:
    """One line for each kind of gap in a file, with the ids of all samples that have it."""
    gaps = find_gaps(file)
    lines = []
    if file.answers is None:
        lines.append(
            f"{file.path}: the answers, {file.answers_path}, are not there, so that missing samples cannot be told"
        )
    if unanswered := [shown(record.id) for record in file.records if is_unanswered(record)]:
        count = f"{len(unanswered)} sample{'s' * (len(unanswered) > 1)}"
        ids = ", ".join(unanswered)
        lines.append(f"{file.path}: {count} without an answer, which was refused or has failed: {ids}")
    words = {
        "missing": "not reviewed",
        "incomplete": "not reviewed under all eight metrics; missing",
        "unparseable": "without a usable pair of scores",
        "foreign": f"not among the answers, {file.answers_path}",
        "changed": f"reviewed with another answer than that in {file.answers_path}",
    }
    for name, ids in gaps._asdict().items():
        if ids:
            details = [f"{shown(id_)} ({ids[id_]})" for id_ in ids] if isinstance(ids, dict) else map(shown, ids)
            count = f"{len(ids)} sample{'s' * (len(ids) > 1)}"
            lines.append(f"{file.path}: {count} {words[name]}: {', '.join(details)}")
    return lines


def _absent(record: Review, file: ReviewFile) -> list[str]:
    """The metrics without a review; in a file with swapped reviews, these are wanted as well."""
    absent = [metric for metric in METRICS if metric not in record.reviews]
    if file.is_swapped:
        exchanged = [f"{metric} with the answers exchanged" for metric in METRICS if metric not in record.swapped]
        absent += exchanged if record.swapped else ["all with the answers exchanged"]
    return absent


def _without_pair(record: Review, file: ReviewFile) -> list[str]:
    """The metrics without a usable pair in one of the orders, reviewed or not."""
    orders = [record.reviews, record.swapped] if file.is_swapped else [record.reviews]
    return [metric for metric in METRICS if any(metric not in order or order[metric].score is None for order in orders)]
