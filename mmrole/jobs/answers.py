"""Answers to test samples, as a job: one request a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmrole.base.json_values import JsonObject
from mmrole.data.messages import one_turn
from mmrole.data.records import Sample
from mmrole.data.requests import ChatReply, ChatRequest
from mmrole.jobs.programs import Program


def _ask(sample: Sample, replies: Mapping[str, ChatReply]) -> list[ChatRequest]:
    if sample.id in replies:
        return []
    image = None if sample.image is None else Path(sample.image)
    return [ChatRequest(sample.id, one_turn(sample.system, image, sample.question))]


def _result(sample: Sample, replies: Mapping[str, ChatReply]) -> JsonObject:
    reply = replies[sample.id]
    return sample.with_answer(reply.answer, reply.answer_error).to_json()


ANSWERS = Program("inference.py", Sample, _ask, _result)
"""The samples with their answers, in the published form."""
