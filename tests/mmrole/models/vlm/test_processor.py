"""Chats with one image and with several: tokens, pixels and logits are those of transformers' own processor and model.

Processors read the images of a chat otherwise where there are several (LLaVA-OneVision), in tiles by their shapes, or
all alike.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.vlms.checkpoints import write_vlm
from fixtures.vlms.chosen import ALL, FALLING_BACK
from fixtures.vlms.published_sizes import of_published_sizes
from fixtures.vlms.reference import family_inputs, family_processor
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, BatchFeature

from mmrole.data.messages import Message, one_turn
from mmrole.engine.images import ImageTable, ImageView
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import read_family
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.tree_model import VlmTreeModel
from mmrole.prompt_tree import PromptTree, TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.image_keys import ImagePlace, feature_rows, image_keys
from mmrole.prompt_tree.mask import Visibility

TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
TOLERANCE = 1e-4
"""Of the largest logit; in float32 an image differs a little when it is encoded together with others."""

PAGE_NAMES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "qwen3_5": "Qwen3.5",
    "internvl": "InternVL3",
    "llava": "LLaVA",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "mistral3": "Mistral3",
    "pixtral": "Pixtral",
    "gemma3": "Gemma 3",
    "glm4v": "GLM-4V",
}
"""In the table of docs/models.md."""

Chat = tuple[Message, ...]


@lru_cache
def picture(width: int, height: int) -> Image.Image:
    """No two places are alike."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


WIDE, TALL, SQUARE, LARGE = picture(90, 50), picture(40, 120), picture(64, 64), picture(170, 130)
SYSTEM = "You are Mira, who keeps the lighthouse of a small island."


def chats() -> list[Chat]:
    """About one, two and three images, of one turn and of several; the first two of each begin alike."""
    one = one_turn(SYSTEM, WIDE, "What do you see there, Mira?")
    later = (*one, Message("assistant", ("A boat.",)), Message("user", (TALL, "And here?")))
    three = one_turn(SYSTEM, LARGE, WIDE, TALL, "Which of them is yours?")
    return [
        one,
        later,
        (*later, Message("assistant", ("A tower.",)), Message("user", (SQUARE, "And now?"))),
        (*one, Message("assistant", ("A boat.",)), Message("user", (WIDE, "The same?"))),
        three,
        (*three, Message("assistant", ("The first.",)), Message("user", ("Why?",))),
        one_turn(SYSTEM, LARGE, "What is it?"),
        one_turn(SYSTEM, TALL, "What is it?"),
    ]


def theirs(processor: Any, chat: Chat) -> BatchFeature:
    return family_inputs(processor, [(message.role, list(message.content)) for message in chat])


@pytest.fixture(scope="module")
def loaded(tiny_vlm):
    """The family of a kind, and transformers' processor."""

    @lru_cache
    def load(kind: str) -> tuple[Vlm, Any]:
        return load_family(kind, tiny_vlm(kind))

    return load


def load_family(kind: str, directory: Path) -> tuple[Vlm, Any]:
    family = read_family(find_checkpoint(directory, False), reads_trees=kind not in FALLING_BACK)
    assert isinstance(family, Vlm)
    return family, family_processor(directory)


@pytest.mark.parametrize("kind", ALL)
def test_tokens_and_pixels_are_those_of_the_familys_processor(kind, loaded):
    family, processor = loaded(kind)
    for chat in chats():
        encoded, inputs = family.encode(chat), theirs(processor, chat)
        assert encoded.input_ids.tolist() == inputs["input_ids"][0].tolist()
        shown = [image.image for image in encoded.images]
        pixels = family.preprocess(shown, sum(image.among_others for image in encoded.images))
        names = inputs.keys() - TEXT_INPUTS
        assert "pixel_values" in names
        assert names <= pixels.keys()
        for name in names:
            assert torch.equal(pixels[name], torch.as_tensor(inputs[name])), name


@pytest.mark.parametrize("kind", ALL)
def test_an_image_alone_is_among_others_only_where_the_model_reads_it_otherwise(kind, loaded):
    """Elsewhere its features are computed once for all chats."""
    family, _ = loaded(kind)
    flags = [[image.among_others for image in family.encode(chat).images] for chat in chats()]
    otherwise = kind == "llava_onevision"
    assert flags == [[otherwise and len(each) > 1] * len(each) for each in flags]


@pytest.mark.parametrize("kind", ALL)
def test_logits_are_the_models_own(kind, loaded):
    compare_logits(*loaded(kind), chats())


@pytest.mark.parametrize("kind", ALL)
def test_images_of_published_sizes(kind, tmp_path, repository):
    """A photograph of COCO's sizes alone, then with a second one: as many tokens as docs/models.md says."""
    write_vlm(of_published_sizes(kind), tmp_path)
    photographs = picture(640, 480), picture(333, 500)
    one = one_turn(SYSTEM, photographs[0], "What do you see there, Mira?")
    later = (*one, Message("assistant", ("A boat.",)), Message("user", (photographs[1], "And here?")))
    family, processor = load_family(kind, tmp_path)
    compare_logits(family, processor, [one, later])
    page = (repository / "docs/models.md").read_text("utf-8")
    (said,) = re.findall(rf"^\| {re.escape(PAGE_NAMES[kind])} \|.*\| ([\d,]+) \|", page, re.MULTILINE)
    assert sum(stop - start for start, stop in family.encode(one).images[0].spans) == int(said.replace(",", ""))


def compare_logits(family: Vlm, processor: Any, chats: Sequence[Chat]) -> None:
    """Of all chats as one tree, each image encoded once, alone; one after the other where the model reads no trees."""
    usual: Any = AutoModelForImageTextToText.from_pretrained(family.directory, dtype=torch.float32).eval()
    model = VlmTreeModel(family.load_module(family.directory, dtype=torch.float32), family)
    sequences, table, grids = [], ImageTable(), {}
    for chat in chats:
        encoded = family.encode(chat)
        numbers = [table.acquire(ImageView(image.image, image.among_others)) for image in encoded.images]
        grids |= {number: image.grid for number, image in zip(numbers, encoded.images, strict=True)}
        places = [ImagePlace(image.spans, number) for image, number in zip(encoded.images, numbers, strict=True)]
        sequences.append(TokenSequence(encoded.input_ids, image_keys(len(encoded.input_ids), places)))
    with torch.inference_mode():
        features = {number: features_of(model, table.view(number)) for number in range(len(table))}
        groups = [sequences] if family.reads_trees else [[sequence] for sequence in sequences]
        found: list[Tensor] = []
        for group in groups:
            tree = build_tree(group)
            assert len(group) == 1 or len(tree) < sum(map(len, group)) - 20
            hidden_states = read(model, tree, grids, features)
            found += [model.logits(hidden_states[tree.path(place)]) for place in range(len(group))]
        for chat, logits in zip(chats, found, strict=True):
            own = usual(**theirs(processor, chat)).logits[0]
            assert logits.shape == own.shape
            assert (logits - own).abs().max() <= TOLERANCE * own.abs().max()


def features_of(model: VlmTreeModel, view: ImageView) -> Tensor:
    (features,) = model.image_features([model.family.preprocess([view.source], int(view.among_others))])
    return features


def read(model: VlmTreeModel, tree: PromptTree, grids: dict[int, Any], features: dict[int, Tensor]) -> Tensor:
    """The last hidden states of a tree's nodes, of one without branches where the model reads no others."""
    family = model.family
    rows = torch.from_numpy(feature_rows(tree.image_keys, {number: len(each) for number, each in features.items()}))
    places = (rows >= 0).nonzero()[:, 0]
    images = places, torch.cat(list(features.values()))[rows[places]]
    input_ids, positions = torch.from_numpy(tree.input_ids), torch.from_numpy(family.positions(tree, grids))
    if not family.reads_trees:
        return model.read_on(input_ids, positions, model.new_cache(), images)
    last, first, depths = Visibility.of(tree, family.images_both_ways, family.windows)
    attention = BlockwiseAttention(last, first=first, depths=depths)
    return model.hidden_states(input_ids, positions, torch.ones(1, dtype=torch.int64), attention, images)


@pytest.mark.parametrize("kind", ALL)
def test_images_of_the_same_shapes_are_encoded_together(kind, loaded, tiny_vlm):
    """As on a GPU. Of LLaVA-OneVision's, which are cut back to their own shapes, each has its own number of rows."""
    family, _ = loaded(kind)
    model = VlmTreeModel(family.load_module(tiny_vlm(kind), dtype=torch.float32), family)
    images = [picture(90, 50), picture(92, 50), picture(70, 70), picture(90, 60)]
    for among_others in {False, family.processor.counts_images}:
        together = [family.preprocess([image], int(among_others)) for image in images]
        alike = [pixels for pixels in together if shapes(pixels) == shapes(together[0])]
        assert len(alike) > 1
        with torch.inference_mode():
            found = model.image_features(alike)
            if kind == "llava_onevision" and not among_others:
                assert len({len(features) for features in found}) > 1
            for features, pixels in zip(found, alike, strict=True):
                (alone,) = model.image_features([pixels])
                assert features.shape == alone.shape
                assert (features - alone).abs().max() <= TOLERANCE * alone.abs().max()


def shapes(pixels: dict[str, Tensor]) -> list[torch.Size]:
    return [value.shape for value in pixels.values()]
