"""Answers test samples with an agent: every record of the input, with `conversations[1].answer` added.

    python inference.py --model_path model_weights/MMRole-Agent
    torchrun --nproc_per_node 4 inference.py --model_path model_weights/MMRole-Agent

Killed or interrupted, the same command goes on where it was.
"""

import argparse
import sys
from collections.abc import Mapping

try:
    from mmrole.backends.options import add_arguments
    from mmrole.base.errors import run
    from mmrole.data.image_file import ImageFile
    from mmrole.data.messages import one_turn
    from mmrole.data.records import Sample
    from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
    from mmrole.jobs import job
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


def requests(sample: Sample, image: ImageFile, settings: GenerationSettings) -> list[ChatRequest]:
    """The one request of a sample."""
    return [ChatRequest(sample.id, one_turn(sample.system, image, sample.question), settings)]


def result(sample: Sample, replies: Mapping[str, ChatReply]) -> dict:
    """The sample with its answer, in the published form."""
    return sample.with_answer(replies[sample.id].text).to_json()


ANSWERS = job.Program("inference.py", Sample, requests, result)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return job.run(ANSWERS, parse_arguments(argv))


if __name__ == "__main__":
    run(main)
