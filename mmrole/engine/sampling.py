"""The next token of each sequence from its logits: greedy, or drawn with the sequence's own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmrole.data.requests import GenerationSettings


class Candidates(NamedTuple):
    """Tokens that may be drawn, in the order of their ids, and the cumulative distribution over them (float64)."""

    token_ids: np.ndarray
    cumulative: np.ndarray


class Choice(NamedTuple):
    """How the next token of a sequence is chosen.

    Attributes:
        name: of the request, for messages.
        settings: greedy or sampled, and among what.
        stream: one number is drawn from it where the sequence samples.
        seen: tokens of prompt and reply, for the repetition penalty; may be empty without it.
    """

    name: str
    settings: GenerationSettings
    stream: np.random.Generator
    seen: list[int]


def warp(scores: Tensor, settings: GenerationSettings, input_ids: Tensor | None = None) -> Tensor:
    """Logits after transformers' processors in its order; tokens that may not be drawn are -inf.

    Args:
        scores: [sequences, vocabulary] float32, with the same settings for all.
        settings: which processors apply.
        input_ids: int [sequences, positions], prompt and generated tokens; for the repetition penalty only.
    """
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample:
        if settings.temperature != 1:
            processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            processors.append(TopKLogitsWarper(min(settings.top_k, scores.shape[-1])))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
    # transformers declares a LongTensor, which no operation is said to return; and one where none of them reads it.
    return processors(input_ids, scores)  # pyright: ignore[reportArgumentType]


def candidates(scores: Tensor) -> Candidates:
    """The distribution over the tokens that `warp` has left, from one row of scores [vocabulary]."""
    token_ids = torch.isfinite(scores).nonzero().flatten()
    probabilities = scores[token_ids].double().softmax(0).cumsum(0)
    return Candidates(token_ids.cpu().numpy(), (probabilities / probabilities[-1]).cpu().numpy())


def draw(options: Candidates, uniform: float) -> int:
    """The token in whose part of [0, 1) the number falls: inverse transform sampling."""
    index = int(np.searchsorted(options.cumulative, uniform, side="right"))
    return int(options.token_ids[min(index, len(options.token_ids) - 1)])


def choose_tokens(scores: Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token of each sequence, from the logits of its last position; `scores` is [sequences, vocabulary]."""
    scores = scores.float()
    tokens = [0] * len(choices)
    kinds = [replace(choice.settings, seed=0, max_new_tokens=1) for choice in choices]  # neither changes the scores
    for kind in dict.fromkeys(kinds):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        if kind.repetition_penalty == 1:
            warped = warp(scores if len(rows) == len(scores) else scores[rows], kind)
        else:
            seen = [torch.tensor([choices[row].seen], device=scores.device) for row in rows]
            warped = torch.cat([warp(scores[[row]], kind, ids) for row, ids in zip(rows, seen, strict=True)])
        if kind.do_sample:
            chosen = [
                draw(candidates(line), choices[row].stream.random()) for row, line in zip(rows, warped, strict=True)
            ]
        else:
            chosen = warped.argmax(-1).tolist()
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    return tokens
