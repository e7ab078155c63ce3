"""A reward model's replies to the prompts of its training or validation file, as a job: one request a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from mmrole.base.errors import RecordError, Where
from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import one_turn
from mmrole.data.pictures import read_conversation
from mmrole.data.prompts import REVIEW_SYSTEM
from mmrole.data.records import TrainingRecord
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.jobs.tasks import Program

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A row of such a file: a conversation of one review prompt and one review."""

    UNIQUE_IDS: ClassVar[bool] = True

    id: str
    """The row's number in the file, and its own id: the eight reviews of an answer can share that."""
    image: str
    """Path relative to the image folder."""
    prompt: str
    json: Json = field(repr=False, hash=False)
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
        if len(row.turns) != 2 or len(pictures) != 1 or conversation.faults:
            raise RecordError(f"{row.where}: must be a review prompt with one image, and its review")
        image = pictures[0].path.removeprefix(f"{IMAGE_FOLDER}/")
        return cls(f"{where.index} {row.id or ''}".strip(), image, conversation.turns[0].text, row.json, row.where)


def _requests(row: ReviewRow, image: ImageFile, settings: GenerationSettings) -> list[ChatRequest]:
    return [ChatRequest(row.id, one_turn(REVIEW_SYSTEM, image, row.prompt), settings)]


def _result(row: ReviewRow, replies: Mapping[str, ChatReply]) -> Json:
    prompt, review = row.json["conversations"]
    answered = review | {"answer": replies[row.id].text}
    return row.json | {"id": row.id, "conversations": [prompt, answered]}


REPLIES = Program("agreement.py", ReviewRow, _requests, _result)
"""The rows with the reply as `conversations[1].answer`, beside the review that they are compared with."""
