"""Results from reviews: one table a file, with the mean ratio of answer to reference under each of the eight metrics.

    python eval/RM_result.py --input_dir eval/in-test_reviews/my-agent --output_dir eval/in-test_results/my-agent

Exit status 3: something is not reviewed, or has no usable scores, and is named on stderr; the tables are written over
the samples that have all eight pairs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from mmrole.base.errors import Problems, UserError, run
    from mmrole.base.files import replacing
    from mmrole.data.dialogues import TYPES
    from mmrole.scoring.judges import PUBLISHED, find_judge, judge_folder
    from mmrole.scoring.results import Result, compute_result
    from mmrole.scoring.reviews import ReviewFile, answers_beside, read_review_file
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

TEST_FILES = [f"{kind}_test.json" for kind in TYPES]
INCOMPLETE = 3
"""Exit status where the means do not cover all answers."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--input_dir",
        type=Path,
        default=Path("eval/in-test_reviews/mmrole-agent"),
        help="folder of the reviews (default: %(default)s)",
    )
    add(
        "--input_file",
        type=Path,
        help=f"one file of --input_dir (default: {', '.join(TEST_FILES)})",
    )
    add(
        "--output_dir",
        type=Path,
        default=Path("eval/in-test_results/mmrole-agent"),
        help="folder of the tables, <input file>.csv (default: %(default)s)",
    )
    add(
        "--answers_dir",
        type=Path,
        help="folder of the answers that were reviewed, whose ids must all be there (default: as --input_dir, with "
        "_answers for _reviews: eval/in-test_answers/mmrole-agent)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads everything, then writes a table for each file; returns the exit status."""
    arguments = parse_arguments(argv)
    files, absent = read_files(arguments)
    check_judge(arguments.output_dir, files)
    complete = not absent
    for path in absent:
        print(f"{path} is not there: nothing of it is reviewed", file=sys.stderr)
    for file in files:
        result = compute_result(file)
        for gap in result.gaps:
            print(gap, file=sys.stderr)
        complete &= not result.gaps
        write_result(arguments.output_dir / f"{file.path.stem}.csv", file, result)
    if complete:
        return 0
    print("the results are not complete: they do not cover all answers (exit status 3)", file=sys.stderr)
    return INCOMPLETE


def read_files(arguments: argparse.Namespace) -> tuple[list[ReviewFile], list[Path]]:
    """The files of reviews, and the paths of those that are not there although there are answers to review.

    Raises:
        UserError: there is none, or one is faulty.
    """
    folder, answers_dir, name = arguments.input_dir, arguments.answers_dir, arguments.input_file
    if name and name.name != str(name):
        raise UserError(f"--input_file {name} is a path; give the name of a file in --input_dir, {folder}")
    if answers_dir and not answers_dir.is_dir():
        raise UserError(f"the folder of the answers, {answers_dir}, does not exist; give another --answers_dir")
    if Path(os.path.abspath(folder)).parent.name.endswith("_answers"):
        raise UserError(
            f"{folder} is a folder of answers; give that of their reviews (eval/RM_review.py) as --input_dir"
        )
    paths = [folder / name for name in ([arguments.input_file] if arguments.input_file else TEST_FILES)]
    present = [path for path in paths if path.exists()]
    if not present:
        raise UserError(
            f"{folder} has no {' or '.join(path.name for path in paths)}; "
            "review the answers first (eval/RM_review.py), or give another --input_dir"
        )
    answers_of = {path: answers_dir / path.name if answers_dir else answers_beside(path) for path in paths}
    problems = Problems()
    files = [read_review_file(path, answers_of[path], problems) for path in present]
    problems.raise_if_any("the reviews have faulty records", "correct the files and run the same command again")
    return files, [path for path, answers in answers_of.items() if path not in present and _has_answers(answers)]


def check_judge(output_dir: Path, files: Sequence[ReviewFile]) -> None:
    """Makes sure that no table is put beside those of another judge.

    Raises:
        UserError: the reviews are by several judges, or the folder of the tables is another one's.
    """
    judge = find_judge(file.path for file in files)
    folder = judge_folder(os.path.abspath(output_dir))
    if folder is not None and (folder.judge or PUBLISHED) != (PUBLISHED if judge.is_published else judge.name):
        raise UserError(
            f"--output_dir {output_dir} is for results by {folder.judge or PUBLISHED}, and these are by {judge.name}; "
            f"give {folder.name}{'' if judge.is_published else f'@{judge.name}'}/<model>, or a folder elsewhere"
        )


def _has_answers(path: Path | None) -> bool:
    """Whether there are answers to review, as far as can be told."""
    return path is None or path.exists() or not path.parent.exists()


def write_result(path: Path, file: ReviewFile, result: Result) -> None:
    """Writes a table, if there is anything to average, and says so; says as well if other figures were there."""
    if not result.n:
        earlier = "; what is there is of earlier reviews" if path.exists() else ""
        print(f"{path}: not written, no sample of {file.path} has all eight pairs{earlier}", file=sys.stderr)
        return
    data = result.csv().encode()
    note = ", which held other figures" if path.exists() and path.read_bytes() != data else ""
    with replacing(path) as output:
        output.write(data)
    overall = sum(result.means) / len(result.means)
    counts = {"empty": result.n_empty, "refused or failed": result.n_unanswered}
    without = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    without = f" ({without})" if without else ""
    print(f"{path}{note}: {result.n} of {file.n_expected} answers{without}, mean of the eight metrics {overall:.3f}")


if __name__ == "__main__":
    run(main)
