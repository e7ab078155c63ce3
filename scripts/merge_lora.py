"""Merges a LoRA adapter into its base model and writes a checkpoint in the layout of the base.

python scripts/merge_lora.py --adapter checkpoints/agent-lora --output_dir checkpoints/agent
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, cast

try:
    from mmrole.base.errors import UserError, run
    from mmrole.data.requests import GenerationSettings
    from mmrole.models.checkpoints import VOCABULARY, Checkpoint, find_checkpoint
    from mmrole.models.generation_config import FILE_NAME
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

DTYPES = ("auto", "bfloat16", "float16", "float32")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", type=Path, required=True, help="adapter directory; its adapter_config.json names the base model")
    add("--output_dir", type=Path, required=True, help="directory of the merged checkpoint")
    add("--dtype", choices=DTYPES, default="auto", help="of the merged weights; auto: as the base's config.json has it")
    add("--overwrite", action="store_true", help="replace a checkpoint that lies there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status.

    Raises:
        UserError: the adapter or its base cannot be used, or the output cannot be written.
    """
    arguments = parse_arguments(argv)
    checkpoint = find_checkpoint(arguments.adapter, use_lora=True)
    refuse_sources(arguments.output_dir, checkpoint)
    import torch

    from mmrole.models.loading import Model, check_checkpoint, load
    from mmrole.qwen_vl import CheckpointError

    # Saving looks for GPUs by way of DeepSpeed, which warns where there is none; merging needs none.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    try:
        refuse_existing(checkpoint, arguments)
        check_checkpoint(checkpoint)
        unused = GenerationSettings()
        # Added up in float32: in bfloat16 a small change of a large weight would be lost twice.
        model = Model(checkpoint, unused, unused, device=torch.device("cpu"), dtype=torch.float32)
        merged = cast(Any, load(model, progress=sys.stderr.isatty())).module
        dtype = dtype_of(checkpoint) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
        merged = merged.to(dtype or torch.bfloat16)
        write(checkpoint, merged, arguments)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write {arguments.output_dir}: {error}") from None
    print(f"{arguments.output_dir}: {checkpoint} merged, in {str(merged.dtype).removeprefix('torch.')}")
    return 0


def refuse_existing(checkpoint: Checkpoint, arguments: argparse.Namespace) -> None:
    """Raises UserError or CheckpointError if a checkpoint lies in the output directory and is not to be replaced."""
    if checkpoint.is_qwen_vl:
        from mmrole.qwen_vl.random_checkpoint import refuse_existing_checkpoint as refuse
    else:
        from mmrole.models.vlm.merging import refuse_existing_merge as refuse
    refuse(arguments.output_dir, vars(arguments))


def dtype_of(checkpoint: Checkpoint) -> Any:
    """That of the base's weights, as its config.json has it: torch's, or None."""
    if checkpoint.is_qwen_vl:
        from mmrole.qwen_vl.checkpoint_files import read_config
    else:
        from mmrole.models.vlm.loading import read_config
    return read_config(checkpoint.base).dtype


def write(checkpoint: Checkpoint, merged: Any, arguments: argparse.Namespace) -> None:
    """Writes the merged model in the layout of its base."""
    if not checkpoint.is_qwen_vl:
        from mmrole.models.vlm.merging import write_merged

        write_merged(arguments.output_dir, merged, checkpoint, vars(arguments))
        return
    from mmrole.qwen_vl.bpe import read_ranks
    from mmrole.qwen_vl.random_checkpoint import write_checkpoint

    ranks, settings = read_ranks(checkpoint.file(VOCABULARY)), checkpoint.file(FILE_NAME)
    write_checkpoint(arguments.output_dir, merged, ranks, command=vars(arguments), generation_config=settings)


def refuse_sources(output_dir: Path, checkpoint: Checkpoint) -> None:
    """Raises UserError if the output would lie in the adapter's directory, or in its base's."""
    for directory in (checkpoint.adapter, checkpoint.base):
        if directory is not None and output_dir.is_dir() and output_dir.samefile(directory):
            raise UserError(f"--output_dir {output_dir} is what is to be merged; give another directory")


if __name__ == "__main__":
    run(main)
