"""Reviews answers with the reward model: every record of the input, with `rm_review` added, eight reviews an answer.

    python eval/RM_review.py --input_dir eval/in-test_answers/my-agent --output_dir eval/in-test_reviews/my-agent
    torchrun --nproc_per_node 4 eval/RM_review.py --model_path model_weights/MMRole-Eval_RM

Killed or interrupted, the same command goes on where it was. The exit status is 3 where requests have failed: the same
command asks them again. docs/reviews_format.md describes the output.
"""

import argparse
import os
import sys
from pathlib import Path

try:
    from mmrole.backends.backend import Backend, ProcessPlace
    from mmrole.backends.options import BackendOptions, find_backend
    from mmrole.base.arguments import at_least
    from mmrole.base.errors import UserError, run
    from mmrole.jobs import job
    from mmrole.jobs.options import JobOptions, add_arguments
    from mmrole.scoring.judges import can_be_published, judge_folder
    from mmrole.scoring.review_program import review_program
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(
        parser,
        model_path="model_weights/MMRole-Eval_RM",
        input_dir="eval/in-test_answers/mmrole-agent",
        output_dir="eval/in-test_reviews/mmrole-agent",
    )
    add = parser.add_argument_group("reviews").add_argument
    add(
        "--retries",
        type=at_least(0),
        default=3,
        metavar="N",
        help="generate a review without a usable pair of scores so often again, each time with a new seed (default: "
        "%(default)s). Retries are sampled, with --no_random too: with temperature, top_k and top_p of "
        "generation_config.json, or 1.0, 0 and 0.3 without that file",
    )
    add(
        "--swap",
        action="store_true",
        help="also review with the answers exchanged, the reference first, into rm_review_swapped: twice the work, "
        "for a result without position bias",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    flags = vars(parse_arguments(argv))
    backend = BackendOptions.of_flags(flags)
    if backend.api is not None:
        check_judge_folder(flags["output_dir"])

    def judge(place: ProcessPlace) -> Backend:
        found = find_backend(backend, place=place, resampling=flags["retries"] > 0)
        if not can_be_published(found.fingerprint()):
            check_judge_folder(flags["output_dir"])
        return found

    return job.run(review_program(flags["retries"], flags["swap"]), JobOptions.of_flags(flags), judge)


def check_judge_folder(output_dir: Path) -> None:
    """Raises UserError where the reviews of another model would come among the published reward model's."""
    folder = judge_folder(os.path.abspath(output_dir))
    if folder is not None and folder.judge is None:
        raise UserError(
            f"--output_dir {output_dir} is for reviews by the published reward model; give {folder.name}@JUDGE/<model> "
            "with a name of the judge"
        )


if __name__ == "__main__":
    run(main)
