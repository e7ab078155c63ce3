"""How far two sets of reviews of the same answers agree: errors and correlations, per metric and overall.

    python eval/agreement.py --reviews eval/in-test_reviews --reference gpt-4_reviews
    python eval/agreement.py --rm_data RM_data/validation/RM-validation.json --replies replies/RM-validation.json

The first form compares reviews in the published form, by model, sample id and metric. The second compares the reviews
of a reward model's validation file with a reward model's replies to the same prompts, in a file of the same form.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from data_utils.arguments import at_least
    from data_utils.errors import UserError, run
    from data_utils.files import replacing
    from mmrole.scoring.agreement import (
        agreement_csv,
        agreement_text,
        match,
        measure_agreement,
        read_conversations,
        read_reviews,
    )
    from mmrole.scoring.statistics import DRAWS
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


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
    add(
        "--replies", metavar="FILE", help="the first set: a reward model's replies, as the assistant turn or its answer"
    )
    add("--rm_data", metavar="FILE", help="the second set: a validation file of the reward model")
    add = parser.add_argument_group("results").add_argument
    add("--output", metavar="CSV", type=Path, help="also write the numbers to this file")
    add("--draws", type=at_least(100), default=DRAWS, metavar="N", help="of the bootstrap (default: %(default)s)")
    add("--seed", type=at_least(0), default=1234, metavar="N", help="of the bootstrap (default: %(default)s)")
    options = parser.parse_args(argv)
    given = [name for name in ("reviews", "reference", "replies", "rm_data") if getattr(options, name) is not None]
    if given not in (["reviews", "reference"], ["replies", "rm_data"]):
        parser.error("give --reviews and --reference, or --rm_data and --replies")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, prints the table, and writes it if asked to; returns the exit status."""
    options = parse_arguments(argv)
    if options.output is not None and options.output.is_dir():
        raise UserError(f"{options.output} is a folder; give the name of a file")
    if options.rm_data is None:
        first, second = read_reviews(options.reviews), read_reviews(options.reference)
    else:
        first, second = read_conversations(options.replies), read_conversations(options.rm_data)
    matched = match(first, second)
    if not matched.keys:
        raise UserError(
            f"the two sets share no review with scores ({len(first)} and {len(second)} reviews); give reviews of the "
            "same answers: the same models and sample ids, or the same prompts"
        )
    rows = measure_agreement(matched, draws=options.draws, seed=options.seed)
    print(f"{len(matched.keys):,} reviews compared, first minus second; below each number its 95 % interval by image")
    print(agreement_text(rows))
    left_out = [f"{count:,} {reason}" for reason, count in matched.left_out.items() if count]
    if left_out:
        print(f"Not compared: {', '.join(left_out)}")
    if options.output is not None:
        with replacing(options.output) as file:
            file.write(agreement_csv(rows).encode())
        print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run(main)
