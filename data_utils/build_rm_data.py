"""Builds training and validation files for a reward model from reviews with scores.

    python -m data_utils.build_rm_data --reviews eval/in-test_reviews --output_dir RM_data --test_from data/test

Every review becomes one conversation: the review prompt with its image, and the review. OUTPUT_DIR/build_info.json,
written last, tells how the files were made and names the prompts that training, validation and test sets share.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mmrole.base.arguments import at_least, fraction
from mmrole.base.errors import Problems, UserError, listed, run
from mmrole.base.files import read_records, sha256, write_json, write_json_list
from mmrole.base.json_values import JsonObject
from mmrole.base.output_folder import filling, refuse_existing
from mmrole.data.records import Review, Sample
from mmrole.data.review_data import (
    FACETS,
    SPLIT_UNITS,
    ReviewedAnswer,
    ScoredReview,
    ScoredReviews,
    Shared,
    balance,
    make_rows,
    shared,
    split_rows,
)
from mmrole.data.splits import find_test_files, read_test_samples
from mmrole.scoring.judges import find_judge

TRAIN_FILE = "train/RM-train.json"
VALIDATION_FILE = "validation/RM-validation.json"
INFO_FILE = "build_info.json"

_MEANING = {
    "training and validation": "so validation does not tell how new prompts are reviewed: --split_by prompt or "
    "character would",
    "training and test sets": "so the reward model will know prompts that it is to score, as the published one appears "
    "to: --leave_out_test leaves their reviews out",
    "validation and test sets": "so a reward model that is chosen by its validation is chosen by test prompts",
}
"""What it means that two sets share prompts."""

_SHOWN_IDS = 5
_SHOWN_PAIRS = 8


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.build_rm_data",
        description="Builds training and validation files for a reward model from reviews with scores.",
    )
    add = parser.add_argument
    add(
        "--reviews",
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders with reviewed answers, <model>/<type>_test.json in or below them, or single files",
    )
    add("--output_dir", required=True, metavar="OUT", help="folder for train/ and validation/; made if needed")
    add(
        "--split_by",
        choices=SPLIT_UNITS,
        default="prompt",
        help="what is either in training or in validation: single answers, whose prompts other models' answers share; "
        "prompts with all their answers; or characters with all their prompts (default: %(default)s)",
    )
    add(
        "--validation",
        type=fraction,
        default=0.1,
        metavar="F",
        help="share of these units that go into validation, 0 for none (default: %(default)s)",
    )
    add(
        "--max_per_pair",
        type=at_least(1),
        metavar="N",
        help="balance: keep at most N training reviews of each score pair, drawn with the seed (default: all)",
    )
    add(
        "--test_from",
        nargs="+",
        metavar="DIR",
        help="test sets to compare with: folders or files of test samples, answers or reviews",
    )
    add("--leave_out_test", action="store_true", help="leave out the reviews whose prompt is in --test_from")
    add("--seed", type=int, default=1234, help="of the split and of the balance (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files in OUT, whoever made them")
    arguments = parser.parse_args(argv)
    if arguments.leave_out_test and not arguments.test_from:
        parser.error("--leave_out_test needs --test_from")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, builds, compares, writes and reports."""
    arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir)
    refuse_existing(output_dir, (TRAIN_FILE, VALIDATION_FILE, INFO_FILE), vars(arguments))
    files = find_test_files(arguments.reviews)
    judge = find_judge(files)
    answers = read_answers(files)
    tests = read_test_samples(find_test_files(arguments.test_from or []))
    rows = make_rows(answers)
    _report_rows(answers, rows, judge.name)
    usable = _without_tests(rows, tests) if arguments.leave_out_test else rows.usable
    if not usable:
        raise UserError("no review is left to learn from; give others")
    training, validation = split_rows(usable, arguments.split_by, arguments.validation, arguments.seed)
    if arguments.max_per_pair:
        training = balance(training, arguments.max_per_pair, arguments.seed)
    parts = {TRAIN_FILE: training} | ({VALIDATION_FILE: validation} if validation else {})
    _report_parts(parts, arguments.validation)
    leaks = _compare(training, validation, tests)
    _report_leaks(leaks)
    stale = [] if VALIDATION_FILE in parts else [VALIDATION_FILE]
    with filling(output_dir, vars(arguments), last=INFO_FILE, stale=stale) as folder:
        _write(folder, parts, arguments, rows, leaks, judge.name)
    print(f"written to {output_dir}")


def read_answers(files: Sequence[Path]) -> list[ReviewedAnswer]:
    """The reviewed answers of some files; the folder of a file is named after the model.

    Raises:
        UserError: a file cannot be read, or has faulty records.
    """
    problems = Problems()
    answers = []
    for path in tqdm(files, desc="reviews", unit=" files", disable=None):
        model = Path(os.path.realpath(path)).parent.name
        answers += [ReviewedAnswer(model, review) for review in read_records(path, Review, problems)]
    problems.raise_if_any("the reviews have faulty records", "correct them, or give other files")
    return answers


def _without_tests(rows: ScoredReviews, tests: list[Sample]) -> list[ScoredReview]:
    tested = {(sample.image, sample.question) for sample in tests}
    usable = [row for row in rows.usable if (row.review.image, row.review.question) not in tested]
    rows.left_out["reviews of prompts in --test_from"] = len(rows.usable) - len(usable)
    print(f"  left out: {len(rows.usable) - len(usable):,} reviews of prompts in --test_from")
    return usable


def _compare(training: list[ScoredReview], validation: list[ScoredReview], tests: list[Sample]) -> dict[str, Shared]:
    """What each two of the sets share, of those that there are."""
    sets = {
        "training": [row.review for row in training],
        "validation": [row.review for row in validation],
        "test sets": tests,
    }
    names = [name for name, samples in sets.items() if samples]
    return {
        f"{one} and {other}": shared(sets[one], sets[other])
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    }


def _write(
    folder: Path,
    parts: dict[str, list[ScoredReview]],
    arguments: argparse.Namespace,
    rows: ScoredReviews,
    leaks: dict[str, Shared],
    judge: str,
) -> None:
    """Writes all files."""
    files: JsonObject = {}
    for name, part in parts.items():
        bar = tqdm(part, desc=Path(name).stem, unit=" reviews", disable=None)
        count = write_json_list(folder / name, (row.to_json() for row in bar))
        files[name] = {"records": count, "sha256": sha256(folder / name)}
    options = ("reviews", "test_from", "leave_out_test", "split_by", "validation", "max_per_pair", "seed")
    info = {name: getattr(arguments, name) for name in options} | {
        "judge": judge,
        "files": files,
        "left_out": dict(rows.left_out),
        "shared": {name: found.counts | {"prompt_ids": found.prompt_ids} for name, found in leaks.items()},
    }
    write_json(folder / INFO_FILE, info)


def _report_rows(answers: list[ReviewedAnswer], rows: ScoredReviews, judge: str) -> None:
    models = len({answer.model for answer in answers})
    print(f"{len(rows.usable):,} usable reviews of {len(answers):,} answers by {models} models; the judge: {judge}")
    for reason, count in rows.left_out.items():
        print(f"  left out: {count:,} {reason}")


def _report_parts(parts: dict[str, list[ScoredReview]], fraction: float) -> None:
    for name, part in parts.items():
        prompts = len({(row.review.image, row.review.question) for row in part})
        roles = len({row.review.role for row in part})
        print(f"{name}: {len(part):,} reviews of {prompts:,} prompts to {roles} characters")
        pairs = Counter(row.score for row in part).most_common()
        shown = ", ".join(f"({a:g}, {b:g}) {count:,}" for (a, b), count in pairs[:_SHOWN_PAIRS])
        print(f"  score pairs: {shown}" + (f" and {len(pairs) - _SHOWN_PAIRS} others" if pairs[_SHOWN_PAIRS:] else ""))
    if fraction and VALIDATION_FILE not in parts:
        print("no validation file: there is only one unit, which cannot be split")


def _report_leaks(leaks: dict[str, Shared]) -> None:
    width = max(map(len, leaks), default=0) + 2
    if leaks:
        print("shared by".ljust(width) + "  ".join(FACETS))
    for names, found in leaks.items():
        print(names.ljust(width) + "  ".join(f"{found.counts[facet]:,}".rjust(len(facet)) for facet in FACETS))
    for names, found in leaks.items():
        ids = found.prompt_ids
        if ids:
            all_of_them = f" (all of them: {INFO_FILE})" if ids[_SHOWN_IDS:] else ""
            print(f"{len(ids)} prompts are shared by {names}: {listed(ids, _SHOWN_IDS)}{all_of_them}")
            print(f"  {_MEANING[names]}")
    if "training and test sets" not in leaks:
        print("not compared with test sets: name them in --test_from")


if __name__ == "__main__":
    run(main)
