"""The flags that all scripts which generate share, so that they are named and explained once."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrole.base.arguments import at_least

DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
TEST_FILES = ("comment_test.json", "human-role_test.json", "inter-role_test.json")


def add_arguments(parser: argparse.ArgumentParser, *, model_path: str, input_dir: str, output_dir: str) -> None:
    """Adds the published flags, with the script's defaults, and those of a long job."""
    add = parser.add_argument_group("model").add_argument
    add("--model_path", type=Path, default=Path(model_path), help="checkpoint directory (default: %(default)s)")
    add("--use_lora", action="store_true", help="--model_path is a LoRA adapter, whose configuration names its base")
    add("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 or float16 on a GPU, float32 on the CPU")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")

    add = parser.add_argument_group("input and output").add_argument
    add("--image_dir", type=Path, default=Path("images"), help="folder of the images (default: %(default)s)")
    add("--input_dir", type=Path, default=Path(input_dir), help="folder of the input (default: %(default)s)")
    add(
        "--input_file",
        type=Path,
        help=f"one file of --input_dir (default: {', '.join(TEST_FILES)}, the model loaded once)",
    )
    add("--output_dir", type=Path, default=Path(output_dir), help="folder of the output (default: %(default)s)")
    add("--overwrite", action="store_true", help="start anew where there is an output or a journal already")
    add("--limit", type=at_least(1), metavar="N", help="only the first N records of each file, to try things out")
    add("--skip_missing_images", action="store_true", help="leave out records without their image file, and list them")

    add = parser.add_argument_group("generation (what is not given comes from generation_config.json)").add_argument
    add("--no_random", action="store_true", help="greedy: always the most probable token")
    add("--seed", type=int, default=1234, help="seed of the sampling (default: %(default)s)")
    add("--max_new_tokens", type=at_least(1), metavar="N", help="most tokens of a reply")
    add(
        "--max_batch_tokens",
        type=at_least(1),
        metavar="N",
        help="positions in memory at once; changes speed, not replies (default: what fits into the free memory)",
    )
