"""The samples of the results page, as JSON: the dialogue of each, and every model's answer and reviews."""

from collections.abc import Sequence
from typing import NamedTuple

from mmrole.base.json_values import JsonObject
from mmrole.data.prompts import METRICS, read_role_play_prompt
from mmrole.data.records import MetricReview, Review
from mmrole.scoring.page_data import plain_number
from mmrole.scoring.report import Report
from mmrole.scoring.reviews import ModelReviews


class PageSample(NamedTuple):
    """A sample that any model has."""

    key: tuple[str, str, str]
    """(split, type, id)."""
    language: str
    record: Review
    """Of the first model that has it."""
    own: list[tuple[Review, float] | None]
    """Of each model, in the order of the report: its record and overall score, NaN without one; None if it has none."""


def find_samples(report: Report, reviews: Sequence[ModelReviews]) -> list[PageSample]:
    """Every sample of any model once."""
    by_name = {model.model: model for model in reviews}
    models = [by_name[model.model] for model in report.models]
    places = [{key: index for index, key in enumerate(model.keys)} for model in models]
    samples = []
    for key in dict.fromkeys(key for model in models for key in model.keys):
        found = [(model, place.get(key)) for model, place in zip(models, places, strict=True)]
        model, index = next((model, index) for model, index in found if index is not None)
        own = [None if place is None else (of.records[place], float(of.overall[place])) for of, place in found]
        samples.append(PageSample(key, model.columns["language"][index], model.records[index], own))
    return samples


def sample_data(samples: Sequence[PageSample]) -> JsonObject:
    """What is searched, listed and shown of the samples but their answers; `texts` are blocks of prompts, shared.

    `scores` are those of each model: null without one, false if it has no such sample.
    """
    texts: dict[str, int] = {}
    listed = []
    for (split, kind, _), language, record, own in samples:
        dialogue = read_role_play_prompt(record.question, record.role, record.other_role)
        listed.append(
            {
                "id": record.id,
                "split": split,
                "type": kind,
                "role": record.role,
                "series": record.script,
                "other": record.other_role,
                "language": language,
                "image": record.image,
                "prompt": [texts.setdefault(block, len(texts)) for block in record.question.split("\n\n\n")],
                "history": dialogue.history,
                "last": dialogue.last,
                "reference": record.reference,
                "scores": [plain_number(of_model[1]) if of_model else False for of_model in own],
            }
        )
    return {"texts": list(texts), "samples": listed}


def answer_data(sample: PageSample) -> list[str | None]:
    """The answer of each model to a sample; null if it has none."""
    return [of_model and of_model[0].answer for of_model in sample.own]


def review_data(sample: PageSample) -> list[JsonObject | None]:
    """The reviews of each model's answer to a sample: `first` in the published order, `swapped` in the other one; and
    as `error` why there is no answer, where it was refused or has failed."""
    return [of_model and _reviews(of_model[0]) for of_model in sample.own]


def _reviews(record: Review) -> JsonObject:
    return ({} if record.answer_error is None else {"error": record.answer_error}) | {
        "first": [_review(record.reviews.get(metric)) for metric in METRICS],
        "swapped": [_review(record.swapped.get(metric)) for metric in METRICS] if record.swapped else [],
    }


def _review(review: MetricReview | None) -> JsonObject | None:
    return review and {"text": review.text, "score": review.score, "reason": review.reason}
