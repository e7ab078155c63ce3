"""Agreement of two sets of reviews of the same answers: a reward model against GPT-4, people, or another version."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from mmrole.base.errors import Problems, Where, shown
from mmrole.base.files import read_records
from mmrole.data.pictures import read_conversation
from mmrole.data.prompts import METRICS, split_instruction
from mmrole.data.records import Review, TrainingRecord
from mmrole.data.requests import ChatReply
from mmrole.data.scores import parse_review
from mmrole.data.splits import find_test_files
from mmrole.scoring.measures import MIN_IMAGES
from mmrole.scoring.review_replies import row_id
from mmrole.scoring.reviews import pair_ratios, read_review_file
from mmrole.scoring.statistics import (
    DRAWS,
    Bootstrap,
    Estimate,
    mean_estimates,
    number_clusters,
    pearson,
    spearman,
)

ALL_REVIEWS = "All reviews"
"""Every review counts, whatever its metric."""

ALL_ANSWERS = "Overall score"
"""Every answer counts once, with the means over its eight metrics."""


class Key(NamedTuple):
    """What a review is about: the same in both sets."""

    answer: tuple[str, str]
    """(model, sample id); of conversations, (image, the prompt up to the instruction)."""
    metric: str


class Judgement(NamedTuple):
    """A review as far as it is compared."""

    cluster: str
    """Of the bootstrap: the image; the answer where there is none."""
    answer: str
    """The text that was reviewed; empty where the key has it."""
    score: tuple[float, float] | None
    """(evaluated answer, reference); None without a usable pair."""
    where: Where


Judgements = dict[Key, Judgement]


class Matched(NamedTuple):
    """The reviews that two sets share and have scores for; n of them, which may be 0."""

    keys: list[Key]
    clusters: list[str]
    first: np.ndarray
    """float64 [n, 2]: (evaluated answer, reference)."""
    second: np.ndarray
    left_out: dict[str, int]
    """Reviews that are not compared, by reason."""


class Agreement(NamedTuple):
    """How far two sets agree, each number with its 95 % interval from a bootstrap by image."""

    name: str
    """A metric, `ALL_REVIEWS` or `ALL_ANSWERS`."""
    n: int
    score_mae: Estimate
    """Mean absolute difference of scores from 0 to 10, of the evaluated answer and of the reference alike."""
    ratio_mae: Estimate
    """Mean absolute difference of the ratios of evaluated answer to reference."""
    ratio_difference: Estimate
    """Mean of first minus second ratio: above 0, the first set is kinder."""
    ratio_pearson: Estimate
    ratio_spearman: Estimate
    score_pearson: Estimate
    """Of the evaluated answer's scores."""
    score_spearman: Estimate
    score_difference: Estimate
    """Mean of first minus second score, of the evaluated answer and of the reference alike."""
    harsher: Literal["first", "second", ""]
    """The set that finds the answers worse, measured by the references: whose ratios are lower, by an interval without
    0 over at least `MIN_IMAGES` images. Empty where that is not decided."""


def read_reviews(places: Iterable[str | os.PathLike]) -> Judgements:
    """The reviews below some folders, or in single files, in the published form. The folder's name is the model.

    Raises:
        UserError: there are none, a file cannot be read, a record is faulty, or an answer is reviewed twice.
    """
    problems, judgements = Problems(), {}
    for path in find_test_files(places):
        file = read_review_file(path, problems=problems)
        for record in file.records:
            _add(judgements, (file.model, record.id), record, problems)
    problems.raise_if_any("the reviews cannot be compared", "correct them, or give other files")
    return judgements


def read_conversations(path: str | os.PathLike, replies: Mapping[str, ChatReply] | None = None) -> Judgements:
    """The reviews in a file in the form of a reward model's training data: user = prompt, assistant = review.

    A model's reply is the assistant turn's `answer`, as inference writes it, and else its `value`. Records with the
    same image and prompt are told apart by their order.

    Args:
        path: the file.
        replies: the model's replies in place of those in the file, by the ids of `ReviewRow`.

    Raises:
        UserError: the file cannot be read, a record is faulty, or its user turn is not a review prompt.
    """
    problems, judgements = Problems(), {}
    times: dict[tuple[str, str], int] = defaultdict(int)
    for record in read_records(path, TrainingRecord, problems):
        conversation = read_conversation(record)
        prompt = conversation.turns[0].text
        parts = split_instruction(prompt)
        if len(record.turns) != 2 or parts is None:
            problems.add(
                f"{record.where}: conversations[0] is not a prompt for a review under one of the eight metrics"
            )
            continue
        image = next((picture.path for picture in conversation.pictures), "")
        times[image, prompt] += 1
        reply = record.json["conversations"][1].get("answer", record.turns[1].value)
        if replies is not None:
            id_ = row_id(record)
            if id_ not in replies:
                problems.add(f"{record.where}: there is no reply to it; its id is {shown(id_)}")
                continue
            reply = replies[id_].answer
        if not isinstance(reply, str):
            problems.add(f'{record.where}: "answer" of conversations[1] must be a text, not {shown(reply)}')
            continue
        answer, metric = parts
        key = Key((image, f"{times[image, prompt]} {answer}"), metric)
        judgements[key] = Judgement(image or key.answer[1], "", parse_review(reply).score, record.where)
    problems.raise_if_any("the reviews cannot be compared", "correct them, or give another file")
    return judgements


def match(first: Judgements, second: Judgements) -> Matched:
    """The reviews of the same answer under the same metric.

    Where each set has one model only, its name does not matter.

    Raises:
        UserError: the answers differ that the sets review.
    """
    if all(len({key.answer[0] for key in judgements}) == 1 for judgements in (first, second)):
        first, second = _without_model(first), _without_model(second)
    problems = Problems()
    keys, left_out = [], {"in the first set only": 0, "in the second set only": 0, "without scores": 0}
    for key, one in first.items():
        other = second.get(key)
        if other is None:
            left_out["in the first set only"] += 1
        elif one.answer != other.answer:
            problems.add(f"{one.where} reviews another answer than {other.where}")
        elif one.score is None or other.score is None:
            left_out["without scores"] += 1
        else:
            keys.append(key)
    left_out["in the second set only"] = len(second.keys() - first.keys())
    problems.texts = list(dict.fromkeys(problems.texts))  # one line for the eight reviews of an answer
    problems.raise_if_any("the sets review different answers", "give two sets of reviews of the same answers")
    scores = [
        np.array([judgements[key].score for key in keys], np.float64).reshape(-1, 2) for judgements in (first, second)
    ]
    return Matched(keys, [first[key].cluster for key in keys], scores[0], scores[1], left_out)


def measure_agreement(matched: Matched, *, draws: int = DRAWS, seed: int = 1234) -> list[Agreement]:
    """The agreement over all reviews, over answers with all eight metrics in both sets, and under each metric."""
    if not matched.keys:
        return []
    clusters, n_clusters = number_clusters(matched.clusters)
    bootstrap = Bootstrap.make(n_clusters, draws, seed)
    scores = np.stack([matched.first, matched.second], axis=1)
    ratios = pair_ratios(scores)
    rows = [_measure(ALL_REVIEWS, scores, ratios, clusters, bootstrap)]
    whole = _whole_answers(matched.keys)
    if len(whole):
        means = scores[whole].mean(axis=1), ratios[whole].mean(axis=1)
        rows.append(_measure(ALL_ANSWERS, *means, clusters[whole[:, 0]], bootstrap))
    metrics = np.array([key.metric for key in matched.keys])
    for metric in METRICS:
        mask = metrics == metric
        if mask.any():
            rows.append(_measure(metric, scores[mask], ratios[mask], clusters[mask], bootstrap))
    return rows


def _measure(
    name: str, scores: np.ndarray, ratios: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap
) -> Agreement:
    """`scores`: [n, set, (evaluated answer, reference)]; `ratios`: [n, set]."""
    score_errors = abs(scores[:, 0] - scores[:, 1]).mean(axis=1)
    score_differences = (scores[:, 0] - scores[:, 1]).mean(axis=1)
    differences = ratios[:, 0] - ratios[:, 1]
    columns = np.column_stack([score_errors, abs(differences), differences, score_differences])
    *means, score_difference = mean_estimates(columns, clusters, bootstrap)
    correlations = [
        measure(values[:, 0], values[:, 1], clusters, bootstrap)
        for values in (ratios, scores[:, :, 0])
        for measure in (pearson, spearman)
    ]
    harsher = _harsher(means[2], len(np.unique(clusters)))
    return Agreement(name, len(clusters), *means, *correlations, score_difference=score_difference, harsher=harsher)


def _harsher(ratio_difference: Estimate, n_images: int) -> Literal["first", "second", ""]:
    if n_images < MIN_IMAGES or ratio_difference.low <= 0 <= ratio_difference.high:
        return ""
    return "first" if ratio_difference.value < 0 else "second"


def _whole_answers(keys: list[Key]) -> np.ndarray:
    """int [answers, 8]: where the eight metrics of each answer are, of the answers that have all."""
    places: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for index, key in enumerate(keys):
        places[key.answer][key.metric] = index
    whole = [[own[metric] for metric in METRICS] for own in places.values() if all(metric in own for metric in METRICS)]
    return np.array(whole, int).reshape(-1, len(METRICS))


def _add(judgements: Judgements, answer: tuple[str, str], record: Review, problems: Problems) -> None:
    for metric, review in record.reviews.items():
        key = Key(answer, metric)
        if metric not in METRICS:
            continue
        if key in judgements:
            problems.add(f"{record.where}: {judgements[key].where} reviews the same sample of {shown(answer[0])}")
            return
        judgements[key] = Judgement(record.image or "/".join(answer), record.answer, review.score, record.where)


def _without_model(judgements: Mapping[Key, Judgement]) -> Judgements:
    return {key._replace(answer=("", key.answer[1])): judgement for key, judgement in judgements.items()}
