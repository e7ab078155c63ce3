"""The law of the engine with transformers' vision-language models: a reply is what `generate()` gives for it alone."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fixtures.engine import Reference, generate_with
from fixtures.vlms.chosen import FALLING_BACK, WITH_TREES
from fixtures.vlms.reference import family_inputs, family_processor
from PIL import Image
from transformers import AutoModelForImageTextToText, GenerationConfig

from mmrole.data.messages import Message, one_turn
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.engine.engine import Engine
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.families import TreeModel
from mmrole.models.loading import ModelOptions, find_model, load, read_family
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.tree_model import VlmTreeModel

GREEDY = GenerationSettings(max_new_tokens=64, do_sample=False)
SAMPLED = GenerationSettings(max_new_tokens=64, temperature=1.3, top_k=40, top_p=0.9, seed=5)
PENALISED = GenerationSettings(max_new_tokens=64, do_sample=False, repetition_penalty=1.3)
SYSTEM = "You are a dedicated role-playing assistant."
SURE = 1e-4
"""A float32 step whose margin is smaller may be decided by rounding."""


def words(length: int, seed: int) -> str:
    source = random.Random(seed)
    return "".join(source.choice("abcdefghij ,.") for _ in range(length))


def three_levels(picture: Image.Image) -> list[ChatRequest]:
    """Requests about one picture: a common history, two characters, three questions to each, chosen in three ways."""
    history = words(700, 1)
    return [
        ChatRequest(
            f"{role}-{ask}",
            one_turn(SYSTEM, picture, history + words(80, 10 + role) + words(25, 100 + ask)),
            settings,
        )
        for role in range(2)
        for ask, settings in enumerate((GREEDY, SAMPLED, PENALISED if role else SAMPLED))
    ]


def talks(pictures: list[Image.Image]) -> list[ChatRequest]:
    """Several turns and several images, which two requests have in common, the talk before the second image was shown,
    and a prompt without an image."""
    first, second = one_turn(SYSTEM, pictures[1], words(300, 3))
    turns = (first, second, Message("assistant", (words(90, 4),)))
    return [
        ChatRequest("b", (*turns, Message("user", (pictures[2], words(30, 5)))), GREEDY),
        ChatRequest("b again", (*turns, Message("user", (pictures[2], words(30, 6)))), SAMPLED),
        ChatRequest("b before", (first, second), GREEDY),
        ChatRequest("nothing shown", one_turn(SYSTEM, words(50, 7)), GREEDY),
    ]


@pytest.fixture(scope="module", autouse=True)
def own_proofs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is found out about the models is neither taken from the user's cache nor left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tree_model(tiny_vlm: Callable[[str], Path]) -> Callable[[str], TreeModel]:
    def loaded(kind: str) -> TreeModel:
        return load(find_model(ModelOptions(tiny_vlm(kind), dtype="float32", device="cpu")), progress=False)

    return loaded


@pytest.fixture(scope="module")
def alone(tiny_vlm: Callable[[str], Path]) -> Callable[[str, list[ChatRequest]], dict[str, Reference]]:
    """Runs transformers' generate() on each request: its own attention, the family's own processor."""

    def run(kind: str, requests: list[ChatRequest]) -> dict[str, Reference]:
        processor = family_processor(tiny_vlm(kind))
        model: Any = AutoModelForImageTextToText.from_pretrained(tiny_vlm(kind), dtype=torch.float32)
        settings = model.generation_config
        model.generation_config = GenerationConfig()  # requests say what the checkpoint's settings are
        return {
            request.id: generate_with(
                model,
                family_inputs(processor, [(role, list(content)) for role, content in request.messages]),
                request,
                settings.eos_token_id,
            )
            for request in requests
        }

    return run


def answers(model: TreeModel, requests: list[ChatRequest], **options: Any) -> dict[str, ChatReply]:
    return {reply.id: reply for reply in Engine(model, 30_000, **options).generate(iter(requests))}


def agree(replies: dict[str, ChatReply], references: dict[str, Reference]) -> int:
    """Compares token by token up to the first close call; returns the number of tokens."""
    compared = 0
    for name, reference in references.items():
        reply = list(replies[name].token_ids)
        sure = next((step for step, margin in enumerate(reference.margins) if margin < SURE), len(reference.margins))
        assert reply[:sure] == reference.tokens[:sure], name
        if sure == len(reference.margins):
            assert reply == reference.tokens
            assert replies[name].finish_reason == ("stop" if reference.stopped else "length")
        compared += sure
    return compared


@pytest.mark.parametrize("kind", WITH_TREES)
def test_replies_are_those_of_generate(kind, tree_model, alone, pictures):
    model = tree_model(kind)
    requests = [*three_levels(pictures[0]), *talks(pictures)]
    references = alone(kind, requests)
    compared = agree(answers(model, requests), references)
    assert compared > 30 * len(requests)
    assert len({tuple(reference.tokens) for reference in references.values()}) == len(requests)


@pytest.mark.parametrize("kind", WITH_TREES)
def test_pages_reply_as_lanes(kind, tree_model, alone, pictures):
    requests = talks(pictures)[:2]
    model = tree_model(kind)
    lanes, pages = (answers(model, requests, paged=paged) for paged in (False, True))
    assert {name: reply.token_ids[:32] for name, reply in pages.items()} == {
        name: reply.token_ids[:32] for name, reply in lanes.items()
    }


@pytest.mark.parametrize("kind", WITH_TREES)
def test_a_prefix_is_read_once_and_an_image_encoded_once(kind, tree_model, pictures):
    model = tree_model(kind)
    assert model.family.reads_trees
    read: list[int] = []
    inner = model.hidden_states
    engine = Engine(model, 30_000)
    requests = three_levels(pictures[0])

    def noted(input_ids, *args, **kwargs):
        read.append(len(input_ids))
        return inner(input_ids, *args, **kwargs)

    model.hidden_states = noted
    replies = list(engine.generate(requests))
    longest = max(reply.usage.prompt_tokens for reply in replies)
    assert max(read) < 1.6 * longest
    assert len([nodes for nodes in read if nodes > 64]) == 1
    assert engine.runner.images.encoded == 1


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.long) for kind in FALLING_BACK), "llava"])
def test_a_model_that_reads_no_trees_replies_to_one_request_after_another(kind, tiny_vlm, tree_model, alone, pictures):
    if kind in FALLING_BACK:
        model = tree_model(kind)
    else:
        family = cast("Vlm", read_family(find_checkpoint(tiny_vlm(kind), False), reads_trees=False))
        model = VlmTreeModel(family.load_module(family.directory, dtype=torch.float32), family)
    assert not model.family.reads_trees
    requests = [*three_levels(pictures[0])[:3], *talks(pictures)]
    assert agree(answers(model, requests), alone(kind, requests)) > 15 * len(requests)
