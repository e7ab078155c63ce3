"""The result of a run: a complete checkpoint in the original layout, or an adapter, written aside and then moved."""

from __future__ import annotations

import shutil
from pathlib import Path

from data_utils.errors import UserError, listed
from mmrole.training import checkpoints
from mmrole.training.checkpoints import MANIFEST, read_manifest
from mmrole.training.run_description import RunDescription, difference
from mmrole.training.trainer import TreeTrainer

_ASIDE = ".output"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*_model*.bin", "pytorch_model.bin.index.json")
_BESIDE = (
    *("config.json", "generation_config.json", "adapter_config.json", "trainer_state.json", MANIFEST),
    *("qwen.tiktoken", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
)
_DESCRIPTION = "README.md"  # comes with adapters alone


def is_finished(output_dir: Path, run: RunDescription, total_steps: int) -> bool:
    """Whether the result of the run is there and whole."""
    if checkpoints.fault(output_dir) is not None:
        return False
    manifest = read_manifest(output_dir / MANIFEST)
    if manifest is None or manifest.run.get("steps") != total_steps:
        return False
    return difference(manifest.run, run) is None


def check_output_dir(output_dir: Path, run: RunDescription, resumed: Path | None) -> None:
    """Refuses to write over what is not the result of an earlier start of this run, from which it goes on.

    Args:
        output_dir: of the run.
        run: what it is made of.
        resumed: the checkpoint that it goes on from.

    Raises:
        UserError: a model, an adapter, or a part of one is there.
    """
    if (output_dir / MANIFEST).is_file():
        checkpoints.check_run(output_dir, run)
    if resumed is not None and resumed.resolve().parent == output_dir.resolve():
        _refuse_weights(output_dir)
        return
    patterns = (*_WEIGHTS, *_BESIDE, _DESCRIPTION) if run["--use_lora"] else (*_WEIGHTS, *_BESIDE)
    _refuse(output_dir, {file.name for pattern in patterns for file in output_dir.glob(pattern)})


def write_output(trainer: TreeTrainer, total_steps: int) -> None:
    """Writes the trained model, the tokenizer and the log to the output directory; called in every process.

    All files are written aside and moved at the end, the manifest last: a crash leaves what was there, or what the same
    command completes from the last checkpoint-N.

    Raises:
        UserError: it cannot be written.
    """
    output_dir = Path(trainer.args.output_dir)
    aside = output_dir / _ASIDE
    if trainer.args.should_save:
        _refuse_weights(output_dir)
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


def _refuse_weights(output_dir: Path) -> None:
    """Refuses weights that no start of the run has written; what lies beside them is the run's, as its checkpoints."""
    weights = {file.name for pattern in _WEIGHTS for file in output_dir.glob(pattern)}
    _refuse(output_dir, weights - _own_names(output_dir))


def _refuse(output_dir: Path, names: set[str]) -> None:
    if names:
        raise UserError(
            f"{output_dir} holds {listed(sorted(names), 3)}, which this run would write over; give another --output_dir"
        )


def _own_names(output_dir: Path) -> set[str]:
    """The names in the output directory that an earlier start of a run has written: its manifest lists them.

    That lies aside where the run was killed while it moved its result.
    """
    manifests = [read_manifest(folder / MANIFEST) for folder in (output_dir, output_dir / _ASIDE)]
    return {name for manifest in manifests if manifest is not None for name in manifest.files or {}}


def _move(aside: Path, output_dir: Path) -> None:
    files = sorted(aside.iterdir(), key=lambda file: file.name == MANIFEST)
    for name in _own_names(output_dir) - {file.name for file in files}:
        (output_dir / name).unlink(missing_ok=True)  # while the manifest still says whose they are
    (output_dir / MANIFEST).unlink(missing_ok=True)
    for file in files:
        file.replace(output_dir / file.name)
    aside.rmdir()
