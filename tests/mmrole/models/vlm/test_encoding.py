"""Chats as token ids: those of the family's own processor for harmless texts, and no markup out of hostile ones."""

import json
import re
import shutil
import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from fixtures.hostile_answers import HOSTILE
from fixtures.vlms.chosen import ALL
from fixtures.vlms.kinds import KINDS
from fixtures.vlms.reference import family_inputs, family_processor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import ProcessorMixin

from mmrole.base.errors import UserError
from mmrole.data.messages import Message, Quotation, one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.context import Context
from mmrole.models.families import Encoded, Family
from mmrole.models.loading import read_family
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.image_rows import vision_features

WORDS = [
    "Mira",
    " the",
    " sea's",
    "12",
    ".",
    "!?",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " ",
    "  ",
    "中文",
    "é",
    "e\u0301",
    "👍🏽",
    "▁",
]
texts = st.lists(st.sampled_from(WORDS) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)


@lru_cache
def picture(width: int = 90, height: int = 60) -> Image.Image:
    image = Image.new("RGB", (width, height), "ivory")
    ImageDraw.Draw(image).ellipse((8, 8, width - 30, height - 10), fill="firebrick")
    return image


@pytest.fixture(scope="module")
def encode(tiny_vlm):
    @lru_cache
    def family(kind: str) -> Vlm:
        return read_family(find_checkpoint(tiny_vlm(kind), False))

    return family


@pytest.fixture(scope="module")
def processor(tiny_vlm):
    return lru_cache(lambda kind: family_processor(tiny_vlm(kind)))


def as_turns(messages: tuple[Message, ...]) -> list[tuple[str, list]]:
    """Nothing is no part, unless there is no other."""
    return [(role, [part for part in content if part != ""] or [""]) for role, content in messages]


def has_the_rows_of_its_images(encoded: Encoded, family: Vlm) -> None:
    """All placeholders are an image's, and none of its rows is missing."""
    rows = [place for image in encoded.images for span in image.spans for place in range(*span)]
    assert np.flatnonzero(encoded.input_ids == family.config.image_token_id).tolist() == rows


def plain(text: str) -> str:
    """A text up to what tokenizers do not keep: the form of characters, the sign for a blank, white space around it."""
    whole = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return unicodedata.normalize("NFD", whole).replace("▁", " ").strip()


def markup_of(kind: str, processor: ProcessorMixin) -> list[str]:
    """Every special token of a kind, and what stands for an image."""
    tokenizer = processor.tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | set(tokenizer.all_special_tokens) | {KINDS[kind].image, KINDS[kind].filler})


@pytest.mark.parametrize("kind", ALL)
def test_harmless_chats_are_those_of_the_familys_processor(kind, encode, processor):
    family = encode(kind)

    @given(texts, texts, texts, texts)
    @settings(max_examples=25)
    def check(system: str, question: str, reply: str, second: str) -> None:
        chat = (*one_turn(system, picture(), question), Message("assistant", (reply,)), Message("user", (second,)))
        encoded = family.encode(chat)
        expected = family_inputs(processor(kind), as_turns(chat))
        assert encoded.input_ids.tolist() == expected["input_ids"][0].tolist()
        assert len(encoded.input_ids) <= family.encoder.most_positions(chat)
        has_the_rows_of_its_images(encoded, family)

    check()


@pytest.mark.parametrize("kind", ALL)
def test_samples_to_learn_from_are_those_of_the_familys_processor(kind, encode, processor):
    """Where nothing in the family's format ends a reply, a token that does is put behind the last one."""
    family = encode(kind)

    @given(texts, texts)
    @example("What?", "")
    @example("", "\n ")
    @settings(max_examples=15)
    def check(question: str, reply: str) -> None:
        chat = (*one_turn("You are Mira.", picture(), question), Message("assistant", (reply,)))
        encoded = family.encode(chat, for_training=True)
        expected = family_inputs(processor(kind), as_turns(chat), reply=False)["input_ids"][0].tolist()
        assert encoded.input_ids[: len(expected)].tolist() == expected
        assert set(encoded.input_ids[len(expected) :].tolist()) <= family.stop_ids
        learned = encoded.input_ids[encoded.targets].tolist()
        assert plain(family.decode(learned)) == plain(reply)
        assert learned[-1] in family.stop_ids
        asked = family.encode(chat[:-1]).input_ids
        assert not encoded.targets[: len(asked) - 1].any()

    check()


@pytest.mark.parametrize("kind", ALL)
def test_several_images_are_where_the_familys_processor_puts_them(kind, encode, processor):
    family, pictures = encode(kind), [picture(), picture(64, 64), picture(40, 120)]
    question = [part for image in pictures for part in (image, "Look:\n")]
    chat = (*one_turn("You are Mira.", *question), Message("assistant", ("Oh.",)), Message("user", ("And?",)))
    if kind in ("llava", "llava_next", "llava_onevision"):  # texts come behind all images
        chat = (
            Message("system", ("You are Mira.",)),
            Message("user", (*pictures, "Look:\n" * len(pictures))),
            *chat[2:],
        )
    encoded = family.encode(chat)
    expected = family_inputs(processor(kind), as_turns(chat))
    assert encoded.input_ids.tolist() == expected["input_ids"][0].tolist()
    has_the_rows_of_its_images(encoded, family)
    assert [image.image for image in encoded.images] == pictures


@pytest.mark.parametrize("kind", ALL)
def test_no_text_becomes_a_special_token_or_a_placeholder(kind, encode, processor):
    family, markup = encode(kind), markup_of(kind, processor(kind))
    special = set(processor(kind).tokenizer.convert_tokens_to_ids(markup))

    def markup_in(text: str, quoted: str) -> Counter[int]:
        chat = (
            *one_turn(f"A{text}Z", picture(), f"A{text}Z", Quotation(quoted)),
            Message("assistant", (f"A{text}Z",)),
            Message("user", (f"A{text}Z",)),
        )
        encoded = family.encode(chat)
        has_the_rows_of_its_images(encoded, family)
        assert len(encoded.images) == 1
        for ids in (encoded.input_ids, family.encode(chat[:3], for_training=True).input_ids):
            said = family.decode([int(token) for token in ids if token not in special])
            assert plain(text) in plain(said), (text, said)
        return Counter(token for token in encoded.input_ids.tolist() if token in special)

    harmless = markup_in("word", "Word")
    hostile = [text for text in HOSTILE if len(text) < 1_000]
    for text in [*hostile, *markup, "".join(markup), "\n".join(markup), "<0x0A><0xE4>", "<|im_end|> <s> \n</s>"]:
        assert markup_in(text, text) == harmless, text

    @given(st.lists(st.sampled_from([*markup, *WORDS, "<", "|", ">", "[", "]"]), max_size=8).map("".join))
    @settings(max_examples=25)
    def check(text: str) -> None:
        assert markup_in(text, text) == harmless

    check()


@pytest.mark.parametrize("kind", ALL)
def test_long_hostile_texts_take_no_long_time_and_are_counted(kind, encode):
    family = encode(kind)
    for text in (text for text in HOSTILE if len(text) >= 1_000):
        chat = one_turn("", text)
        assert len(family.encode(chat).input_ids) <= family.encoder.most_positions(chat)


@pytest.mark.parametrize("kind", ALL)
def test_a_quotation_is_cut_to_the_context(kind, encode):
    family, quoted = encode(kind), " ".join(WORDS) * 40
    context = Context(family.encoder, 400)
    chat = one_turn("You are Mira.", picture(), "They said:", Quotation(quoted), "\n\nIs that so?")
    request = ChatRequest("x", chat, GenerationSettings(max_new_tokens=20))
    (cut,) = context.cut([request], context.excess([request]))
    assert context.excess([cut]) == 0
    assert 360 < len(family.encode(cut.messages).input_ids) <= 380
    assert quoted.startswith(next(part.text for part in cut.turns[0].content if isinstance(part, Quotation)))


@pytest.mark.parametrize("kind", ALL)
def test_images_of_odd_shapes_have_their_rows_or_are_refused(kind, encode, tiny_vlm, tmp_path):
    """What has rows, the model takes."""
    family = encode(kind)
    inner = family.load_module(tiny_vlm(kind)).eval().model
    for size in ((31, 33), (500, 40), (40, 500), (1, 150), (1, 1), (700, 3)):
        image = tmp_path / f"{size[0]}x{size[1]}.png"
        Image.new("RGB", size).save(image)
        if size == (700, 3) or (kind in ("mistral3", "pixtral") and size[0] == 1):
            with pytest.raises(UserError, match=rf"{image}: {size[0]} x {size[1]} pixels, which the model does not"):
                family.encode(one_turn("", image, "What?"))
        else:
            encoded = family.encode(one_turn("", image, "What?"))
            has_the_rows_of_its_images(encoded, family)
            rows = sum(stop - start for start, stop in encoded.images[0].spans)
            assert len(vision_features(inner, family.preprocess([image]), None)) == rows


def older(state: dict) -> None:
    """As Llama 2's tokenizers were written first: a blank is put behind each special token, too."""
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    state |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}}


def greedy(state: dict) -> None:
    """Special tokens take the white space around them."""
    for number, token in enumerate(state["added_tokens"]):
        token |= {"lstrip": number % 2 == 0, "rstrip": number % 3 == 0} if token["special"] else {}


def unmarked(state: dict) -> None:
    """The placeholder is not called special."""
    for token in state["added_tokens"]:
        token["special"] &= token["content"] not in ("<image>", "<|image_pad|>", "<image_soft_token>")


VARIANTS = [("llava", older), ("llava", greedy), ("llava", unmarked), ("qwen2_5_vl", greedy), ("qwen3_vl", unmarked)]


@pytest.mark.parametrize(("kind", "change"), VARIANTS, ids=[f"{kind} {change.__name__}" for kind, change in VARIANTS])
def test_other_ways_of_writing_a_tokenizer(kind, change, tiny_vlm, tmp_path):
    directory = shutil.copytree(tiny_vlm(kind), tmp_path / kind)
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    change(state)
    (directory / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["added_tokens_decoder"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    family, own = read_family(find_checkpoint(directory, False)), family_processor(directory)

    def encode(kind: str) -> Family:
        return family

    def processor(kind: str) -> ProcessorMixin:
        return own

    test_harmless_chats_are_those_of_the_familys_processor(kind, encode, processor)
    test_no_text_becomes_a_special_token_or_a_placeholder(kind, encode, processor)


@pytest.mark.parametrize("kind", ALL)
def test_the_chat_template_is_the_processors(kind, encode, tiny_vlm, tmp_path):
    """Many checkpoints have it in a file of the processor's, and in the tokenizer's one that shows no images."""
    directory = shutil.copytree(tiny_vlm(kind), tmp_path / kind)
    template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    chat = one_turn("You are Mira.", picture(), "What do you see?")
    family = read_family(find_checkpoint(directory, False))
    assert family.encode(chat).input_ids.tolist() == encode(kind).encode(chat).input_ids.tolist()


def test_no_text_becomes_a_token_that_ends_replies(tiny_vlm, tmp_path):
    """Whatever generation_config.json names ends a reply, also what the tokenizer calls a word like any other."""
    directory = shutil.copytree(tiny_vlm("qwen2_5_vl"), tmp_path / "model")
    file = directory / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    family = read_family(find_checkpoint(directory, False))
    word = family.processor.tokenizer.convert_tokens_to_ids("</tool_call>")
    chat = (*one_turn("A</tool_call>Z", "A</tool_call>Z"), Message("assistant", ("A</tool_call>Z",)))
    assert (family.encode(chat, for_training=True).input_ids == word).sum() == 3
    file.write_text(json.dumps({**settings, "eos_token_id": [*settings["eos_token_id"], word]}), encoding="utf-8")
    family = read_family(find_checkpoint(directory, False))
    encoded = family.encode(chat, for_training=True)
    assert word not in encoded.input_ids
    assert family.decode(encoded.input_ids[encoded.targets]) == "A</tool_call>Z"
