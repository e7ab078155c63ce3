"""Fixtures of the training tests: a byte tokenizer, drawn pictures, conversations that share prefixes, small models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrole.base.errors import Where
from mmrole.data.messages import LabelledImage, Message
from mmrole.models.qwen_vl import QwenVL
from mmrole.qwen_vl import QWenConfig, QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.bpe import write_ranks
from mmrole.qwen_vl.random_checkpoint import random_config, random_model
from mmrole.qwen_vl.vocabulary import byte_vocabulary
from mmrole.training.encoding import EncodedSample, SampleEncoder
from mmrole.training.samples import TrainingSample


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> QWenTokenizer:
    """One token for each byte."""
    file = tmp_path_factory.mktemp("byte_vocabulary") / "qwen.tiktoken"
    write_ranks(file, byte_vocabulary())
    return QWenTokenizer(file)


@pytest.fixture(scope="session")
def byte_family(byte_tokenizer: QWenTokenizer) -> QwenVL:
    """The family of the small models."""
    return QwenVL(byte_tokenizer, small_config())


def small_config() -> QWenConfig:
    """Two layers, and images of 224 pixels."""
    return random_config(256, hidden_size=128, intermediate_size=256, visual_width=32, image_size=224)


@pytest.fixture(scope="session")
def picture_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with two pictures of noise, `0.png` and `1.png`."""
    folder = tmp_path_factory.mktemp("training_pictures") / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def conversation(number: int, question: str, answer: str, *images: Path, history: tuple = ()) -> TrainingSample:
    """A sample of one image and question, after a history of (question, answer)."""
    turns = [turn for pair in history for turn in zip(("user", "assistant"), pair, strict=True)]
    turns = [Message(speaker, (text,)) for speaker, text in (*turns, ("user", question), ("assistant", answer))]
    if images:
        shown = [LabelledImage(file, f"Picture {number}: ") for number, file in enumerate(images, 1)]
        turns[0] = Message("user", (*shown, "\n" + turns[0].content[0]))
    return TrainingSample(Where("train.json", number, str(number)), tuple(turns))


@pytest.fixture(scope="session")
def conversations(picture_dir: Path) -> list[TrainingSample]:
    """Nineteen samples that one forest holds.

    A dialogue about one picture whose replies are learned in one sample and history in the next ones; eight reviews of
    one text about the other, two of them equal; the same text without a picture.
    """
    first, second = (picture_dir / f"{number}.png" for number in range(2))
    pairs = tuple((f"And then, number {turn}?", f"Then I sailed on, {turn} times.") for turn in range(5))
    dialogue = [conversation(turn, *pairs[turn], first, history=pairs[:turn]) for turn in range(5)]
    context = [
        conversation(10 + turn, "\n".join(sum(pairs[:turn], ("Once more",))), f"That was {turn}.", first)
        for turn in range(4)
    ]
    task = "Here are a question and two answers. Judge them by their "
    reviews = [
        conversation(20 + n, task + aspect, f"The first is {'better' if n % 2 else 'worse'}: {aspect}.", second)
        for n, aspect in enumerate(["tone", "tone", "fluency", "fluidity", "coherence", "truth", "relevance", "form"])
    ]
    return [*dialogue, *context, *reviews, conversation(30, task + "tone", "No picture."), conversation(31, "Hi", "Hm")]


@pytest.fixture(scope="session")
def encoded(byte_family: QwenVL, conversations: list[TrainingSample]) -> list[EncodedSample]:
    """The conversations as token ids; some learn nothing but their last 30 tokens: the rest is context there."""
    samples = list(SampleEncoder(byte_family, max_length=1000).encode_all(conversations))
    for place in (2, 4, 12):
        targets = samples[place].targets.copy()
        targets[:-30] = False
        samples[place] = replace(samples[place], targets=targets)
    return samples


@pytest.fixture(scope="session")
def make_model() -> Callable[..., QWenLMHeadModel]:
    """Makes the same small model, in training mode."""

    def make(dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> QWenLMHeadModel:
        config = small_config()
        model = random_model(config, seed=3, dtype=torch.float64).to(dtype)
        model.set_attn_implementation(attention)
        return model.train()

    return make
