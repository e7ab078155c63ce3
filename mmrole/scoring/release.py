"""Comparison of a reward model and an agent with what was published of them, on one page."""

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from mmrole.base.errors import Problems
from mmrole.base.files import read_records
from mmrole.data.records import Answer
from mmrole.data.splits import find_test_files
from mmrole.scoring.agreement import ALL_ANSWERS, Agreement, Key, Matched
from mmrole.scoring.reviews import pair_ratios
from mmrole.scoring.tables import escape_markdown, estimate

_SHOWN = 10  # largest differences
_CONTEXT = 160  # characters of an answer from where two answers part


@dataclass(frozen=True)
class AnswerPair:
    """A published answer and the one that the same weights give now."""

    id: str
    type: str
    published: str
    now: str

    @property
    def prefix(self) -> int:
        """Characters that both begin with."""
        same = zip(self.published, self.now, strict=False)
        return next((i for i, (a, b) in enumerate(same) if a != b), min(len(self.published), len(self.now)))

    @functools.cached_property
    def similarity(self) -> float:
        """Share of the characters in matching blocks (difflib's ratio): 1 for equal answers."""
        return difflib.SequenceMatcher(None, self.published, self.now, autojunk=False).ratio()


class ReviewCheck(NamedTuple):
    """The reviews of one model's answers: first those of now, second the published ones."""

    title: str
    matched: Matched
    agreement: Sequence[Agreement]
    """Empty if none of the reviews have scores to compare."""


class AnswerCheck(NamedTuple):
    """The agent's answers in one split."""

    title: str
    pairs: Sequence[AnswerPair]
    missing: int
    """Published answers without one of now."""


def read_answer_pairs(published: Path, now: Path) -> tuple[list[AnswerPair], int]:
    """Answers to the same samples, from two folders of `<type>_test.json`, and how many there are no new ones for.

    Raises:
        UserError: a folder holds none, a file cannot be read, or a record is faulty.
    """
    problems = Problems()
    old = {(path.name, r.id): r for path in find_test_files([published]) for r in read_records(path, Answer, problems)}
    new = {(path.name, r.id): r for path in find_test_files([now]) for r in read_records(path, Answer, problems)}
    problems.raise_if_any("the answers cannot be compared", "correct them, or give other files")
    pairs = [
        AnswerPair(key[1], key[0].removesuffix("_test.json"), record.answer, new[key].answer)
        for key, record in old.items()
        if key in new
    ]
    return pairs, len(old) - len(pairs)


def release_page(settings: Sequence[str], reviews: Sequence[ReviewCheck], answers: Sequence[AnswerCheck]) -> str:
    """The page, as Markdown.

    Args:
        settings: what was compared, a line each.
        reviews: what the reward model does.
        answers: what the agent does.
    """
    lines = ["# Published weights against published outputs", "", *(f"- {line}" for line in settings), ""]
    if reviews:
        lines += ["## The reward model", "", *_verdicts(reviews)]
        lines += [line for check in reviews for line in _review_section(check)]
    if answers:
        lines += ["## The agent", ""]
        lines += [
            "Published answers were sampled with top-p 0.3; those of now are greedy. Where sampling had a choice they "
            "part, and stay apart: what tells of a fault is an answer that parts at once, or a type that stands out.",
            "",
        ]
        lines += [line for check in answers for line in _answer_section(check)]
    return "\n".join(lines).rstrip() + "\n"


def _verdicts(checks: Sequence[ReviewCheck]) -> list[str]:
    """The row that a results table would show, published and of now."""
    lines = ["| answers | reviews | overall, published | overall, now | difference |", "|---|---:|---:|---:|---:|"]
    for check in checks:
        if not check.agreement:
            lines.append(f"| {escape_markdown(check.title)} | 0 | – | – | – |")
            continue
        now, published = pair_ratios(check.matched.first).mean(), pair_ratios(check.matched.second).mean()
        overall = next((row for row in check.agreement if row.name == ALL_ANSWERS), check.agreement[0])
        difference = estimate(overall.ratio_difference)
        lines.append(
            f"| {escape_markdown(check.title)} | {len(check.matched.keys)} | {published:.3f} | {now:.3f} "
            f"| {difference} |"
        )
    return [*lines, ""]


def _review_section(check: ReviewCheck) -> list[str]:
    same = (check.matched.first == check.matched.second).all(axis=1)
    left_out = [f"{count} {reason}" for reason, count in check.matched.left_out.items() if count]
    note = f"; not compared: {', '.join(left_out)}" if left_out else ""
    lines = [
        f"### Reviews of {escape_markdown(check.title)}",
        "",
        f"{int(same.sum())} of {len(same)} score pairs are the published ones (the first set is now, the second one "
        f"published{note}).",
        "",
        "| | reviews | score MAE | ratio MAE | ratio difference | ratio Pearson | ratio Spearman |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in check.agreement:
        numbers = [row.score_mae, row.ratio_mae, row.ratio_difference, row.ratio_pearson, row.ratio_spearman]
        lines.append(f"| {row.name} | {row.n} | {' | '.join(map(estimate, numbers))} |")
    return [*lines, "", *_largest_review_differences(check.matched)]


def _largest_review_differences(matched: Matched) -> list[str]:
    gaps = abs(pair_ratios(matched.first) - pair_ratios(matched.second))
    order = [index for index in np.argsort(-gaps, kind="stable")[:_SHOWN] if gaps[index] > 0]
    if not order:
        return []
    lines = ["Largest differences:", "", "| sample | metric | published | now |", "|---|---|---:|---:|"]
    for index in order:
        key: Key = matched.keys[index]
        pairs = [" : ".join(f"{score:g}" for score in scores[index]) for scores in (matched.second, matched.first)]
        lines.append(f"| {escape_markdown(key.answer[1])} | {key.metric} | {pairs[0]} | {pairs[1]} |")
    return [*lines, ""]


def _answer_section(check: AnswerCheck) -> list[str]:
    lines = [
        f"### Answers, {escape_markdown(check.title)}",
        "",
        *([f"{check.missing} published answers have no counterpart.", ""] if check.missing else []),
        "| type | answers | the same | empty, published | empty, now | same beginning, median characters | similarity, "
        "mean | length, published | length, now |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups = {
        kind: [pair for pair in check.pairs if pair.type == kind] for kind in sorted({p.type for p in check.pairs})
    }
    lines += [_answer_row(kind, pairs) for kind, pairs in groups.items()]
    if len(groups) > 1:
        lines.append(_answer_row("all", check.pairs))
    different = [pair for pair in check.pairs if pair.published != pair.now]
    different.sort(key=lambda pair: pair.similarity)
    if different:
        lines += ["", "The least alike, from where they part:", ""]
        lines += [line for pair in different[:_SHOWN] for line in _excerpt(pair)]
    return [*lines, ""]


def _answer_row(name: str, pairs: Sequence[AnswerPair]) -> str:
    cells = [
        escape_markdown(name),
        len(pairs),
        sum(pair.published == pair.now for pair in pairs),
        sum(not pair.published.strip() for pair in pairs),
        sum(not pair.now.strip() for pair in pairs),
        f"{median(pair.prefix for pair in pairs):g}",
        f"{fmean(pair.similarity for pair in pairs):.2f}",
        f"{fmean(len(pair.published) for pair in pairs):.0f}",
        f"{fmean(len(pair.now) for pair in pairs):.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _excerpt(pair: AnswerPair) -> list[str]:
    """Where two answers part, as text that Markdown cannot read as markup."""
    start = max(0, pair.prefix - 20)
    shown = [f"{name} {_cut(text, start)}" for name, text in (("published:", pair.published), ("now:      ", pair.now))]
    longest = max((len(run) for run in re.findall("`+", "".join(shown))), default=0)
    fence = "`" * max(3, longest + 1)
    return [
        f"{escape_markdown(pair.id)} ({escape_markdown(pair.type)}), {pair.prefix} characters the same",
        "",
        fence,
        *shown,
        fence,
        "",
    ]


def _cut(text: str, start: int) -> str:
    part = " ".join(text[start : start + _CONTEXT].split())
    return ("…" if start else "") + part + ("…" if start + _CONTEXT < len(text) else "")
