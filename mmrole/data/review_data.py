"""Training data of a reward model: reviews as conversations, their split, and what two sets of records share."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmrole.base.json_values import JsonObject
from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.prompts import HUMAN_PARTNER, METRICS, REVIEW_SYSTEM, picture_markup, review_prompt
from mmrole.data.records import Review, Sample
from mmrole.data.scores import final_scores

SPLIT_UNITS = ("answer", "prompt", "character")
"""What a split keeps together: one model's answer to a prompt, all answers to it, or all prompts of a character."""

FACETS = ("answers", "prompts", "dialogues", "images", "characters", "characters or partners")
"""What two sets of records are compared by."""


class ReviewedAnswer(NamedTuple):
    """An answer with its reviews, and the model that gave it."""

    model: str
    review: Review


class ScoredReview(NamedTuple):
    """One review of one answer under one metric, which is one training conversation."""

    model: str
    review: Review
    metric: str
    text: str
    score: tuple[float, float]

    def to_json(self) -> JsonObject:
        """The conversation in the form of training files; what it is about follows it."""
        review = self.review
        prompt = review_prompt(
            question=review.question,
            evaluated_answer=review.answer,
            reference=review.reference,
            role=review.role,
            series=review.script,
            other_role=review.other_role,
            metric=self.metric,
        )
        pictures = [] if review.image is None else [f"{IMAGE_FOLDER}/{review.image}"]
        return {
            "id": f"{review.id}_{self.model}_{self.metric.replace(' ', '_')}",
            "system": REVIEW_SYSTEM,
            "image": review.image,
            "conversations": [
                {"from": "user", "value": picture_markup(pictures) + prompt.text},
                {"from": "assistant", "value": self.text},
            ],
            "role": review.role,
            "script": review.script,
            "other_role": review.other_role,
            "model": self.model,
            "metric": self.metric,
            "score": list(self.score),
        }


class ScoredReviews(NamedTuple):
    """The usable reviews, and how many are left out by reason."""

    usable: list[ScoredReview]
    left_out: Counter


class Shared(NamedTuple):
    """What two sets of records have in common: the number of each of `FACETS`, and the sample ids of shared prompts."""

    counts: dict[str, int]
    prompt_ids: list[str]


def make_rows(answers: Iterable[ReviewedAnswer]) -> ScoredReviews:
    """The reviews that a reward model can learn from.

    Left out and counted are: empty answers, reviews without a score pair, reviews whose text does not end with the
    pair that is stored (the text is what would be learned), metrics that are not MMRole's, and repetitions.
    """
    rows, left_out, seen = [], Counter(), set()
    for model, review in answers:
        if not review.answer.strip():
            left_out["empty answers"] += 1
            continue
        for metric, metric_review in review.reviews.items():
            text, score = metric_review.text, metric_review.score
            content = (review.question, review.answer, review.reference, metric, text)
            if metric not in METRICS:
                left_out["reviews under other metrics"] += 1
            elif score is None:
                left_out["reviews without a score pair"] += 1
            elif final_scores(text) != score:
                left_out["reviews whose text does not end with their score pair"] += 1
            elif content in seen:
                left_out["reviews that repeat another one"] += 1
            else:
                seen.add(content)
                rows.append(ScoredReview(model, review, metric, text, score))
    return ScoredReviews(rows, left_out)


def split_rows(
    rows: Sequence[ScoredReview], by: str, fraction: float, seed: int
) -> tuple[list[ScoredReview], list[ScoredReview]]:
    """Training and validation rows, in the order given; a unit is on one side only.

    Args:
        rows: all rows.
        by: one of `SPLIT_UNITS`.
        fraction: of the units, rounded, that go into validation: at least one unit, and never all; 0 for none.
        seed: decides which. Whether a unit comes before another one in the draw depends on nothing else.
    """
    units = sorted({_unit(row, by) for row in rows})
    drawn = sorted(units, key=lambda unit: random.Random(repr((seed, by, unit))).random())
    size = min(max(round(fraction * len(units)), 1), len(units) - 1) if fraction else 0
    held_out = set(drawn[:size])
    training = [row for row in rows if _unit(row, by) not in held_out]
    return training, [row for row in rows if _unit(row, by) in held_out]


def balance(rows: Sequence[ScoredReview], most: int, seed: int) -> list[ScoredReview]:
    """At most `most` rows of each score pair, drawn with a seed; in the order given."""
    by_score: dict[tuple[float, float], list[int]] = {}
    for index, row in enumerate(rows):
        by_score.setdefault(row.score, []).append(index)
    kept: set[int] = set()
    for score, indices in by_score.items():
        kept.update(random.Random(repr((seed, score))).sample(indices, min(most, len(indices))))
    return [row for index, row in enumerate(rows) if index in kept]


def shared(some: Iterable[Sample], others: Iterable[Sample]) -> Shared:
    """What two sets of test samples, answers or reviews have in common.

    Answers are compared together with their prompt. A prompt is the whole role-play prompt with its image.
    """
    mine, theirs = _facets(some), _facets(others)
    counts = {name: len(mine[name].keys() & theirs[name].keys()) for name in mine}
    prompts = mine["prompts"]
    return Shared(counts, [prompts[key] for key in prompts if key in theirs["prompts"]])


def _facets(samples: Iterable[Sample]) -> dict[str, dict[object, str]]:
    """What can be shared, by name: the distinct values with the id of their first sample."""
    facets: dict[str, dict[object, str]] = {name: {} for name in FACETS}
    for sample in samples:
        prompt = (sample.image, sample.question)
        answer = sample.json["conversations"][1].get("answer")
        if answer:
            facets["answers"].setdefault((*prompt, answer), sample.id)
        facets["prompts"].setdefault(prompt, sample.id)
        facets["dialogues"].setdefault(sample.id.rpartition("_")[0], sample.id)
        if sample.image is not None:
            facets["images"].setdefault(sample.image, sample.id)
        facets["characters"].setdefault(sample.role, sample.id)
        for name in {sample.role, sample.other_role} - {HUMAN_PARTNER}:
            facets["characters or partners"].setdefault(name, sample.id)
    return facets


def _unit(row: ScoredReview, by: str) -> tuple[str, ...]:
    review = row.review
    if by == "character":
        return (review.role,)
    prompt = (review.image or "", review.question)
    return prompt if by == "prompt" else (*prompt, review.answer)
