"""Fixtures of the generation tests: a tiny random model, drawn pictures, and `generate()` one at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mmrole.data.requests import ChatRequest
from mmrole.engine.sampling import candidates, draw, warp
from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.bpe import write_ranks
from mmrole.qwen_vl.chat_format import ChatTurn
from mmrole.qwen_vl.processing import Chat, QWenProcessor
from mmrole.qwen_vl.random_checkpoint import random_config, random_model
from mmrole.qwen_vl.vocabulary import byte_vocabulary


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> QWenTokenizer:
    """One token for each byte, so that prompt lengths are easy to choose."""
    file = tmp_path_factory.mktemp("byte_vocabulary") / "qwen.tiktoken"
    write_ranks(file, byte_vocabulary())
    return QWenTokenizer(file)


@pytest.fixture(scope="session")
def make_model(tokenizer: QWenTokenizer) -> Callable[[torch.dtype], QWenLMHeadModel]:
    """Makes the same small model in a dtype; training length 2,048, so NTK factors change there and at 4,096."""

    def make(dtype: torch.dtype) -> QWenLMHeadModel:
        config = random_config(256, hidden_size=128, num_hidden_layers=2, intermediate_size=256, visual_width=32)
        model = random_model(config, seed=7, dtype=torch.float32)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three pictures, no two alike."""
    drawn = []
    for number, colour in enumerate(("firebrick", "seagreen", "royalblue")):
        image = Image.new("RGB", (64 + 16 * number, 48), "ivory")
        ImageDraw.Draw(image).ellipse((8 * number, 4, 30 + 8 * number, 40), fill=colour)
        drawn.append(image)
    return drawn


@dataclass
class Reference:
    """What `generate()` gives for one request alone.

    Attributes:
        tokens: without the stop token.
        stopped: whether a stop token came.
        margins: at each step, how close another token was: the gap of the two largest scores, or the distance of the
            draw from a border of the chosen token's part of [0, 1).
    """

    tokens: list[int]
    stopped: bool
    margins: list[float]


class _Draw(LogitsProcessor):
    """Leaves one token: the one that the request's stream draws, or the largest."""

    def __init__(self, request: ChatRequest) -> None:
        self.settings, self.stream = request.settings, request.random_stream()
        self.margins: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = warp(scores, self.settings, input_ids)
        if self.settings.do_sample:
            options, uniform = candidates(scores[0]), self.stream.random()
            token = draw(options, uniform)
            borders = np.append(options.cumulative[:-1], [])
            self.margins.append(float(np.abs(borders - uniform).min()) if len(borders) else 1.0)
        else:
            first, second = scores[0].topk(2).values.tolist()
            token = int(scores[0].argmax())
            self.margins.append(first - second)
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


@pytest.fixture(scope="session")
def generate_alone(tokenizer: QWenTokenizer) -> Callable[[QWenLMHeadModel, ChatRequest], Reference]:
    """Runs transformers' generate() on one request: no tree, no batch."""
    processor = QWenProcessor(tokenizer)
    stops = [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]

    def run(model: QWenLMHeadModel, request: ChatRequest) -> Reference:
        images = [] if request.image is None else [request.image]
        inputs = processor(Chat([ChatTurn(request.text, images)], request.system))
        chooser = _Draw(request)
        generated = model.generate(
            **inputs,
            do_sample=False,
            top_p=None,
            top_k=None,
            max_new_tokens=request.settings.max_new_tokens,
            eos_token_id=stops,
            pad_token_id=tokenizer.eod_id,
            logits_processor=LogitsProcessorList([chooser]),
        )
        tokens = generated[0, inputs["input_ids"].shape[1] :].tolist()
        stopped = tokens[-1] in stops
        return Reference(tokens[:-1] if stopped else tokens, stopped, chooser.margins)

    return run
