"""A merged adapter on disk: a checkpoint of transformers, and every other file of base and adapter beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mmrole.base.disk import set_usual_mode
from mmrole.base.output_folder import filling, refuse_existing
from mmrole.models.checkpoints import Checkpoint

_WEIGHTS = frozenset((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"))
# Of the weights that were added up, or of how those of the adapter were written.
_NOT_KEPT = ("adapter_config.json", "complete.json", "trainer_state.json", "generation_config.json", "config.json")


def write_merged(directory: Path, merged: PreTrainedModel, checkpoint: Checkpoint, command: Mapping[str, Any]) -> None:
    """Writes weights and config.json, and copies all other files, the adapter's where both have one of a name.

    All are written aside first and moved at the end, `config.json` last: where it exists, all of them do.

    Args:
        directory: of the merged checkpoint.
        merged: its model.
        checkpoint: the adapter and its base.
        command: the flags of the command, for `mmrole.base.output_folder`.

    Raises:
        UserError: a checkpoint lies there and is not to be replaced, or the directory cannot be written.
    """
    stale = [file.name for file in directory.glob("*.safetensors*")]
    with filling(directory, command, last="config.json", stale=stale) as folder:
        merged.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for file in kept_files(checkpoint):
            shutil.copyfile(file, folder / file.name)
        for file in folder.iterdir():
            set_usual_mode(file)


def refuse_existing_merge(directory: Path, command: Mapping[str, Any]) -> None:
    """Raises UserError if files of a checkpoint lie in the directory, unless the command may replace them."""
    names = [file.name for pattern in ("*.json", "*.safetensors", "*.bin") for file in directory.glob(pattern)]
    refuse_existing(directory, names, command)


def kept_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """What is copied: the base's files, then the adapter's."""
    for directory in filter(None, (checkpoint.base, checkpoint.adapter)):
        for file in sorted(directory.iterdir()):
            is_weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
            if file.is_file() and not is_weights and file.name not in _NOT_KEPT and file.name[0] != ".":
                yield file
    generation = checkpoint.file("generation_config.json")
    if generation.is_file():
        yield generation
