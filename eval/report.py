"""The results page, tables and figures from the reviews of any number of models.

    python eval/report.py --reviews eval/in-test_reviews eval/out-test_reviews --output_dir eval/report

Writes index.html, which needs no network, leaderboard.csv, .md and .tex, all means as scores.csv, pairs.csv,
distributions.csv, and figures as PNG and SVG. How each number is computed: docs/evaluation.md. Exit status 3: something
is not reviewed, or has no usable scores, and is named on stderr; everything is written all the same, over the samples
that have all eight pairs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, listed, run
    from mmrole.base.files import replacing
    from mmrole.base.output_folder import filling, refuse_existing
    from mmrole.data.profiles import CATEGORIES
    from mmrole.scoring.coverage import describe_gaps
    from mmrole.scoring.judges import find_judge, judge_name
    from mmrole.scoring.measures import OVERALL
    from mmrole.scoring.paper import PAPER_ROWS
    from mmrole.scoring.provenance import describe_differences
    from mmrole.scoring.report import Report, make_report
    from mmrole.scoring.reviews import ModelReviews, read_models
    from mmrole.scoring.statistics import DRAWS
    from mmrole.scoring.tables import NEIGHBOURS, estimate, leaderboard_markdown, p_value, shown_pairs, shown_splits
    from mmrole.scoring.tables_csv import distributions_csv, leaderboard_csv, pairs_csv, scores_csv
    from mmrole.scoring.tables_tex import leaderboard_tex
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

FOLDERS = (Path("eval/in-test_reviews"), Path("eval/out-test_reviews"))
REPORT = Path("eval/report")
INCOMPLETE = 3
"""Exit status where the numbers do not cover all answers."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--reviews",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders with <model>/<type>_test.json in or below them, or single files; a folder above each file must "
        f"be named in-test_… or out-test_… (default: {' and '.join(map(str, FOLDERS))}, those that exist)",
    )
    add(
        "--judge",
        type=judge_name,
        metavar="NAME",
        help="only reviews by this judge, eval/{in,out}-test_reviews@NAME or what of --reviews is in a folder that is "
        "named so; without the paper's rows, which are by the published reward model (default: the only judge that "
        "there is in --reviews)",
    )
    add("--models", nargs="+", metavar="NAME", help="only these models (default: all that there are)")
    add(
        "--output_dir",
        type=Path,
        help=f"folder of the report, made if needed (default: {REPORT}, or {REPORT}@NAME with --judge)",
    )
    add(
        "--image_dir",
        type=Path,
        default=Path("images"),
        help="folder of the images, for the thumbnails of the page; without it the page says so (default: %(default)s)",
    )
    add("--no_paper", action="store_true", help="leave out the rows of the paper's Table 5")
    add(
        "--category",
        action="append",
        default=[],
        type=_category,
        metavar="SERIES=CATEGORY",
        help=f"the category of a series whose name does not tell it: {', '.join(CATEGORIES)}; can be repeated",
    )
    add(
        "--draws",
        type=at_least(100),
        default=DRAWS,
        metavar="N",
        help="resamples of the intervals and flips of the tests (default: %(default)s)",
    )
    add("--seed", type=at_least(0), default=1234, help="of these draws (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an earlier report in --output_dir")
    arguments = parser.parse_args(argv)
    if arguments.output_dir is None:
        arguments.output_dir = REPORT if arguments.judge is None else _of_judge(REPORT, arguments.judge)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Reads, computes, writes and prints; returns the exit status."""
    arguments = parse_arguments(argv)
    folder = arguments.output_dir
    refuse_existing(folder, ("index.html", "leaderboard.csv"), vars(arguments))
    models = read_reviews(arguments)
    judge = find_judge(file.path for model in models for file in model.files)
    paper = PAPER_ROWS if judge.is_published and not arguments.no_paper else ()
    report = make_report(models, paper, draws=arguments.draws, seed=arguments.seed, judge=judge.name)
    with filling(folder, vars(arguments), last="index.html") as partial:
        write_report(partial, report, models, arguments.image_dir)
    print_report(report)
    print(f"written to {folder}; the page is {folder / 'index.html'}")
    for difference in describe_differences(file for model in models for file in model.files):
        print(f"warning: {difference}", file=sys.stderr)
    gaps = [gap for model in models for file in model.files for gap in describe_gaps(file)]
    for gap in gaps:
        print(gap, file=sys.stderr)
    if gaps:
        print("the numbers are not complete: they do not cover all answers (exit status 3)", file=sys.stderr)
    return INCOMPLETE if gaps else 0


def read_reviews(arguments: argparse.Namespace) -> list[ModelReviews]:
    """The reviews of the models asked for.

    Raises:
        UserError: there are none, or some are faulty.
    """
    judge = arguments.judge
    usual = FOLDERS if judge is None else [_of_judge(folder, judge) for folder in FOLDERS]
    folders = arguments.reviews or [folder for folder in usual if folder.is_dir()]
    if not folders:
        raise UserError(
            f"neither {' nor '.join(map(str, usual))} exists; review answers first (eval/RM_review.py), "
            "or give --reviews"
        )
    models = read_models(folders, dict(arguments.category), judge)
    if arguments.models:
        found = [model.model for model in models]
        for name in arguments.models:
            if name not in found:
                raise UserError(f"there are no reviews of {name!r}; --models can name {', '.join(found)}")
        models = [model for model in models if model.model in arguments.models]
    models = [model for model in models if model.records]
    if not models:
        raise UserError(f"the files in {', '.join(map(str, folders))} hold no reviews")
    return models


def write_report(folder: Path, report: Report, models: Sequence[ModelReviews], image_dir: Path) -> None:
    """Writes all files."""
    from mmrole.scoring.figures import draw_figures  # loads matplotlib
    from mmrole.scoring.page import write_page

    tables = {
        "leaderboard.csv": leaderboard_csv(report),
        "scores.csv": scores_csv(report),
        "distributions.csv": distributions_csv(report),
        "pairs.csv": pairs_csv(report),
        "leaderboard.md": leaderboard_markdown(report),
        "leaderboard.tex": leaderboard_tex(report),
    }
    for name, text in tables.items():
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    draw_figures(folder, report, models)
    write_page(folder, report, models, image_dir if image_dir.is_dir() else None)


def print_report(report: Report) -> None:
    """Prints the judge, the overall means and the comparisons."""
    print(f"reviews by {report.judge}")
    names = {model.model: listed([model.model], 1) for model in report.models}
    width = max(map(len, names.values())) + 2
    for key in shown_splits(report):
        print(f"{OVERALL}, {key}:")
        for model in report.models:
            if key in model.scores:
                overall = model.scores[key][OVERALL]
                print(f"  {names[model.model]:{width}}{estimate(overall)}  {overall.n} samples")
    pairs = shown_pairs(report)
    for pair in pairs:
        numbers = f"{estimate(pair.difference)}, p {p_value(pair.corrected)}"
        print(listed([f"{pair.first} – {pair.second}: {numbers}: {pair.verdict}"], 1))
    if len(pairs) < len(report.pairs):
        print(f"these are pairs at most {NEIGHBOURS} ranks apart; pairs.csv has all {len(report.pairs)}")


def _of_judge(folder: Path, judge: str) -> Path:
    return folder.with_name(f"{folder.name}@{judge}")


def _category(text: str) -> tuple[str, str]:
    series, _, name = text.rpartition("=")
    if name not in CATEGORIES or not series:
        raise argparse.ArgumentTypeError(f"must be SERIES=CATEGORY with one of {', '.join(CATEGORIES)}, not {text!r}")
    return series, name


if __name__ == "__main__":
    run(main)
