"""Answers test samples with an agent: every record of the input, with `conversations[1].answer` added.

    python inference.py --model_path model_weights/MMRole-Agent
    torchrun --nproc_per_node 4 inference.py --model_path model_weights/MMRole-Agent

Killed or interrupted, the same command goes on where it was. The exit status is 3 where requests have failed: the same
command asks them again.
"""

import argparse
import sys

try:
    from mmrole.backends.options import BackendOptions, find_backend
    from mmrole.base.errors import run
    from mmrole.jobs import job
    from mmrole.jobs.answers import ANSWERS
    from mmrole.jobs.options import JobOptions, add_arguments
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(
        parser,
        model_path="model_weights/MMRole-Agent",
        input_dir="data/test/in-distribution",
        output_dir="eval/in-test_answers/mmrole-agent",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    flags = vars(parse_arguments(argv))
    backend = BackendOptions.of_flags(flags)
    return job.run(ANSWERS, JobOptions.of_flags(flags), lambda place: find_backend(backend, place=place))


if __name__ == "__main__":
    run(main)
