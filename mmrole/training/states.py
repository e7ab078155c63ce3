"""Saved states that libraries unpickle when a run goes on: tensors and figures of their own classes, never code.

DeepSpeed reads its files with `torch.load(weights_only=False)`, which runs what a pickle asks for. torch has a switch
that makes every `torch.load` of a process weights-only, whatever its caller says: so what is refused is what would be
loaded, also if a file is exchanged after it was looked through.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals as generators_states

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json

_WEIGHTS_ONLY, _NOT_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_PICKLES = (".pt", ".pth", ".bin")
_NEVER_LOADED = "training_args.bin"  # of earlier versions
_TAG = re.compile(r"global_step[0-9]+")
_AGAIN = "move this checkpoint away, and the same command goes on from the one before"


@contextmanager
def tensors_only(deepspeed: bool) -> Iterator[None]:
    """Lets `torch.load` make tensors, plain values, and the given libraries' records of figures; nothing else.

    Args:
        deepspeed: its states are among what is loaded.
    """
    before = {name: os.environ.pop(name, None) for name in (_WEIGHTS_ONLY, _NOT_WEIGHTS_ONLY)}
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(_figures(deepspeed)):
            yield
    finally:
        del os.environ[_WEIGHTS_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check(folder: Path, step: int) -> None:
    """Looks through all states of a complete checkpoint, without reading tensors; within `tensors_only`.

    Args:
        folder: the checkpoint.
        step: the number of steps behind it, by its name.

    Raises:
        UserError: a file is damaged, or would run something when loaded.
    """
    _check_progress(folder / "trainer_state.json", step)
    for file in sorted(folder.rglob("*")):
        if file.suffix in _PICKLES and file.name != _NEVER_LOADED and file.is_file():
            _check_pickle(file)
        elif file.suffix == ".safetensors":
            _check_tensors(file)
    tag = folder / "latest"
    if tag.is_file() and not _TAG.fullmatch(tag.read_text(encoding="utf-8", errors="replace").strip()):
        raise UserError(f"{tag} names no folder of this checkpoint; {_AGAIN}")


@contextmanager
def reading(folder: str | os.PathLike) -> Iterator[None]:
    """Turns what a library raises over states that do not fit into one line.

    Raises:
        UserError: the states are damaged, or of another model.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # states of the wrong shapes and types fail in any way
        raise UserError(f"cannot go on from {folder}: {_said(error)}; {_AGAIN}") from error


def _check_progress(file: Path, step: int) -> None:
    try:
        fields = read_json(file, dict)
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from None
    try:
        state = TrainerState(**fields)
        for name, usual in vars(TrainerState(train_batch_size=1, epoch=0.0)).items():
            if usual is not None and not _is_like(getattr(state, name), usual):
                raise TypeError(f"{name} is {shown(getattr(state, name))}")
        if not all(isinstance(entry, dict) for entry in state.log_history):
            raise TypeError("log_history is no list of objects")
        if state.global_step != step:
            raise ValueError(f"global_step is {state.global_step}, not {step}")
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {_said(error)}; {_AGAIN}") from None


def _is_like(value: object, usual: object) -> bool:
    kinds = (int, float) if isinstance(usual, int | float) else type(usual)
    return isinstance(value, kinds)


def _check_pickle(file: Path) -> None:
    try:
        # On the meta device tensors are shapes alone. What is no archive (torch's form before 1.6) cannot be mapped.
        with generators_states():
            torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle may fail in any way
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise UserError(f"{file} is refused: it would run {named[1]} when loaded; {_AGAIN}") from None
        raise UserError(f"{file} is damaged, or holds more than tensors and figures; {_AGAIN}") from None


def _check_tensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {_said(error)}; {_AGAIN}") from None


def _figures(deepspeed: bool) -> list[Callable | tuple[Callable, str]]:
    """Classes without behaviour of their own in which DeepSpeed keeps figures."""
    if not deepspeed:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
