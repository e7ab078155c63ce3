"""The next token of each sequence from its logits: greedy, or drawn with the sequence's own random stream."""

from __future__ import annotations

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
    return processors(input_ids, scores)


def candidates(scores: Tensor) -> Candidates:
    """The distribution over the tokens that `warp` has left, from one row of scores [vocabulary]."""
    token_ids = torch.isfinite(scores).nonzero().flatten()
    probabilities = scores[token_ids].double().softmax(0).cumsum(0)
    return Candidates(token_ids.cpu().numpy(), (probabilities / probabilities[-1]).cpu().numpy())


def draw(options: Candidates, uniform: float) -> int:
    """The token in whose part of [0, 1) the number falls: inverse transform sampling."""
    index = int(np.searchsorted(options.cumulative, uniform, side="right"))
    return int(options.token_ids[min(index, len(options.token_ids) - 1)])


def choose_tokens(
    scores: Tensor,
    settings: list[GenerationSettings],
    streams: list[np.random.Generator],
    histories: list[list[int]],
) -> list[int]:
    """The next token of each sequence.

    Args:
        scores: [sequences, vocabulary] logits of the last positions.
        settings: of each sequence.
        streams: of each sequence; one number is drawn from it where the sequence samples.
        histories: tokens of prompt and reply of each sequence, for the repetition penalty; may be empty without it.
    """
    scores = scores.float()
    tokens = [0] * len(settings)
    kinds = [replace(each, seed=0, max_new_tokens=1) for each in settings]  # neither changes the scores
    for kind in dict.fromkeys(kinds):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        if kind.repetition_penalty == 1:
            warped = warp(scores if len(rows) == len(scores) else scores[rows], kind)
        else:
            histories_of_rows = [torch.tensor([histories[row]], device=scores.device) for row in rows]
            warped = torch.cat(
                [warp(scores[[row]], kind, seen) for row, seen in zip(rows, histories_of_rows, strict=True)]
            )
        if kind.do_sample:
            chosen = [draw(candidates(line), streams[row].random()) for row, line in zip(rows, warped, strict=True)]
        else:
            chosen = warped.argmax(-1).tolist()
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    return tokens
