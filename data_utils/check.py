"""Checks files of MMRole's data, and answers and reviews from elsewhere; repairs what is mechanical.

    python -m data_utils.check PATH... [--image_dir DIR] [--data_root DIR] [--tokenizer DIR --max_length N]
    python -m data_utils.check FILE --fix REPAIRED_FILE

A PATH is a file or a folder. Every problem is listed by its kind, with file, index and id; docs/data_check.md tells
what the kinds mean. Exit status: 0 if there is no error, 1 if there is, 2 for bad usage.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_utils.checks.checker import Checker
from data_utils.checks.folders import missing_files
from data_utils.checks.forms import Form, find_files
from data_utils.checks.loading import load_file
from data_utils.checks.problems import ERROR, WARNING, Place
from data_utils.checks.repairs import repair
from data_utils.checks.report import CheckReport, as_json, as_text
from data_utils.checks.surroundings import Lengths
from mmrole.base.arguments import at_least
from mmrole.base.errors import UserError, run
from mmrole.base.files import replacing, write_json
from mmrole.base.output_folder import filling, is_new
from mmrole.base.paths import open_regular


class Copy(NamedTuple):
    """What is checked for a file: the file itself, or a repaired copy.

    Attributes:
        path: of the copy.
        file: what it is a copy of.
        form: of the file, where it was recognised before the repairs: what is dropped may change what the rest looks
            like.
    """

    path: Path
    file: Path
    form: Form | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.tokenizer is None) != (args.max_length is None):
        parser.error("--tokenizer and --max_length need each other")
    if args.max_pixels is not None and args.tokenizer is None:
        parser.error("--max_pixels needs --tokenizer")
    if args.drop and not args.fix:
        parser.error("--drop needs --fix")
    if args.fix and len(args.paths) > 1:
        parser.error("--fix takes one PATH")
    for folder in (args.data_root, args.image_dir):
        if folder and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
    checker = Checker(
        data_root=args.data_root,
        image_dir=args.image_dir,
        form=args.form,
        lengths=None if args.tokenizer is None else _lengths(args),
        look_at_images=not args.no_images,
    )
    copies, repaired = [Copy(file, file) for file in _find_all(args.paths)], Counter()
    if args.fix:
        copies, repaired = _fix(args, [copy.file for copy in copies], checker)
        if not args.fix.exists():
            print(f"{args.fix} is not written: {args.paths[0]} cannot be repaired", file=sys.stderr)
    bar = tqdm(copies, desc="checking", unit="file", disable=None)
    files = [checker.check_file(copy.path, copy.file, copy.form) for copy in bar]
    forms = {copy.file: found.form for copy, found in zip(copies, files, strict=True)}
    of_folders = list(missing_files(forms, checker)) if any(path.is_dir() for path in args.paths) else []
    report = CheckReport(files, of_folders, checker.not_checked, repaired)
    for line in [as_json(report)] if args.format == "json" else as_text(report):
        print(line)
    return int(bool(report.count(ERROR) or (args.strict and report.count(WARNING))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.check",
        description="Checks files of MMRole's data, and answers and reviews from elsewhere. Lists every problem by its "
        "kind, with file, index and id; docs/data_check.md tells what the kinds mean.",
        epilog="Exit status: 0 if there is no error, 1 if there is, 2 for bad usage.",
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="file, or folder: then the files of the layout in it"
    )
    what = parser.add_argument_group("what is checked")
    what.add_argument(
        "--form",
        type=Form,
        choices=list(Form),
        metavar="FORM",
        help=f"what the files are: {', '.join(Form)} (default: told from folder and content)",
    )
    what.add_argument(
        "--data_root",
        type=Path,
        metavar="DIR",
        help="folder with profiles/ (who there is) and data/test/ (what answers must belong to); default: the nearest "
        "one around each file that has profiles/, else the current one",
    )
    what.add_argument("--image_dir", type=Path, metavar="DIR", help="image folder (default: images/ in the data root)")
    what.add_argument("--no_images", action="store_true", help="do not open image files")
    what.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE_OR_DIR",
        help="a checkpoint, of which no weights are read, or a file qwen.tiktoken: count the tokens of samples",
    )
    what.add_argument("--max_length", type=at_least(1), metavar="N", help="most tokens of a sample, with --tokenizer")
    what.add_argument(
        "--max_pixels",
        type=at_least(1),
        metavar="N",
        help="with --tokenizer: most pixels of an image, as for training (default: the checkpoint's limit)",
    )
    repairs = parser.add_argument_group("repairs")
    repairs.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write the file (or the files of the folder) with repairs to OUT, which must not exist, and check that",
    )
    repairs.add_argument("--drop", action="store_true", help="with --fix: leave out records that still have errors")
    report = parser.add_argument_group("report")
    report.add_argument("--format", choices=["text", "json"], default="text", help="for people or for programs (text)")
    report.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    return parser


def _lengths(args: argparse.Namespace) -> Lengths:
    from data_utils.checks.lengths import load_lengths  # takes seconds: it imports torch

    return load_lengths(args.tokenizer, args.max_length, max_pixels=args.max_pixels, look_at_images=not args.no_images)


def _find_all(paths: Sequence[Path]) -> list[Path]:
    """The files to check, each once."""
    files = {os.path.realpath(file): file for path in reversed(paths) for file in reversed(find_files(path))}
    return list(reversed(files.values()))


def _fix(args: argparse.Namespace, files: Sequence[Path], checker: Checker) -> tuple[list[Copy], Counter[str]]:
    """Writes repaired copies of the files: the copies, and the repairs by kind.

    Raises:
        UserError: --fix is there, or cannot be written.
    """
    (path,), out = args.paths, args.fix
    if not path.is_dir():
        if out.exists():
            raise UserError(f"{out} exists; give the name of a new file")
        if load_file(path, path, checker.form, Place(str(path))).form is None:
            return [Copy(path, path)], Counter()  # there is nothing to repair: its problem is reported
        form, repaired = _write_repaired(path, out, checker, args.drop)
        return [Copy(out, path, form)], repaired
    if not is_new(out, vars(args)):
        raise UserError(f"{out} exists; give the name of a new folder")
    copies: list[Copy] = []
    repaired: Counter[str] = Counter()
    with filling(out, vars(args)) as folder:
        for file in tqdm(files, desc="repairing", unit="file", disable=None):
            inside = file.relative_to(path)
            form, more = _write_repaired(file, folder / inside, checker, args.drop)
            copies.append(Copy(out / inside, file, form))
            repaired += more
    return copies, repaired


def _write_repaired(file: Path, target: Path, checker: Checker, drop: bool) -> tuple[Form | None, Counter[str]]:
    """Writes a repaired copy of a file, a plain one where there is nothing to repair.

    Returns:
        The form of the file, and the repairs by kind.
    """
    place = Place(str(file))
    loaded = load_file(file, file, checker.form, place)
    value, counts = loaded.value, Counter(problem.kind for problem in loaded.problems if problem.fix)
    if loaded.form is not None:
        value, more = repair(value, checker.source(file, loaded.form), place, checker, drop)
        counts += more
    if counts:
        write_json(target, value)
    else:
        with open_regular(file) as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
    return loaded.form, counts


if __name__ == "__main__":
    run(main)
