"""A model that cannot read prompt trees: replies are those of `generate()`, one sequence after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fixtures.engine import generate_with
from fixtures.vlms.chosen import FALLING_BACK
from fixtures.vlms.reference import family_inputs, family_processor
from PIL import Image
from transformers import AutoModelForImageTextToText, GenerationConfig

from mmrole.base.files import read_json
from mmrole.data.messages import Message
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.engine.engine import Engine
from mmrole.engine.sequence_runner import SequenceRunner
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.loading import read_config
from mmrole.models.vlm.tree_model import VlmTreeModel

SETTINGS = {
    "greedy": GenerationSettings(max_new_tokens=48, do_sample=False),
    "sampled": GenerationSettings(max_new_tokens=48, temperature=1.2, top_k=30, top_p=0.9, seed=5),
    "repetition penalty": GenerationSettings(max_new_tokens=48, do_sample=False, repetition_penalty=1.3),
}
KINDS = ["qwen2_5_vl", *(pytest.param(kind, marks=pytest.mark.long) for kind in FALLING_BACK)]
"""The first one could read trees, and is kept from it."""


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, tiny_vlm: Callable[[str], Path]) -> Path:
    return tiny_vlm(request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> VlmTreeModel:
    generation = read_json(directory / "generation_config.json", dict)
    family = Vlm(directory, read_config(directory), generation, reads_trees=False)
    return VlmTreeModel(family.load_module(directory, dtype=torch.float64), family)


def requests(pictures: list[Image.Image], settings: GenerationSettings) -> list[ChatRequest]:
    """Chats of one and two turns with the same system message, with no picture, one and two of them."""
    asked = ("What do you see, Captain?", "Tell me more, and do not leave out the boats.", "Who?")
    one = [
        ChatRequest(f"{place}", (Message("system", ("You are Mira.",)), Message("user", (picture, text))), settings)
        for place, (picture, text) in enumerate(zip(pictures, asked, strict=True))
    ]
    turns = (
        *one[0].messages,
        Message("assistant", ("A boat.",)),
        Message("user", (pictures[1], "And here?")),
    )
    return [
        *one,
        ChatRequest("two", turns, settings),
        ChatRequest("none", (turns[0], Message("user", ("Hm",))), settings),
    ]


def answers(model: VlmTreeModel, asked: list[ChatRequest], max_batch_tokens: int = 10_000) -> dict[str, ChatReply]:
    engine = Engine(model, max_batch_tokens)
    assert isinstance(engine.runner, SequenceRunner)
    return {reply.id: reply for reply in engine.generate(asked)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_replies_are_those_of_generate(model, directory, pictures, settings):
    asked = requests(pictures, settings)
    replies = answers(model, asked)
    alone: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float64)
    alone.generation_config = GenerationConfig()  # requests say what is asked for
    processor = family_processor(directory)
    for request in asked:
        inputs = family_inputs(
            processor, [(message.role, cast("list[Any]", message.content)) for message in request.messages]
        )
        reference = generate_with(alone, inputs, request, sorted(model.family.stop_ids))
        assert list(replies[request.id].token_ids) == reference.tokens, request.id
        assert replies[request.id].finish_reason == ("stop" if reference.stopped else "length")


def test_room_and_company_change_nothing(model, pictures):
    asked = requests(pictures, SETTINGS["sampled"])
    replies = answers(model, asked)
    assert answers(model, asked, max_batch_tokens=1) == replies
    assert answers(model, asked, max_batch_tokens=300) == replies
    engine = Engine(model, 10_000)
    found = {}
    for request in [*asked, None, None]:  # each joins a step later than the one before
        if request is not None:
            engine.add(request)
        found |= {each.id: each for each in engine.step() if isinstance(each, ChatReply)}
    engine.cancel("1")
    while not engine.is_idle:
        found |= {each.id: each for each in engine.step() if isinstance(each, ChatReply)}
    assert found == {id_: reply for id_, reply in replies.items() if id_ != "1"}


def test_caches_are_within_the_budget(model, pictures):
    engine = Engine(model, 10_000)
    runner = engine.runner
    assert isinstance(runner, SequenceRunner)
    state, each = runner._bytes()
    assert each > 0
    most = []
    for request in requests(pictures, SETTINGS["greedy"]):
        engine.add(request)
    while not engine.is_idle:
        engine.step()
        most += [(model.cache_bytes(row.cache), state + each * row.slots) for row in runner._rows]
    assert all(held <= planned for held, planned in most)
    assert any(held > planned / 2 for held, planned in most)
    assert not runner._rows


def test_more_tokens_than_are_drawn_at_once(model, pictures, monkeypatch):
    asked = requests(pictures, SETTINGS["sampled"])
    replies = answers(model, asked)
    monkeypatch.setattr("mmrole.engine.sequence_runner.STEPS_AHEAD", 7)
    assert answers(model, asked) == replies
