"""The result of a run: a complete checkpoint in the original layout, or an adapter, written aside and then moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_utils.errors import UserError
from data_utils.files import read_json
from mmrole.training import checkpoints
from mmrole.training.trainer import TreeTrainer

_ASIDE = ".output"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*_model*.bin", "pytorch_model.bin.index.json")


def is_finished(output_dir: Path, run: dict[str, Any], total_steps: int) -> bool:
    """Whether the result of the run is there and whole."""
    if checkpoints.fault(output_dir) is not None:
        return False
    return read_json(output_dir / checkpoints.MANIFEST, dict)["run"] == run | {"steps": total_steps}


def check_output_dir(output_dir: Path, run: dict[str, Any], resumed: Path | None) -> None:
    """Refuses to write over a checkpoint that is not what this run has written and goes on from.

    Args:
        output_dir: of the run.
        run: what it is made of.
        resumed: the checkpoint that it goes on from.

    Raises:
        UserError: a model or an adapter is there.
    """
    if not any(file for pattern in _WEIGHTS for file in output_dir.glob(pattern)):
        return
    if (output_dir / checkpoints.MANIFEST).is_file():
        steps = read_json(output_dir / checkpoints.MANIFEST, dict)["run"].get("steps")
        checkpoints.check_run(output_dir, run | {"steps": steps})
    elif (output_dir / _ASIDE).is_dir():
        return  # a run was killed while it moved its result
    if resumed is None:
        raise UserError(f"{output_dir} holds a checkpoint that this run would write over; give another --output_dir")


def write_output(trainer: TreeTrainer, total_steps: int) -> None:
    """Writes the trained model, the tokenizer and the log to the output directory; called in every process.

    All files are written aside and moved at the end, the manifest last: a crash leaves what was there, or what the same
    command completes from the last checkpoint-N.

    Raises:
        UserError: it cannot be written.
    """
    output_dir = Path(trainer.args.output_dir)
    aside = output_dir / _ASIDE
    try:
        trainer.save_model(str(aside))
        if trainer.args.should_save:
            # A pickle, which would run code when loaded; the log and the manifest say how the model was trained.
            (aside / "training_args.bin").unlink(missing_ok=True)
            trainer.tokenizer.save_pretrained(aside)
            trainer.state.save_to_json(str(aside / "trainer_state.json"))
            checkpoints.seal(aside, trainer.run | {"steps": total_steps})
            _move(aside, output_dir)
    except Exception as error:
        if not checkpoints.is_of_the_disk(error, aside):
            raise
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"cannot write the trained model to {output_dir}: {checkpoints.disk_fault(error)}; make room, or make it "
            "writable, and run the same command again: it goes on from the last checkpoint"
        ) from error
    trainer.accelerator.wait_for_everyone()


def _move(aside: Path, output_dir: Path) -> None:
    (output_dir / checkpoints.MANIFEST).unlink(missing_ok=True)
    for pattern in _WEIGHTS:
        for file in output_dir.glob(pattern):
            file.unlink()
    for file in sorted(aside.iterdir(), key=lambda file: file.name == checkpoints.MANIFEST):
        file.replace(output_dir / file.name)
    aside.rmdir()
