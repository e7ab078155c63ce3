"""The result of a run: a complete checkpoint in the layout that its family has, or an adapter.

It is written aside and then moved.
"""

from __future__ import annotations

import json
from filecmp import cmp
from functools import partial
from pathlib import Path

from mmrole.base.errors import UserError, listed
from mmrole.models.checkpoints import PROCESSOR_FILES, VOCABULARY
from mmrole.training import run_checkpoints
from mmrole.training.disk_faults import disk_fault, is_of_the_disk
from mmrole.training.run_checkpoints import MANIFEST, UNFINISHED, read_manifest
from mmrole.training.run_fingerprint import RunFingerprint, difference
from mmrole.training.trainer import TreeTrainer

_ASIDE = ".output"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*_model*.bin", "pytorch_model.bin.index.json")
_BESIDE = (
    *("config.json", "generation_config.json", "adapter_config.json", "trainer_state.json", MANIFEST),
    *(VOCABULARY, *PROCESSOR_FILES),
)
_ADAPTER_DESCRIPTION = "README.md"  # peft's empty form, where people write what they have trained


def is_finished(output_dir: Path, run: RunFingerprint, total_steps: int) -> bool:
    """Whether the result of the run is there and whole."""
    if run_checkpoints.fault(output_dir) is not None:
        return False
    manifest = read_manifest(output_dir / MANIFEST)
    if manifest is None or manifest.run.get("steps") != total_steps:
        return False
    return difference(manifest.run, run) is None


def finish_move(output_dir: Path, run: RunFingerprint) -> None:
    """Moves a result of this run into the output directory that was whole when a kill came, in the first process.

    Raises:
        UserError: somebody else's files are in its place.
    """
    aside = output_dir / _ASIDE
    manifest = read_manifest(aside / MANIFEST)
    if manifest is None or manifest.files is None or difference(manifest.run, run) is not None:
        return
    for name, size in manifest.files.items():
        if not any(_has_size(folder / name, size) for folder in (aside, output_dir)):
            return
    _refuse(output_dir, run, {file.name for file in aside.iterdir() if file.name not in (MANIFEST, UNFINISHED)})
    _move(aside, output_dir)


def check_output_dir(output_dir: Path, run: RunFingerprint, resumed: Path | None) -> None:
    """Refuses to write over what is not the result of an earlier start of this run, from which it goes on.

    Args:
        output_dir: of the run.
        run: what it is made of.
        resumed: the checkpoint that it goes on from.

    Raises:
        UserError: a model, an adapter, or a part of one is there, or a file of the result that was changed since.
    """
    if (output_dir / MANIFEST).is_file():
        run_checkpoints.check_run(output_dir, run)
    run_checkpoints.check_claim(output_dir / _ASIDE, run)
    goes_on = resumed is not None and resumed.resolve().parent == output_dir.resolve()
    _refuse(output_dir, run, _result_files(output_dir), even_own=not goes_on)


def write_result(trainer: TreeTrainer, total_steps: int) -> None:
    """Writes the trained model, the tokenizer and the log to the output directory; called in every process.

    All files are written aside and moved at the end, the manifest last: a crash leaves what was there, or what the same
    command completes, from the last checkpoint-N or by moving the rest.

    Raises:
        UserError: it cannot be written.
    """
    output_dir = Path(trainer.args.output_dir)
    aside = output_dir / _ASIDE
    if trainer.args.should_save:
        _refuse(output_dir, trainer.run, _result_files(output_dir))
    try:
        if trainer.args.should_save:
            run_checkpoints.claim(aside, trainer.run)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(aside))
        if trainer.args.should_save:
            # A pickle, which would run code when loaded; the log and the manifest say how the model was trained.
            (aside / "training_args.bin").unlink(missing_ok=True)
            (aside / _ADAPTER_DESCRIPTION).unlink(missing_ok=True)
            trainer.family.save(aside)
            trainer.state.save_to_json(str(aside / "trainer_state.json"))
            run_checkpoints.seal(aside, trainer.run | {"steps": total_steps})
            _move(aside, output_dir)
    except Exception as error:
        if not is_of_the_disk(error, aside):
            raise
        if not (aside / MANIFEST).is_file() and run_checkpoints.is_own(aside, trainer.run):
            run_checkpoints.remove(aside)
        raise UserError(
            f"cannot write the trained model to {output_dir}: {disk_fault(error)}; make room, or make it "
            "writable, and run the same command again: it goes on from the last checkpoint"
        ) from error
    trainer.accelerator.wait_for_everyone()


def _result_files(output_dir: Path) -> set[str]:
    """The names of the files in the output directory that a result could write over, or be mixed with."""
    return {file.name for pattern in (*_WEIGHTS, *_BESIDE) for file in output_dir.glob(pattern)}


def _refuse(output_dir: Path, run: RunFingerprint, names: set[str], even_own: bool = False) -> None:
    """Refuses files in the output directory, but for those that a start of the run has written, unchanged."""
    found = {name for name in names if (output_dir / name).exists()}
    if not even_own:
        listed_files = _own_files(output_dir)
        found -= {name for name in found if name == MANIFEST or _is_written(output_dir, name, listed_files)}
        found -= {name for name in found if _is_of_checkpoint(output_dir, name, run)}
    if found:
        raise UserError(
            f"{output_dir} holds {listed(sorted(found), 3)}, which this run would write over; "
            "give another --output_dir, or move it away"
        )


def _is_of_checkpoint(output_dir: Path, name: str, run: RunFingerprint) -> bool:
    """Whether a checkpoint of the run has the same file: what is left of a result whose manifest was deleted."""
    for checkpoint in run_checkpoints.find_all(output_dir):
        if run_checkpoints.is_own(checkpoint, run) and (checkpoint / name).is_file():
            same = _is_same_log if name == "trainer_state.json" else partial(cmp, shallow=False)
            if same(output_dir / name, checkpoint / name):
                return True
    return False


def _is_same_log(file: Path, other: Path) -> bool:
    """Whether two logs tell of one run: the same loss wherever both have one, and at least one in common."""
    try:
        losses, others = _losses(file), _losses(other)
    except (OSError, ValueError, LookupError, TypeError):  # it is not a log
        return False
    common = losses.keys() & others.keys()
    return bool(common) and all(losses[step] == others[step] for step in common)


def _losses(log: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in json.loads(log.read_bytes())["log_history"] if "loss" in entry}


def _own_files(output_dir: Path) -> list[dict[str, int]]:
    """Which files in the output directory a start of a run has written, with their sizes, by each of its manifests.

    Where it was killed while it moved its result, that of the result lies aside, and beside it that of the result in
    whose place it comes.
    """
    files = (output_dir / MANIFEST, output_dir / _ASIDE / MANIFEST, output_dir / _ASIDE / UNFINISHED)
    manifests = [manifest for manifest in map(read_manifest, files) if manifest is not None]
    return [manifest.files for manifest in manifests if manifest.files is not None]


def _is_written(output_dir: Path, name: str, listed_files: list[dict[str, int]]) -> bool:
    return any(_has_size(output_dir / name, files.get(name)) for files in listed_files)


def _has_size(file: Path, size: int | None) -> bool:
    return file.is_file() and file.stat().st_size == size


def _move(aside: Path, output_dir: Path) -> None:
    if (output_dir / MANIFEST).is_file():
        # What it lists is replaced now; until that is done, it tells that from somebody else's.
        (output_dir / MANIFEST).replace(aside / UNFINISHED)
    manifest = read_manifest(aside / MANIFEST)
    if manifest is not None and manifest.files is not None:
        for files in _own_files(output_dir):
            for name in files.keys() - manifest.files.keys():
                if _has_size(output_dir / name, files[name]):
                    (output_dir / name).unlink()
    ready = [file for file in aside.iterdir() if file.name != UNFINISHED]
    for file in sorted(ready, key=lambda file: file.name == MANIFEST):
        file.replace(output_dir / file.name)
    (aside / UNFINISHED).unlink(missing_ok=True)
    aside.rmdir()
