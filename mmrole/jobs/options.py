"""The flags that all scripts with a long job share, and what they mean as typed options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmrole.backends.api.options import add_api_arguments
from mmrole.backends.options import add_generation_arguments, add_model_arguments
from mmrole.base.arguments import NotedFlag, at_least
from mmrole.base.errors import UserError

RETRY_REFUSED = "ask again what was refused; otherwise a refusal stands"
TEST_FILES = ("comment_test.json", "human-role_test.json", "inter-role_test.json")


@dataclass(frozen=True)
class JobOptions:
    """What a job reads and writes; each as the flag of that name."""

    input_dir: Path
    output_dir: Path
    image_dir: Path = Path("images")
    input_file: Path | None = None
    """One file of the input folder; None for `TEST_FILES`."""
    overwrite: bool = False
    limit: int | None = None
    skip_missing_images: bool = False
    retry_refused: bool = False
    rehearses: bool = False
    """Nothing is asked: it is said what it would cost, or written into files."""
    reads_batches: bool = False
    """Replies come from results of batches, which ask nothing again."""

    @property
    def without(self) -> str:
        """The flags that a command leaves out which asks again what is missing, in words."""
        flags = {"--overwrite": self.overwrite, "--batch_read": self.reads_batches}
        named = " and ".join(flag for flag, is_given in flags.items() if is_given)
        return f" without {named}" if named else ""

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> JobOptions:
        """The options that the flags of a script mean, by name; `vars` of what argparse makes.

        Raises:
            UserError: a server's model answers, into the folder that is the published model's by default.
        """
        if flags["api_base"] is not None and "--output_dir" not in flags.get("given_flags", ()):
            raise UserError(
                f"{flags['output_dir']} is not for the answers of {flags['api_model']}; say where they go with "
                "--output_dir"
            )
        of_flags = {field.name: flags[field.name] for field in fields(cls) if field.name in flags}
        return cls(
            **of_flags,
            rehearses=flags["dry_run"] or flags["batch_write"] is not None,
            reads_batches=bool(flags["batch_read"]),
        )


def add_arguments(parser: argparse.ArgumentParser, *, model_path: str, input_dir: str, output_dir: str) -> None:
    """Adds the published flags, with the script's defaults, and those of a long job."""
    add_model_arguments(parser, model_path=model_path)
    add = parser.add_argument_group("input and output").add_argument
    add("--image_dir", type=Path, default=Path("images"), help="folder of the images (default: %(default)s)")
    add("--input_dir", type=Path, default=Path(input_dir), help="folder of the input (default: %(default)s)")
    add(
        "--input_file",
        type=Path,
        help=f"one file of --input_dir (default: {', '.join(TEST_FILES)}, the model loaded once)",
    )
    add(
        "--output_dir",
        action=NotedFlag,
        type=Path,
        default=Path(output_dir),
        help="folder of the output (default: %(default)s; none with --api_base)",
    )
    add("--overwrite", action="store_true", help="start anew where there is an output or a journal already")
    add("--limit", type=at_least(1), metavar="N", help="only the first N records of each file, to try things out")
    add("--skip_missing_images", action="store_true", help="leave out records without their image file, and list them")
    add("--retry_refused", action="store_true", help=RETRY_REFUSED)
    add_generation_arguments(parser)
    add_api_arguments(parser)
