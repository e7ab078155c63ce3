"""Reviews of answers by a reward model, as a job: eight requests an answer, one prompt tree (paper, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrole.base.errors import shown
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import Quotation, one_turn
from mmrole.data.prompts import METRICS, REVIEW_SYSTEM, review_prompt
from mmrole.data.records import Answer, MetricReview
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.data.scores import parse_review
from mmrole.jobs.tasks import Program

Json = dict[str, Any]

_SECOND = "## **[Model B's Response Start]**\n\n"
_RETRY = "/retry-"
_ORDERS = {"rm_review": False, "rm_review_swapped": True}


def review_program(retries: int, swap: bool) -> Program:
    """The job that reviews answers.

    Args:
        retries: how often a review without a usable pair of scores is generated again.
        swap: review each answer a second time, with the reference shown first.
    """

    def requests(answer: Answer, image: ImageFile, settings: GenerationSettings) -> list[ChatRequest]:
        orders = (False, True) if swap else (False,)
        return [request for swapped in orders for request in make_requests(answer, image, settings, swapped)]

    def result(answer: Answer, replies: Mapping[str, ChatReply]) -> Json:
        if _is_empty(answer):
            return {key: value for key, value in answer.json.items() if key not in _ORDERS}
        reviews = _reviews(answer, replies, swapped=False)
        return answer.with_reviews(reviews, _reviews(answer, replies, swapped=True) if swap else None).to_json()

    def retry(request: ChatRequest, reply: ChatReply, sampling: GenerationSettings) -> ChatRequest | None:
        return make_retry(request, reply, sampling, retries)

    return Program(
        name="RM_review.py",
        record_type=Answer,
        requests=requests,
        result=result,
        retry=retry if retries else None,
        settings={"retries": retries, "swap": swap},
        report=describe_reviews,
        how_to_get="bash inference.sh answers the test prompts; docs/answers_format.md is about answers from elsewhere",
    )


def make_requests(
    answer: Answer, image: Path | ImageFile, settings: GenerationSettings, swapped: bool = False
) -> list[ChatRequest]:
    """The requests for the eight reviews of an answer; none if it is empty.

    Their quotation is the answer: what it says changes no token id outside of it.

    Args:
        answer: the record.
        image: its image file.
        settings: how tokens are chosen.
        swapped: show the reference as Model A's answer, the evaluated one as Model B's.
    """
    if _is_empty(answer):
        return []
    first, second = (answer.reference, answer.answer) if swapped else (answer.answer, answer.reference)
    requests = []
    for metric in METRICS:
        prompt = review_prompt(
            question=answer.question,
            evaluated_answer=first,
            reference=second,
            role=answer.role,
            series=answer.script,
            other_role=answer.other_role,
            metric=metric,
        )
        if swapped:
            start = prompt.after.index(_SECOND) + len(_SECOND)
            behind = prompt.after[start + len(second) :]
            content = prompt.before + first + prompt.after[:start], Quotation(second), behind
        else:
            content = prompt.before, Quotation(first), prompt.after
        name = _request_id(answer, metric, swapped)
        requests.append(ChatRequest(name, one_turn(REVIEW_SYSTEM, image, *content), settings))
    return requests


def make_retry(
    request: ChatRequest, reply: ChatReply, sampling: GenerationSettings, retries: int
) -> ChatRequest | None:
    """The same request again, sampled with a new seed; None if its review has a usable pair, or after so many retries.

    The seed is that of the settings plus the number of the retry.
    """
    swapped, number = _order_and_number(request.id)
    if number == retries or parse_review(reply.text, swapped).score is not None:
        return None
    first = request.id.removesuffix(f"{_RETRY}{number}")
    settings = replace(sampling, seed=sampling.seed + number + 1)
    return replace(request, id=f"{first}{_RETRY}{number + 1}", settings=settings)


def describe_reviews(output: Path, records: Iterable[Json]) -> list[str]:
    """What a user should know about an output: answers without reviews, and every review without a pair of scores."""
    count, faulty, empty = 0, [], []
    for record in records:
        id_ = shown(record["id"])
        if "rm_review" not in record:
            empty.append(id_)
        for order, is_swapped in _ORDERS.items():
            for metric, review in record.get(order, {}).items():
                count += 1
                if review["score"] is None:
                    swapped = ", answers exchanged" if is_swapped else ""
                    faulty.append(f"  {id_}, {metric}{swapped}: {review['reason']}")
    lines = []
    if empty:
        lines.append(f"{output}: empty answers, without reviews: {len(empty)} ({', '.join(empty)})")
    if faulty:
        lines.append(
            f"{output}: reviews without a usable pair of scores: {len(faulty)} of {count}; they are stored with "
            "score null and will not count:"
        )
    return lines + faulty


def _reviews(answer: Answer, replies: Mapping[str, ChatReply], swapped: bool) -> dict[str, MetricReview]:
    ids = {metric: _request_id(answer, metric, swapped) for metric in METRICS}
    return {metric: parse_review(replies[id_].text, swapped) for metric, id_ in ids.items()}


def _request_id(answer: Answer, metric: str, swapped: bool) -> str:
    return f"{answer.id}/{metric}" + ("/swapped" if swapped else "")


def _order_and_number(request_id: str) -> tuple[bool, int]:
    """Whether a request shows the reference first, and which retry it is (0: none)."""
    # Read from the end, where nothing comes from the record's id.
    head, _, last = request_id.rpartition("/")
    number = int(last.removeprefix("retry-")) if last.startswith("retry-") else 0
    return (head if number else request_id).endswith("/swapped"), number


def _is_empty(answer: Answer) -> bool:
    return not answer.answer.strip()
