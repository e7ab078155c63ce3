"""Metrics and gates of `demo.sh --real`: what its agent has learned, measured with what the world knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmrole.base.json_values import JsonObject
from mmrole.demo.drawings import COLOURS
from mmrole.demo.findings import Gate, at_most, gate_from
from mmrole.demo.talks import RealWorld
from mmrole.demo.teacher import colour_in

CHANCE = 1 / len(COLOURS)


class Share(NamedTuple):
    """A share of answers, and how many there are; NaN if there is none."""

    value: float
    of: int


class Fluency(NamedTuple):
    """Mean log-probabilities of a token under the unchanged language model, in nats: of answers and of teaching."""

    answers: float
    teaching: float


def colour_named(records: Iterable[JsonObject], world: RealWorld) -> Share:
    """Of answers about the picture, those that name the colour of the picture that is the sample's own.

    A sample of the control with exchanged pictures keeps its own as `reference_image`.
    """
    hits = [
        colour_in(record["conversations"][1]["answer"])
        == world.scenes[record.get("reference_image", record["image"])].colour
        for record in records
        if colour_in(record["conversations"][1]["value"]) is not None
    ]
    return _share(hits)


def catchphrase_said(records: Iterable[JsonObject], world: RealWorld) -> Share:
    """Answers that hold the catchphrase of the character's profile."""
    return _share([world.catchphrases[record["role"]] in record["conversations"][1]["answer"] for record in records])


def mean_log_probability(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, talks: Sequence[tuple[str, str, str]]
) -> float:
    """Mean log-probability of a token of replies, in nats.

    Args:
        model: the unchanged language model.
        tokenizer: its tokenizer.
        talks: (system message, question, reply); the model reads the question without its picture.
    """
    total, count = 0.0, 0
    for system, question, reply in talks:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        before = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(cast(str, before), add_special_tokens=False).input_ids
        words = tokenizer(reply, add_special_tokens=False).input_ids
        if not words:
            continue
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + words]), logits_to_keep=len(words) + 1).logits[0, :-1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(words)[:, None])
        total, count = total + chosen.sum().item(), count + len(words)
    return total / count if count else math.nan


def real_gates(
    inside: Sequence[JsonObject],
    outside: Sequence[JsonObject],
    exchanged: Sequence[JsonObject],
    fluency: Fluency,
    world: RealWorld,
) -> list[Gate]:
    """What the agent's answers must show: to In-Test, to Out-Test, and to both with exchanged pictures."""
    colour, blind = colour_named([*inside, *outside], world), colour_named(exchanged, world)
    seen, unseen = catchphrase_said(inside, world), catchphrase_said(outside, world)
    characters = len({record["role"] for record in outside})
    return [
        gate_from("the colour, on held-out pictures", colour.value, f"{colour.of} answers about a picture", 0.9),
        at_most("… away from chance, pictures exchanged", abs(blind.value - CHANCE), f"{blind.of} answers", 0.1),
        gate_from("the profile's catchphrase, In-Test", seen.value, f"{seen.of} answers", 0.8),
        gate_from(
            "… of characters never seen, Out-Test", unseen.value, f"{unseen.of} answers, {characters} characters", 0.5
        ),
        gate_from(
            "log-probability of a token, less that of the teaching replies",
            fluency.answers - fluency.teaching,
            f"{len(inside) + len(outside)} answers",
            -0.5,
        ),
    ]


def _share(hits: Sequence[bool]) -> Share:
    return Share(sum(hits) / len(hits) if hits else math.nan, len(hits))
