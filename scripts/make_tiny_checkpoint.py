"""Writes a small random checkpoint in the original layout of Qwen-VL-Chat, so that everything runs with no download.

    python scripts/make_tiny_checkpoint.py --output_dir checkpoints/tiny --train_vocab_on LICENSE --vocab_size 400

The same flags and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="directory of the checkpoint")
    add("--overwrite", action="store_true", help="replace a checkpoint that lies there")
    add("--seed", type=_at_least(0), default=0, help="seed of the weights (default: %(default)s)")

    vocabulary = parser.add_argument_group("vocabulary (without any of these: the 256 single bytes)")
    add = vocabulary.add_argument
    add("--train_vocab_on", type=Path, nargs="+", metavar="FILE", help="train a vocabulary on these texts (UTF-8)")
    add("--vocab_size", type=_at_least(256), metavar="N", help="its size in tokens, the 256 single bytes included")
    add("--vocab", type=Path, metavar="FILE", help="take the vocabulary of this qwen.tiktoken")
    add("--vocab_lines", type=_at_least(256), metavar="N", help="only its first N lines (at least 256)")

    language = parser.add_argument_group("language model")
    add = language.add_argument
    add("--hidden_size", type=_at_least(1), default=128, help="channels, at least 128 (default: %(default)s)")
    add("--num_hidden_layers", type=_at_least(1), default=2, help="blocks (default: %(default)s)")
    add("--num_attention_heads", type=_at_least(1), default=4, help="heads of a block (default: %(default)s)")
    add(
        "--intermediate_size",
        type=_at_least(1),
        default=512,
        help="twice the feed-forward width (default: %(default)s)",
    )
    add(
        "--seq_length",
        type=_at_least(1),
        default=2048,
        help="positions up to which dynamic NTK is off (default: %(default)s)",
    )
    add("--init_std", type=float, help="standard deviation of the initial weights (default: 2 / sqrt(hidden_size))")

    vision = parser.add_argument_group("vision tower")
    add = vision.add_argument
    add("--visual_width", type=_at_least(1), default=64, help="channels (default: %(default)s)")
    add("--visual_layers", type=_at_least(1), default=2, help="blocks (default: %(default)s)")
    add("--visual_heads", type=_at_least(1), default=2, help="heads of a block (default: %(default)s)")
    add(
        "--image_size",
        type=_at_least(1),
        default=448,
        help="side of the resized image in pixels (default: %(default)s)",
    )
    add("--patch_size", type=_at_least(1), default=14, help="side of a patch in pixels (default: %(default)s)")

    files = parser.add_argument_group("weight files")
    add = files.add_argument
    add("--format", choices=["safetensors", "bin"], default="safetensors", help="default: %(default)s")
    add(
        "--dtype",
        choices=["bfloat16", "float16", "float32", "float64"],
        default="bfloat16",
        help="default: %(default)s",
    )
    add("--max_shard_size", default="5GB", help="a larger model becomes several files (default: %(default)s)")

    arguments = parser.parse_args(argv)
    if arguments.train_vocab_on and arguments.vocab:
        parser.error("give --train_vocab_on or --vocab, not both")
    if (arguments.vocab_size is None) != (arguments.train_vocab_on is None):
        parser.error("--train_vocab_on and --vocab_size go together")
    if arguments.vocab_lines is not None and not arguments.vocab:
        parser.error("--vocab_lines needs --vocab")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status (2: a mistake in the arguments)."""
    arguments = parse_arguments(argv)
    try:
        from mmrole.base.errors import UserError
        from mmrole.qwen_vl import CheckpointError
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; run: bash scripts/setup.sh (then use .venv/bin/python)")
    try:
        write(arguments)
    except (CheckpointError, UserError, OSError, ValueError) as error:
        return _fail(str(error))
    return 0


def write(arguments: argparse.Namespace) -> None:
    """Makes the checkpoint that the arguments describe and prints what it is.

    Raises:
        CheckpointError: if a checkpoint lies there already, or for sizes that contradict each other.
        ValueError: for an unusable vocabulary or text.
        OSError: for a file that cannot be read or written.
    """
    import torch
    from transformers.utils import logging

    from mmrole.qwen_vl import random_checkpoint

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    random_checkpoint.refuse_existing_checkpoint(arguments.output_dir, vars(arguments))
    ranks = vocabulary(arguments)
    config = random_checkpoint.random_config(
        len(ranks),
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=arguments.intermediate_size,
        seq_length=arguments.seq_length,
        visual_width=arguments.visual_width,
        visual_layers=arguments.visual_layers,
        visual_heads=arguments.visual_heads,
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        init_std=arguments.init_std,
    )
    model = random_checkpoint.random_model(config, seed=arguments.seed, dtype=getattr(torch, arguments.dtype))
    random_checkpoint.write_checkpoint(
        arguments.output_dir,
        model,
        ranks,
        weights_format=arguments.format,
        max_shard_size=arguments.max_shard_size,
        command=vars(arguments),
    )
    print(
        f"{arguments.output_dir}: {model.num_parameters():,} parameters in {arguments.dtype}, "
        f"{len(ranks):,} tokens and {config.vocab_size:,} rows in the vocabulary, seed {arguments.seed}"
    )


def vocabulary(arguments: argparse.Namespace) -> dict[bytes, int]:
    """Token bytes to rank: trained, read, or the 256 single bytes."""
    from mmrole.qwen_vl.bpe import read_ranks
    from mmrole.qwen_vl.vocabulary import byte_vocabulary, train_vocabulary

    if arguments.train_vocab_on:
        texts = [_read_text(file) for file in arguments.train_vocab_on]
        return train_vocabulary(texts, arguments.vocab_size)
    if not arguments.vocab:
        return byte_vocabulary()
    ranks = read_ranks(arguments.vocab)
    lines = len(ranks) if arguments.vocab_lines is None else arguments.vocab_lines
    if lines > len(ranks):
        raise ValueError(f"--vocab_lines {lines:,}: {arguments.vocab} has only {len(ranks):,} lines")
    return {token: rank for token, rank in ranks.items() if rank < lines}


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    return number


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _fail(message: str) -> int:
    print(f"make_tiny_checkpoint.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
