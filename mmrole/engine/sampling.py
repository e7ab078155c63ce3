"""The next token of each row from its logits, on the device: greedy, or drawn with the row's own uniform numbers.

What rows ask for lies in tensors that are made ahead (`Sampling`), so that a step of decoding neither reads anything
back nor turns numbers of Python into tensors. Tokens are those that transformers' processors (repetition penalty,
temperature, top-k, top-p, in this order) and inverse transform sampling give, over tokens in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmrole.data.requests import GenerationSettings

NOT_A_NUMBER = -1
"""In place of a token: the logits of the row hold NaN."""


class Draws:
    """The uniform numbers of a request, one for each token, drawn ahead of need."""

    def __init__(self, stream: np.random.Generator) -> None:
        self._stream = stream
        self._drawn = np.empty(0)

    def numbers(self, start: int, count: int) -> np.ndarray:
        """float64 [count], from that of token `start` on."""
        missing = start + count - len(self._drawn)
        if missing > 0:
            self._drawn = np.concatenate((self._drawn, self._stream.random(missing)))
        return self._drawn[start : start + count]


class Choice(NamedTuple):
    """How the next tokens of a row are chosen.

    Attributes:
        settings: greedy or sampled, and among what.
        draws: one number of them decides each token where the row samples.
        place: of the next token in the reply.
        seen: tokens of prompt and reply, for the repetition penalty; may be empty without it.
    """

    settings: GenerationSettings
    draws: Draws
    place: int
    seen: Sequence[int]


class SamplingKind(NamedTuple):
    """What at least one of some rows asks for; what none does is not computed.

    Attributes:
        penalises: a repetition penalty.
        samples: a draw.
        top_k: a draw among the most probable tokens, and at most among so many of them; 0 where none asks.
        top_p: a draw among the most probable tokens that reach a probability together.
    """

    penalises: bool = False
    samples: bool = False
    top_k: int = 0
    top_p: bool = False

    @classmethod
    def of(cls, settings: Sequence[GenerationSettings], vocabulary: int) -> SamplingKind:
        """What these rows ask for; the most of top-k is rounded up, so that few kinds exist."""
        sampled = [each for each in settings if each.do_sample]
        most = max((each.top_k for each in sampled), default=0)
        return cls(
            penalises=any(each.repetition_penalty != 1 for each in settings),
            samples=bool(sampled),
            top_k=min(1 << (most - 1).bit_length(), vocabulary) if most else 0,
            top_p=any(each.top_p < 1 for each in sampled),
        )


@dataclass(eq=False)
class Sampling:
    """How each row chooses its next tokens.

    Attributes:
        kind: what the rows ask for.
        vocabulary: its size.
        penalty: float32 [rows, 1], of repetition.
        seen: bool [rows, vocabulary], tokens of prompt and reply; [rows, 0] where nothing penalises.
        sampled: bool [rows]; the others are greedy.
        temperature: float32 [rows, 1].
        top_k: int64 [rows, 1]; the size of the vocabulary where it is off.
        tail: float32 [rows, 1], 1 - top_p; below 0 where it is off.
        uniforms: float64 [rows, steps].
        step: int64 [1], the column of `uniforms` whose turn it is.
    """

    kind: SamplingKind
    vocabulary: int
    penalty: Tensor
    seen: Tensor
    sampled: Tensor
    temperature: Tensor
    top_k: Tensor
    tail: Tensor
    uniforms: Tensor
    step: Tensor

    @classmethod
    def empty(cls, kind: SamplingKind, rows: int, vocabulary: int, steps: int, device: torch.device) -> Sampling:
        """Room for so many rows and steps; all rows are greedy."""
        return cls(
            kind,
            vocabulary,
            penalty=torch.ones(rows, 1, device=device),
            seen=torch.zeros(rows, vocabulary if kind.penalises else 0, dtype=torch.bool, device=device),
            sampled=torch.zeros(rows, dtype=torch.bool, device=device),
            temperature=torch.ones(rows, 1, device=device),
            top_k=torch.full((rows, 1), vocabulary, device=device),
            tail=torch.full((rows, 1), -1.0, device=device),
            uniforms=torch.zeros(rows, steps if kind.samples else 0, dtype=torch.float64, device=device),
            step=torch.zeros(1, dtype=torch.int64, device=device),
        )

    @classmethod
    def of(cls, choices: Sequence[Choice], vocabulary: int, steps: int, device: torch.device) -> Sampling:
        """For these rows alone."""
        kind = SamplingKind.of([choice.settings for choice in choices], vocabulary)
        sampling = cls.empty(kind, len(choices), vocabulary, steps, device)
        sampling.fill(choices)
        return sampling

    def fill(self, choices: Sequence[Choice]) -> None:
        """Writes what these rows ask for over what the first ones did; `step` starts anew."""
        settings, rows, vocabulary = [choice.settings for choice in choices], len(choices), self.vocabulary
        if self.kind.penalises:
            self.penalty[:rows, 0] = torch.tensor([each.repetition_penalty for each in settings])
            self.seen.zero_()
            places = [(row, token) for row, choice in enumerate(choices) for token in choice.seen]
            if places:
                row_of, token_of = torch.tensor(places).T.to(self.seen.device)
                self.seen[row_of, token_of] = True
        if self.kind.samples:
            drawn = np.zeros((rows, self.uniforms.shape[1]))
            for row, choice in enumerate(choices):
                if choice.settings.do_sample:
                    drawn[row] = choice.draws.numbers(choice.place, drawn.shape[1])
            self.uniforms[:rows] = torch.from_numpy(drawn)
            self.sampled[:rows] = torch.tensor([each.do_sample for each in settings])
            self.temperature[:rows, 0] = torch.tensor([each.temperature for each in settings])
            self.top_k[:rows, 0] = torch.tensor([min(each.top_k or vocabulary, vocabulary) for each in settings])
            self.tail[:rows, 0] = torch.tensor([1 - each.top_p if each.top_p < 1 else -1.0 for each in settings])
        self.step.zero_()

    def rows(self, rows: Tensor) -> Sampling:
        """That of some rows, int64 [n]."""
        if self.kind == SamplingKind():
            return self
        return replace(
            self,
            penalty=self.penalty[rows],
            seen=self.seen[rows],
            sampled=self.sampled[rows],
            temperature=self.temperature[rows],
            top_k=self.top_k[rows],
            tail=self.tail[rows],
            uniforms=self.uniforms[rows],
        )

    def take(self, tokens: Tensor) -> None:
        """Goes on: `tokens`, int64 [rows], are those that the rows have chosen."""
        if self.kind.penalises:
            self.seen.scatter_(1, tokens[:, None], True)
        if self.kind.samples:
            self.step.add_(1)


def choose_tokens(scores: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row, or `NOT_A_NUMBER`: int64 [rows].

    Args:
        scores: [rows, vocabulary], the logits of each row's last position.
        sampling: of these rows.
    """
    broken = scores.amax(-1).isnan()  # amax keeps NaN and reads once
    scores = penalised(scores.float(), sampling)
    tokens = scores.argmax(-1)
    if sampling.kind.samples:
        uniform = sampling.uniforms.index_select(1, sampling.step)
        tokens = torch.where(sampling.sampled, draw(warped(scores, sampling), uniform), tokens)
    return tokens.masked_fill(broken, NOT_A_NUMBER)


def penalised(scores: Tensor, sampling: Sampling) -> Tensor:
    """float32 [rows, vocabulary] after the repetition penalty."""
    if not sampling.kind.penalises:
        return scores
    penalty = sampling.penalty
    return torch.where(sampling.seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def warped(scores: Tensor, sampling: Sampling) -> Tensor:
    """float32 [rows, vocabulary] after temperature, top-k and top-p; tokens that may not be drawn are -inf."""
    kind = sampling.kind
    scores = scores / sampling.temperature
    if kind.top_k:
        most = scores.topk(kind.top_k).values
        least = most.gather(-1, sampling.top_k.clamp(max=kind.top_k) - 1)
        scores = scores.masked_fill((scores < least) & (sampling.top_k < sampling.vocabulary), -torch.inf)
    if kind.top_p:
        # Which of equal scores falls out is up to the sort, as with transformers.
        ascending, order = scores.sort(dim=-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= sampling.tail
        dropped[:, -1:].fill_(False)  # the most probable one stays
        scores = scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return scores


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """The tokens in whose part of [0, 1) the numbers fall: inverse transform sampling, in float64.

    Args:
        scores: [rows, vocabulary]; -inf is never drawn.
        uniform: float64 [rows, 1].

    Returns:
        int64 [rows].
    """
    cumulative = scores.double().softmax(-1).cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True)[:, 0].clamp(max=scores.shape[-1] - 1)
