"""Metrics and gates of the demo's final table: what its models have learned, measured with what the world knows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrole.base.files import read_json
from mmrole.base.json_values import JsonObject
from mmrole.data.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TYPES
from mmrole.data.prompts import METRICS
from mmrole.demo.characters import CastMember
from mmrole.demo.controls import impersonated
from mmrole.demo.drawings import COLOURS, COUNTS, PLACES, SHAPES
from mmrole.demo.grammar import CHINESE_NUMBERS, CHINESE_WORDS, NUMBERS
from mmrole.demo.teacher import colour_in, find, review
from mmrole.demo.world import World
from mmrole.scoring import statistics
from mmrole.scoring.statistics import Bootstrap, Estimate

MODELS = ("agent", "blind", "untrained")
CHANCE = tuple(1 / len(kinds) for kinds in (COLOURS, SHAPES, PLACES, COUNTS))
"""Of naming the right colour, shape, place and count."""
_EVAL_NAMES = {IN_DISTRIBUTION: "in-test", OUT_OF_DISTRIBUTION: "out-test"}


@dataclass(frozen=True)
class Gate:
    """A condition on a figure, and what it was measured on."""

    name: str
    value: float
    of: str
    wanted: str
    holds: bool


class Seen(NamedTuple):
    """Shares of answers about a picture that name what is in it, and how many answers there are."""

    colour: float
    shape: float
    place: float
    number: float
    answers: int


def read_answer_records(folder: Path) -> list[JsonObject]:
    """The records of the answer, review or test files in a folder."""
    return [record for kind in TYPES for record in read_json(folder / f"{kind}_test.json", list)]


def model_answers(workspace: Path, model: str, distribution: str) -> list[JsonObject]:
    """A model's answers to In-Test or Out-Test."""
    return read_answer_records(workspace / "eval" / f"{_EVAL_NAMES[distribution]}_answers" / model)


def model_reviews(workspace: Path, model: str) -> list[JsonObject]:
    """The reviews of a model's answers to both test sets."""
    folders = (workspace / "eval" / f"{_EVAL_NAMES[name]}_reviews" / model for name in DISTRIBUTIONS)
    return [record for folder in folders for record in read_answer_records(folder)]


def seen(records: Iterable[JsonObject], world: World) -> Seen:
    """What answers name of the picture that they were given, where the reference is about the picture."""
    hits, count = [0, 0, 0, 0], 0
    for record in records:
        turn = record["conversations"][1]
        if colour_in(turn["value"]) is None:
            continue
        scene = world.scenes[record["image"]]
        count += 1
        hits[0] += colour_in(turn["answer"]) == scene.colour
        hits[1] += (
            re.search(rf"\b{scene.shape}(?:e?s)?\b|的{CHINESE_WORDS[scene.shape]}(?!\w)", turn["answer"]) is not None
        )
        hits[2] += re.search(rf"\b{scene.place}\b|{CHINESE_WORDS[scene.place]}", turn["answer"]) is not None
        numbers = (NUMBERS[scene.count], f"有{CHINESE_NUMBERS[scene.count]}")
        hits[3] += any(number in turn["answer"] for number in numbers)
    return Seen(*(hit / count if count else math.nan for hit in hits), answers=count)


def told(records: Iterable[JsonObject], topic: str, world: World) -> tuple[float, int]:
    """Share of answers that name the friend, home or work of the reference, where it is about that; their number."""
    hits = []
    for record in records:
        turn, character = record["conversations"][1], world.characters[record["role"]]
        wanted = find(turn["value"], character)
        if wanted.topic == topic:
            hits.append(find(turn["answer"], character).thing == wanted.thing)
    return _share(hits), len(hits)


def addresses(records: Sequence[JsonObject], world: World) -> float:
    """Share of answers that end with the character's word for a listener, where the reference does."""
    hits = []
    for record in records:
        turn, character = record["conversations"][1], world.characters[record["role"]]
        if find(turn["value"], character).address is not None:
            hits.append(find(turn["answer"], character).address == character.address)
    return _share(hits)


def speaks_as(records: Sequence[JsonObject], characters: Sequence[CastMember]) -> float:
    """Share of answers that begin with the catchphrase of the character given for each."""
    pairs = zip(records, characters, strict=True)
    return _share(record["conversations"][1]["answer"].startswith(other.catchphrase) for record, other in pairs)


def own(records: Sequence[JsonObject], world: World) -> list[CastMember]:
    """Who is to be played."""
    return [world.characters[record["role"]] for record in records]


def exchanged(records: Sequence[JsonObject], world: World) -> list[CastMember]:
    """Whose profile was in the prompt instead."""
    return [world.characters[impersonated(record["role"], world)] for record in records]


def parsed(records: Sequence[JsonObject]) -> float:
    """Share of reviews that have a pair of scores."""
    return _share(each["score"] is not None for record in records for each in record.get("rm_review", {}).values())


class TeacherAgreement(NamedTuple):
    """Pearson's correlations of reviewed ratios with the teacher's, over fluent answers.

    Attributes:
        pooled: over all metrics at once.
        within: the same with each metric's means taken off: that some metrics are scored lower does not count.
        by_metric: of each metric.
        reviews: how many are behind it.
    """

    pooled: float
    within: float
    by_metric: dict[str, float]
    reviews: int


def agreement(records: Sequence[JsonObject], world: World) -> TeacherAgreement:
    """How far reviews agree with the teacher's."""
    pairs: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for record in records:
        answer, reference = record["conversations"][1]["answer"], record["conversations"][1]["value"]
        character = world.characters[record["role"]]
        if not find(answer, character).is_fluent:
            continue
        taught = review(answer, reference, character)
        for metric, (_, (score, best)) in taught.items():
            ratio = _ratio(record, metric)
            if ratio is not None:
                pairs[metric].append((ratio, score / best))
    columns = [np.array(own).reshape(-1, 2) for own in pairs.values()]
    centred = [own - own.mean(axis=0) for own in columns if len(own)]
    return TeacherAgreement(
        pooled=_pearson(np.concatenate(columns)),
        within=_pearson(np.concatenate([*centred, np.empty((0, 2))])),
        by_metric={metric: _pearson(own) for metric, own in zip(pairs, columns, strict=True)},
        reviews=sum(map(len, columns)),
    )


def separated(right: Sequence[JsonObject], wrong: Sequence[JsonObject]) -> float:
    """Share of pairs whose answer with the right colour is more relevant to the picture than that with a wrong one."""
    pairs = [
        (_ratio(one, "Image-Text Relevance"), _ratio(other, "Image-Text Relevance"))
        for one, other in zip(right, wrong, strict=True)
    ]
    return _share(one is not None and other is not None and one > other for one, other in pairs)


def mean_score(records: Sequence[JsonObject]) -> float:
    """Mean of all ratios of the reviews that have scores."""
    ratios = _ratios(records)
    return math.nan if np.isnan(ratios).all() else float(np.nanmean(ratios))


def lead(records: Sequence[JsonObject], others: Sequence[JsonObject]) -> Estimate:
    """By how much a model's reviews are better than another's of the same samples, with the interval of the report."""
    differences = _ratios(records) - _ratios(others)
    clusters, count = statistics.number_clusters([record["image"] for record in records])
    each = np.repeat(clusters, len(METRICS))
    return statistics.mean_estimates(differences.reshape(-1, 1), each, Bootstrap.make(count))[0]


def gate_from(name: str, value: float, of: str, bound: float) -> Gate:
    """A gate from below; NaN does not pass."""
    return Gate(name, value, of, f"≥ {bound:g}", value >= bound)


def above(name: str, value: float, of: str, bound: float) -> Gate:
    """A gate from below that the bound itself does not pass; nor does NaN."""
    return Gate(name, value, of, f"> {bound:g}", value > bound)


def at_most(name: str, value: float, of: str, bound: float) -> Gate:
    """A gate from above; NaN does not pass."""
    return Gate(name, value, of, f"≤ {bound:g}", value <= bound)


def gates_table(gates: list[Gate]) -> list[str]:
    """The gates in Markdown."""
    lines = ["| | measured | on | wanted | |", "|---|---:|---|---:|---|"]
    return lines + [
        f"| {gate.name} | {gate.value:.3f} | {gate.of} | {gate.wanted} | {'yes' if gate.holds else '**no**'} |"
        for gate in gates
    ]


def _pearson(pairs: np.ndarray) -> float:
    return statistics.pearson(pairs[:, 0], pairs[:, 1], np.zeros(len(pairs), int)).value


def _ratios(records: Sequence[JsonObject]) -> np.ndarray:
    """Ratios, float [records, metrics]; NaN where there is no score."""
    ratios = [[_ratio(record, metric) for metric in METRICS] for record in records]
    return np.array(ratios, dtype=float).reshape(-1, len(METRICS))


def _ratio(record: JsonObject, metric: str) -> float | None:
    score = record.get("rm_review", {}).get(metric, {}).get("score")
    return None if score is None else score[0] / score[1]


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan
