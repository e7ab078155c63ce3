"""A reward model's replies to the prompts of its training or validation file, as a job: one request a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from mmrole.base.errors import RecordError, Where
from mmrole.base.json_values import JsonObject
from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.messages import one_turn
from mmrole.data.pictures import read_conversation
from mmrole.data.prompts import REVIEW_SYSTEM
from mmrole.data.records import TrainingRecord
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.jobs.programs import Program


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A row of such a file: a conversation of one review prompt and one review."""

    UNIQUE_IDS: ClassVar[bool] = True

    id: str
    """The row's number in the file, and its own id: the eight reviews of an answer can share that."""
    image: str | None
    """Path relative to the image folder; None if the review is about no image."""
    prompt: str
    json: JsonObject = field(repr=False, hash=False)
    where: Where = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, obj: object, where: Where) -> Self:
        """Reads a record.

        Raises:
            RecordError: `obj` is not such a record.
        """
        row = TrainingRecord.from_json(obj, where)
        conversation = read_conversation(row)
        pictures = conversation.pictures
        if len(row.turns) != 2 or len(pictures) > 1 or conversation.faults:
            raise RecordError(f"{row.where}: must be a review prompt with one image or none, and its review")
        image = pictures[0].path.removeprefix(f"{IMAGE_FOLDER}/") if pictures else None
        return cls(row_id(row), image, conversation.turns[0].text, row.json, row.where)


def row_id(row: TrainingRecord) -> str:
    """The number of a row in its file, and its own id if it has one."""
    return f"{row.where.index} {row.id or ''}".strip()


def _ask(row: ReviewRow, replies: Mapping[str, ChatReply]) -> list[ChatRequest]:
    if row.id in replies:
        return []
    image = None if row.image is None else Path(row.image)
    return [ChatRequest(row.id, one_turn(REVIEW_SYSTEM, image, row.prompt))]


def _result(row: ReviewRow, replies: Mapping[str, ChatReply]) -> JsonObject:
    prompt, review = row.json["conversations"]
    reply = replies[row.id]
    answered = review | {"answer": reply.answer}
    if reply.answer_error is not None:
        answered |= {"answer_error": reply.answer_error}
    return row.json | {"id": row.id, "conversations": [prompt, answered]}


REPLIES = Program("agreement.py", ReviewRow, _ask, _result)
"""The rows with the reply as `conversations[1].answer`, beside the review that they are compared with."""
