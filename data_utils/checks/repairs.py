"""Repairs what is mechanical in the content of a file: applies the fixes that the checks propose until none is left."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from data_utils.checks.checker import Checker
from data_utils.checks.copies import Copies
from data_utils.checks.problems import REMOVED, Path, Place, Problem
from data_utils.checks.surroundings import Source
from mmrole.base.json_values import Json

_MOST_ROUNDS = 20  # a repair can uncover the next problem of a text; published files need one round


class Repaired(NamedTuple):
    """A repaired file."""

    value: Json
    counts: Counter[str]
    """Repairs by kind of damage."""


def repair(value: Json, source: Source, place: Place, checker: Checker, drop: bool) -> Repaired:
    """Repairs the content of a file.

    Args:
        value: the JSON value, or a text, which has no repairs; it may be changed.
        source: where it is from.
        place: the file, as problems name it.
        checker: finds the problems, and with them the repairs.
        drop: leave out the records that still have errors then.
    """
    counts: Counter[str] = Counter()
    for _ in range(_MOST_ROUNDS):
        problems = checker.check_value(value, source, place, Copies())
        applied = _apply(value, problems)
        value = applied.value
        counts += applied.counts
        if not applied.counts:
            faulty = {problem.place.index for problem in problems if problem.is_error} - {None} if drop else set()
            if not faulty:
                break
            counts["dropped"] += len(faulty)
            value = [record for index, record in enumerate(value) if index not in faulty]
    return Repaired(value, counts)


def _apply(value: Json, problems: Iterable[Problem]) -> Repaired:
    """Puts every fix in its place. Of fixes that concern the same value only the first: the others may be outdated."""
    taken: dict[Path, Json] = {}
    around: set[Path] = set()
    removed: set[str | int] = set()
    counts: Counter[str] = Counter()
    for problem in problems:
        index, fix = problem.place.index, problem.fix
        if fix is None:
            continue
        path = fix.path if index is None else (index, *fix.path)
        outer = {path[:length] for length in range(len(path) + 1)}
        if taken.get(path) is fix.value:  # one repair of several problems
            counts[problem.kind] += 1
        if outer & taken.keys() or path in around:
            continue
        taken[path] = fix.value
        around |= outer
        counts[problem.kind] += 1
        if fix.value is REMOVED:
            removed.add(path[0])
        elif path:
            _put(value, path, fix.value)
        else:
            value = fix.value
    if removed:
        value = [record for index, record in enumerate(value) if index not in removed]
    return Repaired(value, counts)


def _put(value: Json, path: Path, new: Json) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new
