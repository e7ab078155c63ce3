"""Checks of reviews, of training samples of the reward model, and of tables of results."""

import csv
import io
import re
from collections.abc import Collection, Iterator

from data_utils.checks.names import check_names
from data_utils.checks.pictures import ImageUse
from data_utils.checks.problems import Fix, Place, Problem
from data_utils.checks.samples import check_conversation, check_sample
from data_utils.checks.surroundings import Source
from data_utils.checks.texts import check_text
from mmrole.base.errors import shown
from mmrole.data.pictures import read_conversation
from mmrole.data.prompts import METRICS
from mmrole.data.records import Review, TrainingRecord

_PAIR = re.compile(r"\[Scores\]:\s*\(?\s*(\d+(?:\.\d+)?)\s*[,，]\s*(\d+(?:\.\d+)?)\s*\)?")
_NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
_METRIC_OF = {re.sub(r"\W", "", metric).casefold(): metric for metric in METRICS}


def check_review(record: Review, place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with a reviewed answer, image and copies apart."""
    yield from check_sample(record, place, source)
    if not record.reviews:
        return
    spelled = _misspelled(record.reviews)
    if spelled:
        text = ", ".join(f"{shown(metric)} should be {shown(name)}" for metric, name in spelled.items())
        reviews = {spelled.get(metric, metric): review for metric, review in record.json["rm_review"].items()}
        yield Problem("metric_spelling", place, text, Fix(("rm_review",), reviews))
    for metric in METRICS:
        if metric not in record.reviews and metric not in spelled.values():
            yield Problem("missing_metric", place, f"rm_review has no {shown(metric)}")
    for metric, review in record.reviews.items():
        path = ("rm_review", metric, "review")
        if metric not in METRICS and metric not in spelled:
            yield Problem("unknown_metric", place, f"rm_review has {shown(metric)}, which is none of the eight")
        if review.score is None:
            yield Problem("unusable_score", place, f"{metric}: {review.reason}")
        elif (pair := _pair(review.text)) and pair != review.score:
            text = f"{metric}: {shown(list(review.score))} is stored, the review says {shown(list(pair))}"
            yield Problem("score_mismatch", place, text)
        yield from check_text(place, path, review.text)


def check_rm_sample(record: TrainingRecord, place: Place, source: Source) -> Iterator[Problem | ImageUse]:
    """What is wrong with a training sample of the reward model, copies apart."""
    yield from check_names(place, record.role, record.script, record.other_role, source.around)
    for number, turn in enumerate(record.turns):
        if turn.speaker == "assistant" and not _pair(turn.value):
            end = shown(turn.value[-60:])
            yield Problem("no_score_pair", place, f"conversations[{number}] ends with {end}, not with [Scores]: (A, B)")
    yield from check_conversation(record, read_conversation(record), place, source)


def check_results(text: str, place: Place) -> Iterator[Problem]:
    """What is wrong with a table of results: `count` and the means under the eight metrics."""
    header = ["count", *METRICS]
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        yield Problem("results_form", place, f"the table cannot be read: {error}")
        return
    if not rows or rows[0] != header:
        found = shown(",".join(rows[0]) if rows else "")
        yield Problem("results_form", place, f"the header is {found}, not {','.join(header)}")
    elif len(rows) != 2 or len(rows[1]) != len(header):
        found = f"{len(rows) - 1} rows" if len(rows) != 2 else f"a row of {len(rows[1])}"
        yield Problem("results_form", place, f"behind the header is {found}, not one row of {len(header)} numbers")
    elif not all(_NUMBER.fullmatch(cell) for cell in rows[1]):
        yield Problem("results_form", place, f"not all values are numbers: {shown(','.join(rows[1]))}")


def _misspelled(metrics: Collection[str]) -> dict[str, str]:
    """The metrics that are not in published letters, and those that are meant, if these are not there as well."""
    spelled: dict[str, str] = {}
    for metric in metrics:
        name = _METRIC_OF.get(re.sub(r"[\W_]", "", metric).casefold())
        if name and name not in metrics and name not in spelled.values():
            spelled[metric] = name
    return spelled


def _pair(review: str) -> tuple[float, float] | None:
    pairs = _PAIR.findall(review)
    return (float(pairs[-1][0]), float(pairs[-1][1])) if pairs else None
