"""Parses score pairs from the text of reviews: where the published parser reads a usable pair, the same one.

A review ends with `[Scores]: (A, B)`. Text that leaves a choice is not guessed at: it gives no pair, and says why.
"""

from __future__ import annotations

import re

from mmrole.data.records import MetricReview, score_fault

MARKER = "[Scores]:"

_FINAL_SCORES = re.compile(r"\[Scores\]:\s*\(?\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*\)?\s*")

# Full-width forms that Chinese text has for ASCII punctuation, digits and slash.
_WIDE = "，、；：（）［］【】／．＝０１２３４５６７８９"
_PLAIN = str.maketrans(_WIDE, ",,;:()[][]/.=0123456789")

_ROUND = str.maketrans("[]", "()")

_OUT_OF_TEN = re.compile(r"\s*/\s*10\s*$")
_MODEL = re.compile(r"(?<![A-Za-z])([AB])(?![A-Za-z])")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.]*\w)(?:\s*/\s*10(?![\w.]*\d))?")
_NAMED = re.compile(rf"(?<![A-Za-z])([AB])(?![A-Za-z])[^,;:=()\d\n]*[:=]\s*({_NUMBER.pattern})")


def parse_review(text: str, swapped: bool = False) -> MetricReview:
    """A review with its pair, or with the reason why it has none.

    Args:
        text: what the reward model said.
        swapped: the reference was shown as Model A; the pair is (evaluated, reference) all the same.
    """
    pair, reason = find_scores(text)
    if pair is not None:
        pair = (pair[1], pair[0]) if swapped else pair
        reason = score_fault(*pair)
    return MetricReview(text, None if reason else pair, reason)


def find_scores(text: str) -> tuple[tuple[float, float] | None, str]:
    """The two numbers that a review gives Model A and Model B, usable or not; or None and the reason.

    Read are, after a single `[Scores]:`, `(A, B)`, `[A, B]` and `A, B`; what is before the bracket or, on further
    lines, behind the pair does not matter. Each number may carry a label (`Model A: 7`) and be out of ten (`7/10`), and
    punctuation may be full-width. Where one label names B and then the other one A, the numbers are exchanged; labels
    that name both models may also stand without comma and brackets.
    """
    plain = text.translate(_PLAIN)
    # The text as it is goes first: the published parser sees that one.
    form = text if text.count(MARKER) == 1 else plain
    markers = form.count(MARKER)
    if markers != 1:
        return None, "several [Scores]: markers" if markers else "no [Scores]: marker"
    after = form.partition(MARKER)[2]
    for tail in (after, after.translate(_PLAIN), after.translate(_PLAIN).translate(_ROUND)):
        for part in (tail, tail.strip().partition("\n")[0]):
            pair = _comma_pair(part)
            if pair is not None:
                return pair, ""
    pair = _named_pair(after.translate(_PLAIN))
    return pair, "" if pair else f"no pair of scores after {MARKER}"


def final_scores(text: str) -> tuple[float, float] | None:
    """The pair that a review ends with, `[Scores]: (A, B)`, or None. The marker must be there exactly once."""
    before, marker, _ = text.partition(MARKER)
    match = _FINAL_SCORES.fullmatch(text, len(before))
    if not marker or match is None:
        return None
    return float(match[1]), float(match[2])


def _comma_pair(text: str) -> tuple[float, float] | None:
    """The numbers on both sides of the only comma, as the published parser reads them, out of ten or not."""
    parts = text.split(",")
    if len(parts) != 2:
        return None
    first = parts[0].rpartition("(")[2].rpartition(":")
    second = parts[1].partition(")")[0].rpartition(":")
    try:
        one, other = (float(_OUT_OF_TEN.sub("", number)) for number in (first[2], second[2]))
    except ValueError:
        return None
    names = [set(_MODEL.findall(label)) for label in (first[0], second[0])]
    return (other, one) if names == [{"B"}, {"A"}] else (one, other)


def _named_pair(text: str) -> tuple[float, float] | None:
    """The numbers of `A: 7` and `B: 8`, if there are no other numbers and each model is named once."""
    found = _NAMED.findall(text)
    if len(_NUMBER.findall(text)) != 2 or sorted(name for name, _ in found) != ["A", "B"]:
        return None
    numbers = {name: float(_OUT_OF_TEN.sub("", number)) for name, number in found}
    return numbers["A"], numbers["B"]
