"""How far two judges of the same answers agree, and who is harsher: errors, correlations, per metric and overall.

    python eval/agreement.py --reviews eval/in-test_reviews --reference eval/in-test_reviews@gpt-4o
    python eval/agreement.py --rm_data RM_data/validation/RM-validation.json --replies replies --model_path my-rm

The first form compares reviews in the published form, by model, sample id and metric. The second compares the reviews
of a reward model's validation file with a reward model's replies to the same prompts, in a file of the same form; with
--model_path it makes that file first, and, killed or interrupted, goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from mmrole.backends.engine import find_engine
    from mmrole.backends.options import ModelFlag, add_loading_arguments
    from mmrole.backends.scripted import read_replies
    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, run
    from mmrole.base.files import replacing
    from mmrole.data.splits import find_test_files
    from mmrole.jobs import job
    from mmrole.jobs.options import RETRY_REFUSED, JobOptions
    from mmrole.models.loading import ModelOptions
    from mmrole.scoring.agreement import match, measure_agreement, read_conversations, read_reviews
    from mmrole.scoring.agreement_tables import agreement_csv, agreement_text, harsher_text
    from mmrole.scoring.judges import find_judge
    from mmrole.scoring.review_replies import REPLIES
    from mmrole.scoring.statistics import DRAWS
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


# What messages of a job call by the flags of inference.py.
_FLAGS = {"--output_dir": "--replies", "--input_dir": "--rm_data", "--input_file": "--rm_data"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("reviews in the published form").add_argument
    add(
        "--reviews",
        nargs="+",
        metavar="DIR",
        help="the first set: folders with <model>/<type>_test.json in or below them, or single files",
    )
    add("--reference", nargs="+", metavar="DIR", help="the second set, such as reviews by GPT-4 or by people")
    add = parser.add_argument_group("reviews as conversations").add_argument
    add("--rm_data", type=Path, metavar="FILE", help="the second set: a validation file of the reward model")
    add(
        "--replies",
        type=Path,
        metavar="FILE",
        help="the first set: a reward model's replies, as the assistant turn or its answer; or a folder with a file of "
        'the name that --rm_data has; or JSON Lines (.jsonl) of {"id": "…", "text": "…"}, the id being the '
        "number of the row and its own id",
    )
    add = parser.add_argument_group("replies to make first, greedily, in the folder --replies").add_argument
    add("--model_path", action=ModelFlag, type=Path, metavar="DIR", help="checkpoint of the reward model")
    add_loading_arguments(add)
    add(
        "--image_dir",
        action=ModelFlag,
        type=Path,
        default=Path("images"),
        help="folder of the images (default: %(default)s)",
    )
    add(
        "--skip_missing_images",
        action=ModelFlag,
        nargs=0,
        default=False,
        help="leave out rows without their image file, and list them",
    )
    add("--overwrite", action=ModelFlag, nargs=0, default=False, help="start anew where there are replies already")
    add("--limit", action=ModelFlag, type=at_least(1), metavar="N", help="only the first N rows, to try things out")
    add("--retry_refused", action=ModelFlag, nargs=0, default=False, help=RETRY_REFUSED)
    add(
        "--max_new_tokens",
        action=ModelFlag,
        type=at_least(1),
        metavar="N",
        help="most tokens of a reply (default: of the checkpoint)",
    )
    add = parser.add_argument_group("results").add_argument
    add("--output", metavar="CSV", type=Path, help="also write the numbers to this file")
    add("--draws", type=at_least(100), default=DRAWS, metavar="N", help="of the bootstrap (default: %(default)s)")
    add("--seed", type=at_least(0), default=1234, metavar="N", help="of the bootstrap (default: %(default)s)")
    options = parser.parse_args(argv)
    given = [name for name in ("reviews", "reference", "replies", "rm_data") if getattr(options, name) is not None]
    if given not in (["reviews", "reference"], ["replies", "rm_data"]):
        parser.error("give --reviews and --reference, or --rm_data and --replies")
    if options.model_path is not None and options.rm_data is None:
        parser.error("--model_path makes replies to --rm_data; reviews of answers are made by eval/RM_review.py")
    if options.model_path is None and (given := getattr(options, "model_flags", ())):
        parser.error(f"{' and '.join(dict.fromkeys(given))} without --model_path: there is no model to make replies")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, prints the table, and writes it if asked to; returns the exit status."""
    options = parse_arguments(argv)
    if options.output is not None and options.output.is_dir():
        raise UserError(f"{options.output} is a folder; give the name of a file")
    judges = ["the first set", "the second set"]
    if options.rm_data is None:
        files = [find_test_files(places) for places in (options.reviews, options.reference)]
        found = [find_judge(own).name for own in files]
        if found[0] != found[1]:
            judges = found
        first, second = map(read_reviews, files)
    else:
        if options.model_path is not None and (status := generate_replies(options)):
            return status
        if options.replies.suffix == ".jsonl" and not options.replies.is_dir():
            first = read_conversations(options.rm_data, read_replies(options.replies))
        else:
            is_folder = options.replies.is_dir()
            first = read_conversations(options.replies / options.rm_data.name if is_folder else options.replies)
        second = read_conversations(options.rm_data)
    matched = match(first, second)
    if not matched.keys:
        raise UserError(
            f"the two sets share no review with scores ({len(first)} and {len(second)} reviews); give reviews of the "
            "same answers: the same models and sample ids, or the same prompts"
        )
    rows = measure_agreement(matched, draws=options.draws, seed=options.seed)
    print(f"{len(matched.keys):,} reviews compared: {judges[0]} (first) and {judges[1]} (second)")
    print("Differences are first minus second; below each number is its 95 % interval by image")
    print(agreement_text(rows))
    print(harsher_text(rows, *judges))
    left_out = [f"{count:,} {reason}" for reason, count in matched.left_out.items() if count]
    if left_out:
        print(f"Not compared: {', '.join(left_out)}")
    if options.output is not None:
        with replacing(options.output) as file:
            file.write(agreement_csv(rows).encode())
        print(f"wrote {options.output}")
    return 0


def generate_replies(options: argparse.Namespace) -> int:
    """Has the reward model review the prompts of --rm_data; returns the exit status.

    Raises:
        UserError: for everything that the user can mend; what is finished is kept.
    """
    if options.replies.is_file():
        raise UserError(f"{options.replies} is a file; with --model_path, --replies is the folder to make replies in")
    model = ModelOptions(
        options.model_path,
        use_lora=options.use_lora,
        dtype=options.dtype,
        device=options.device,
        no_random=True,
        max_new_tokens=options.max_new_tokens,
    )
    work = JobOptions(
        options.rm_data.parent,
        options.replies,
        image_dir=options.image_dir,
        input_file=Path(options.rm_data.name),
        overwrite=options.overwrite,
        limit=options.limit,
        skip_missing_images=options.skip_missing_images,
        retry_refused=options.retry_refused,
    )
    try:
        return job.run(REPLIES, work, lambda place: find_engine(model, place=place))
    except UserError as error:
        raise UserError(*(_with_own_flags(str(line)) for line in error.args)) from error


def _with_own_flags(text: str) -> str:
    for flag, own in _FLAGS.items():
        text = text.replace(flag, own)
    return text


if __name__ == "__main__":
    run(main)
