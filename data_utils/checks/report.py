"""Writes what was found as text or as JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from data_utils.checks.checker import FileReport
from data_utils.checks.problems import ERROR, KINDS, WARNING, Problem
from mmrole.base.errors import in_one_line


class CheckReport(NamedTuple):
    """What a run found."""

    files: Sequence[FileReport]
    of_folders: Sequence[Problem]
    """Problems that are no single file's."""
    not_checked: Mapping[str, int]
    """What could not be checked and why, with the number of files."""
    repaired: Mapping[str, int]
    """Repairs by kind of damage."""

    @property
    def problems(self) -> list[Problem]:
        """All problems, file by file, then those of folders."""
        return [*(problem for file in self.files for problem in file.problems), *self.of_folders]

    def count(self, level: str) -> int:
        """The number of problems of a level."""
        return sum(KINDS[problem.kind].level == level for problem in self.problems)


def as_text(report: CheckReport) -> Iterator[str]:
    """The lines of a report for people: the problems by kind, errors first, then a summary."""
    by_kind = defaultdict(list)
    for problem in report.problems:
        by_kind[problem.kind].append(problem)
    for level in (ERROR, WARNING):
        for kind in KINDS.values():
            if kind.level == level and by_kind[kind.id]:
                remedy = ", --fix repairs it" if kind.fixable else ""
                yield f"{level} {kind.id} ({len(by_kind[kind.id])}{remedy}): {kind.meaning}"
                yield from (in_one_line(f"  {problem.place}: {problem.text}") for problem in by_kind[kind.id])
                yield ""
    yield from _summary(report)


def as_json(report: CheckReport) -> str:
    """A report for programs."""
    problems = [
        {
            "kind": problem.kind,
            "level": KINDS[problem.kind].level,
            **asdict(problem.place),
            "text": problem.text,
            "fixable": problem.fix is not None,
        }
        for problem in report.problems
    ]
    value = {
        "errors": report.count(ERROR),
        "warnings": report.count(WARNING),
        "counts": dict(Counter(problem.kind for problem in report.problems)),
        "repaired": dict(report.repaired),
        "not_checked": dict(report.not_checked),
        "files": [{"file": file.file, "form": file.form, "records": file.records} for file in report.files],
        "problems": problems,
    }
    return json.dumps(value, indent=4)  # ASCII, whatever the encoding of stdout is


def _summary(report: CheckReport) -> Iterator[str]:
    files, records = Counter(), Counter()
    for file in report.files:
        files[file.form or "not readable"] += 1
        records[file.form or "not readable"] += file.records
    for form, number in files.items():
        yield f"{form}: {_number(number, 'file')}, {_number(records[form], 'record')}"
    yield from _counts("repaired", report.repaired)
    yield from (f"not checked: {what}, {_number(number, 'file')}" for what, number in report.not_checked.items())
    errors, warnings = report.count(ERROR), report.count(WARNING)
    yield f"{_number(errors, 'error')}, {_number(warnings, 'warning')} in {_number(len(report.files), 'file')}"


def _counts(name: str, counts: Mapping[str, int]) -> Iterable[str]:
    return [f"{name}: {', '.join(f'{number:,} {kind}' for kind, number in counts.items())}"] if counts else []


def _number(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
