"""The tiny vision-language models that other tests use are models as transformers knows them."""

from typing import Any

import pytest
import torch
from fixtures.vlms.chosen import ALL, ALWAYS, FALLING_BACK, WITH_LONG
from fixtures.vlms.kinds import KINDS
from fixtures.vlms.reference import family_inputs, family_processor
from PIL import Image
from transformers import AutoModelForImageTextToText

QUESTION = "What do you see, Captain?"


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    stripes = Image.linear_gradient("L").resize((90, 60))
    return [Image.merge("RGB", [stripes, stripes.rotate(180), stripes]), Image.new("RGB", (64, 64), "seagreen")]


def test_each_kind_is_chosen_once():
    assert sorted(KINDS) == sorted((*ALWAYS, *WITH_LONG, *FALLING_BACK))


@pytest.mark.parametrize("kind", ALL)
def test_it_generates_from_what_its_family_makes_of_a_conversation(kind, tiny_vlm, pictures):
    directory = tiny_vlm(kind)
    processor = family_processor(directory)
    model: Any = AutoModelForImageTextToText.from_pretrained(directory)

    def reply(image: Image.Image) -> list[int]:
        inputs = family_inputs(processor, [("system", ["You are Mira."]), ("user", [image, QUESTION])])
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=64)
        return generated[0, inputs["input_ids"].shape[1] :].tolist()

    replies = [reply(image) for image in pictures]
    assert replies[0] != replies[1], "what is seen changes what is said"
    assert all(len(set(tokens)) > len(tokens) / 3 for tokens in replies)
    assert sum(file.stat().st_size for file in directory.iterdir()) < 1_600_000


@pytest.mark.parametrize("kind", ALL)
def test_its_replies_depend_on_their_beginning(kind, tiny_vlm, pictures):
    """Otherwise an error in the first layers of a long prompt could not be seen."""
    directory = tiny_vlm(kind)
    processor = family_processor(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    turns = [("user", [pictures[0], QUESTION]), ("assistant", ["A boat, and a dog."]), ("user", ["And what else?"])]
    first, second = (
        model(**family_inputs(processor, [("system", [text]), *turns])).logits[0, -1].detach()
        for text in ("You are the old keeper.", "You are Captain Mira.")
    )
    assert (first - second).abs().max() > 0.1
    assert first.std() == pytest.approx(3, abs=1.5)
    assert torch.isfinite(first).all()
