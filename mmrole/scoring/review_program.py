"""Reviews of answers by a reward model, as a job: eight requests an answer, one prompt tree (paper, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmrole.base.errors import in_one_line, shown
from mmrole.base.json_values import JsonObject
from mmrole.data.messages import Quotation, one_turn
from mmrole.data.prompts import METRICS, REVIEW_SYSTEM, review_prompt
from mmrole.data.records import Answer, MetricReview
from mmrole.data.requests import AskedSettings, ChatReply, ChatRequest
from mmrole.data.scores import parse_review
from mmrole.jobs.programs import Program

_ORDERS = {"rm_review": False, "rm_review_swapped": True}


def review_program(retries: int, swap: bool) -> Program[Answer]:
    """The job that reviews answers.

    Args:
        retries: how often a review without a usable pair of scores is generated again.
        swap: review each answer a second time, with the reference shown first.
    """

    def ask(answer: Answer, replies: Mapping[str, ChatReply]) -> list[ChatRequest]:
        return [request for review in plan_reviews(answer, swap) for request in review.next(replies, retries)]

    def result(answer: Answer, replies: Mapping[str, ChatReply]) -> JsonObject:
        if not answer.answer.strip():
            return {key: value for key, value in answer.json.items() if key not in _ORDERS}
        made: dict[bool, dict[str, MetricReview]] = {False: {}, True: {}}
        for review in plan_reviews(answer, swap):
            made[review.swapped][review.metric] = review.read(replies)
        return answer.with_reviews(made[False], made[True] if swap else None).to_json()

    return Program(
        name="RM_review.py",
        record_type=Answer,
        ask=ask,
        result=result,
        settings={"retries": retries, "swap": swap},
        report=describe_reviews,
        how_to_get="bash inference.sh answers the test prompts; docs/answers_format.md is about answers from elsewhere",
    )


@dataclass(frozen=True)
class PlannedReview:
    """One review of an answer, under one metric and in one order, with the retries that it may take.

    Attributes:
        metric: what is reviewed.
        swapped: the reference is shown as Model A's answer, the evaluated one as Model B's.
        request: the first attempt.
    """

    metric: str
    swapped: bool
    request: ChatRequest

    def attempt(self, number: int) -> ChatRequest:
        """The request (0), or its retry with this number: sampled, with that number added to the seed."""
        if number == 0:
            return self.request
        settings = AskedSettings(do_sample=True, seed_offset=number)
        return replace(self.request, id=f"{self.request.id}/retry-{number}", settings=settings)

    def next(self, replies: Mapping[str, ChatReply], retries: int) -> list[ChatRequest]:
        """The first attempt without a reply, as long as those before it can be tried again."""
        for number in range(retries + 1):
            attempt = self.attempt(number)
            if attempt.id not in replies:
                return [attempt]
            if not self._is_unusable(replies[attempt.id]):
                break
        return []

    def read(self, replies: Mapping[str, ChatReply]) -> MetricReview:
        """The review in the reply to the last attempt."""
        last, number = replies[self.request.id], 1
        while (id_ := self.attempt(number).id) in replies:
            last, number = replies[id_], number + 1
        if last.answer_error is not None:
            return MetricReview("", None, last.answer_error)
        return parse_review(last.text, self.swapped)

    def _is_unusable(self, reply: ChatReply) -> bool:
        """Whether another attempt could do better: a refusal stands."""
        return reply.error is None and parse_review(reply.text, self.swapped).score is None


def plan_reviews(answer: Answer, swap: bool = False) -> list[PlannedReview]:
    """The reviews of an answer under the eight metrics; none if it is empty.

    What the answer says changes no token id outside of it. The reference is quoted as well, for backends that cannot
    tell the token ids of a prompt apart and neutralise what is quoted.

    Args:
        answer: the record.
        swap: once more with the answers exchanged.
    """
    if not answer.answer.strip():
        return []
    orders = (False, True) if swap else (False,)
    return [
        PlannedReview(metric, swapped, _request(answer, metric, swapped)) for swapped in orders for metric in METRICS
    ]


def _request(answer: Answer, metric: str, swapped: bool) -> ChatRequest:
    first, second = (answer.reference, answer.answer) if swapped else (answer.answer, answer.reference)
    prompt = review_prompt(
        question=answer.question,
        evaluated_answer=first,
        reference=second,
        role=answer.role,
        series=answer.script,
        other_role=answer.other_role,
        metric=metric,
    )
    quoted = Quotation(first, apart=not swapped), Quotation(second, apart=swapped)
    content = prompt.before, quoted[0], prompt.between, quoted[1], prompt.after
    image = None if answer.image is None else Path(answer.image)
    # Draws follow from the id, and journals hold replies by it.
    name = f"{answer.id}/{metric}" + ("/swapped" if swapped else "")
    return ChatRequest(name, one_turn(REVIEW_SYSTEM, image, *content))


def describe_reviews(output: Path, records: Iterable[JsonObject]) -> list[str]:
    """What a user should know about an output: answers without reviews, and every review without a pair of scores."""
    count, faulty, empty, unanswered = 0, [], [], []
    for record in records:
        id_ = shown(record["id"])
        if "rm_review" not in record:
            (unanswered if record["conversations"][1].get("answer_error") else empty).append(id_)
        for order, is_swapped in _ORDERS.items():
            for metric, review in record.get(order, {}).items():
                count += 1
                if review["score"] is None:
                    swapped = ", answers exchanged" if is_swapped else ""
                    faulty.append(f"  {id_}, {metric}{swapped}: {in_one_line(review['reason'])}")
    lines = []
    if empty:
        lines.append(f"{output}: empty answers, without reviews: {len(empty)} ({', '.join(empty)})")
    if unanswered:
        lines.append(
            f"{output}: answers that were refused or have failed, without reviews: {len(unanswered)} "
            f"({', '.join(unanswered)})"
        )
    if faulty:
        lines.append(
            f"{output}: reviews without a usable pair of scores: {len(faulty)} of {count}; they are stored with "
            "score null and will not count:"
        )
    return lines + faulty
