"""Typed, validated records of MMRole files: test samples, training samples, answers and reviews.

A record keeps the JSON object that it was read from, so it is written back as it was: same fields, same order, unknown
fields included. Its attributes are what the project uses of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from mmrole.base.errors import RecordError, Where, shown
from mmrole.base.fields import JsonRecord, read_object, read_optional, read_text
from mmrole.base.json_values import JsonObject

HIGHEST_SCORE = 10

LOWEST_REFERENCE = 0.01
"""Of a reference's score: by less, a ratio says nothing, down to one that is infinite."""


@dataclass(frozen=True, slots=True)
class Sample(JsonRecord):
    """A test sample: a question to a character, and the reference answer."""

    id: str
    system: str
    image: str | None
    """Path relative to the image folder; None if the talk is about no image."""
    question: str
    reference: str
    role: str
    script: str
    """The series of `role`."""
    other_role: str

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        question, answer = _conversation(obj, where)
        return {
            "id": obj["id"],
            "system": read_text(obj, "system", where, empty=True),
            "image": None if obj.get("image") is None else read_text(obj, "image", where),
            **{key: read_text(obj, key, where) for key in ("role", "script", "other_role")},
            "question": read_text(question, "value", where, "conversations[0]"),
            "reference": read_text(answer, "value", where, "conversations[1]"),
        }

    def with_answer(self, answer: str, error: str | None = None) -> "Answer":
        """The record with a model's answer, as `conversations[1].answer`.

        An earlier answer is replaced, and its reviews are left out: they are not about this one.

        Args:
            answer: the answer; empty if there is none.
            error: why there is none, as `conversations[1].answer_error`.
        """
        question, reference = self.json["conversations"]
        reference = {key: value for key, value in reference.items() if key != "answer_error"}
        made = {"answer": answer} | ({} if error is None else {"answer_error": error})
        kept = {key: value for key, value in self.json.items() if not key.startswith("rm_review")}
        return Answer.from_json(kept | {"conversations": [question, reference | made]}, self.where)


@dataclass(frozen=True, slots=True)
class Answer(Sample):
    """A test sample with a model's answer, which may be empty."""

    answer: str
    answer_error: str | None
    """Why there is no answer, if it was refused or no reply came: `refused: …`, `failed: …`."""

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        values = super(Answer, cls)._values(obj, where)
        turn = obj["conversations"][1]
        if "answer" not in turn:
            raise RecordError(f'{where}: conversations[1] has no "answer"; answer the samples first (inference.py)')
        answer = read_text(turn, "answer", where, "conversations[1]", empty=True)
        error = read_optional(turn, "answer_error", where)
        if error and answer.strip():
            raise RecordError(f'{where}: conversations[1] has an "answer" and an "answer_error"; leave one of them out')
        return values | {"answer": answer, "answer_error": error or None}

    def with_reviews(
        self, reviews: dict[str, "MetricReview"], swapped: dict[str, "MetricReview"] | None = None
    ) -> "Review":
        """The record with its reviews by metric, as `rm_review`, and those with the answers exchanged, if there are
        any, as `rm_review_swapped`. Earlier reviews are replaced."""
        kept = {key: value for key, value in self.json.items() if not key.startswith("rm_review")}
        made = {"rm_review": reviews} | ({} if swapped is None else {"rm_review_swapped": swapped})
        for key, by_metric in made.items():
            kept[key] = {metric: review.to_json() for metric, review in by_metric.items()}
        return Review.from_json(kept, self.where)


def score_fault(evaluated: float, reference: float) -> str:
    """Why a pair of scores cannot be used; empty if it can."""
    if not (0 <= evaluated <= HIGHEST_SCORE and 0 <= reference <= HIGHEST_SCORE):  # NaN is not, either
        return f"score {shown([evaluated, reference])} is not between 0 and {HIGHEST_SCORE}"
    if not reference:
        return "the reference's score is 0"
    return "" if reference >= LOWEST_REFERENCE else f"the reference's score is below {LOWEST_REFERENCE}"


class MetricReview(NamedTuple):
    """One review of an answer under one metric."""

    text: str
    score: tuple[float, float] | None
    """(evaluated answer, reference), from 0 to 10, the reference from 0.01; None if no usable pair could be read."""
    reason: str = ""
    """Why there is no score."""

    def to_json(self) -> JsonObject:
        """The published form; without a score, `score` is null and `reason` follows it."""
        if self.score is None:
            return {"review": self.text, "score": None, "reason": self.reason}
        return {"review": self.text, "score": list(self.score)}


@dataclass(frozen=True, slots=True)
class Review(Answer):
    """An answer with its reviews by metric; an empty answer (or white space only) has none."""

    reviews: dict[str, MetricReview] = field(hash=False)
    swapped: dict[str, MetricReview] = field(hash=False)
    """The reviews with the reference shown first, if there are any; their pairs, too, are (evaluated, reference)."""

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        values = super(Review, cls)._values(obj, where)
        if "rm_review" not in obj:
            if values["answer"].strip():
                raise RecordError(f'{where}: no "rm_review"; review the answers first (eval/RM_review.py)')
            return values | {"reviews": {}, "swapped": {}}
        keys = {"reviews": "rm_review", "swapped": "rm_review_swapped"}
        return values | {name: _reviews(obj, key, where) for name, key in keys.items()}


class Turn(NamedTuple):
    """One turn of a training conversation."""

    speaker: Literal["user", "assistant"]
    value: str


@dataclass(frozen=True, slots=True)
class TrainingRecord(JsonRecord):
    """A training sample, of the agent or of the reward model: only `conversations` is required.

    Ids may repeat (the eight reviews of an answer can share one) and may be missing.
    """

    UNIQUE_IDS: ClassVar[bool] = False

    id: str | None
    turns: tuple[Turn, ...]
    """User and assistant in turn. Pictures can be in them as markup: `pictures.read_conversation`."""
    images: tuple[str, ...]
    """Paths of the field `image` or `images`, relative to the image folder; empty in rows without it."""
    system: str | None
    type: str | None
    role: str | None
    script: str | None
    other_role: str | None

    @classmethod
    def _id(cls, obj: JsonObject, where: Where) -> str | None:
        return str(obj["id"]) if type(obj.get("id")) is int else read_optional(obj, "id", where)

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        turns = tuple(
            Turn(turn["from"], read_text(turn, "value", where, f"conversations[{number}]"))
            for number, turn in enumerate(_turns(obj, where))
        )
        optional = ("system", "type", "role", "script", "other_role")
        values = {key: read_optional(obj, key, where) for key in optional}
        return values | {"id": where.id, "turns": turns, "images": _images(obj, where)}


def _images(obj: JsonObject, where: Where) -> tuple[str, ...]:
    """The images of a training sample's fields: one path or several, each also as `{"path": …}`."""
    one, several = _paths(obj, "image", where), _paths(obj, "images", where)
    if several and not set(one) <= set(several):
        raise RecordError(f'{where}: "image" is {shown(one[0])}, which is not among "images"; give only one of them')
    return several or one


def _paths(obj: JsonObject, key: str, where: Where) -> tuple[str, ...]:
    value = obj.get(key)
    items = value if isinstance(value, list) else [] if value is None else [value]
    paths = [item.get("path") if isinstance(item, dict) else item for item in items]
    usable = tuple(path for path in paths if isinstance(path, str) and path.strip())
    if len(usable) < len(paths):
        raise RecordError(f'{where}: "{key}" must be a path, or a list of paths, not {shown(value)}')
    return usable


def _turns(obj: JsonObject, where: Where) -> list[JsonObject]:
    turns = obj.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        found = f"a list of {len(turns)}" if isinstance(turns, list) else shown(turns)
        raise RecordError(f'{where}: "conversations" must be a list of user and assistant in turn, not {found}')
    for number, turn in enumerate(turns):
        speaker = ("user", "assistant")[number % 2]
        found = read_object(turn, where, f"conversations[{number}]").get("from")
        if found != speaker:
            raise RecordError(f'{where}: "from" of conversations[{number}] must be "{speaker}", not {shown(found)}')
    return turns


def _conversation(obj: JsonObject, where: Where) -> list[JsonObject]:
    turns = _turns(obj, where)
    if len(turns) != 2:
        raise RecordError(
            f'{where}: "conversations" must be one user and one assistant turn, not {len(turns)}; '
            "earlier turns belong into the user turn, as the conversation history of the prompt"
        )
    return turns


def _reviews(obj: JsonObject, key: str, where: Where) -> dict[str, MetricReview]:
    reviews = {}
    for metric, review in read_object(obj.get(key, {}), where, f'"{key}"').items():
        inside = f"{key}[{shown(metric)}]"
        review = read_object(review, where, inside)
        text = read_text(review, "review", where, inside, empty=True)
        score, reason = _score(review, where, inside)
        reviews[metric] = MetricReview(text, score, reason)
    return reviews


def _score(review: JsonObject, where: Where, inside: str) -> tuple[tuple[float, float] | None, str]:
    if "score" not in review:
        raise RecordError(f'{where}: "score" of {inside} is missing; give a pair of numbers, or null')
    score = review["score"]
    if score is None or score == {}:  # {} is what the published script stores where it could not read a pair
        return None, read_optional(review, "reason", where) or "no score pair"
    numbers = isinstance(score, list) and all(type(number) in (int, float) for number in score)
    if not numbers or len(score) != 2:
        raise RecordError(f'{where}: "score" of {inside} must be a pair of numbers, or null, not {shown(score)}')
    fault = score_fault(*score)
    if fault:
        return None, fault
    evaluated, reference = score
    return (float(evaluated), float(reference)), ""
