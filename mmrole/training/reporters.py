"""Reporters of a run (--report_to): checked before the model loads; what they raise later is a line as well."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from mmrole.base.errors import UserError, reason
from mmrole.training.values import in_a_line

# Packages behind names of --report_to that are told apart from others only by a traceback.
_REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet_ml": "comet_ml"}
_NAMING_RUNS = ("wandb", "mlflow", "comet_ml", "swanlab", "trackio")


def check_reporters(training: TrainingArguments) -> None:
    """Checks that what --report_to names is there.

    Raises:
        UserError: a name is not known, its package is missing, or a flag is about none of them.
    """
    for name in _names(training):
        package = _REPORTERS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"--report_to {name}: {package} is not installed; pip install {package}, or give none")
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except Exception as error:
            raise UserError(f"--report_to {name}: {in_a_line(error)}") from None
    for flag, reporters in {
        "run_name": _NAMING_RUNS,
        "trackio_space_id": ("trackio",),
        "trackio_bucket_id": ("trackio",),
        "trackio_static_space_id": ("trackio",),
    }.items():
        if getattr(training, flag, None) is not None and not set(reporters) & set(_names(training)):
            raise UserError(f"--{flag} has no effect; add --report_to {' or '.join(reporters)}, or leave it out")
    if training.project != "huggingface" and "trackio" not in _names(training):
        raise UserError("--project has no effect; add --report_to trackio, or leave it out")


def prepare_reporters(training: TrainingArguments) -> None:
    """Makes the folder of TensorBoard's log, and logs in to Weights & Biases, in the process that reports.

    Raises:
        UserError: the folder cannot be written, or there is no login.
    """
    if "tensorboard" in _names(training):
        _make_log_folder(training)
    if "wandb" in _names(training):
        # Checked above: whoever names it has installed it.
        import wandb  # pyright: ignore[reportMissingImports]

        with _in_a_line("wandb"):
            wandb.login()


def say_faults_in_a_line(callbacks: list[TrainerCallback], training: TrainingArguments) -> None:
    """Makes what a reporter among a trainer's callbacks raises, once the model is there, a UserError that names it."""
    for name in _names(training):
        kinds = tuple(get_reporting_integration_callbacks([name]))
        for callback in (callback for callback in callbacks if isinstance(callback, kinds)):
            for event in (event for event in dir(callback) if event.startswith("on_")):
                setattr(callback, event, _in_a_line(name)(getattr(callback, event)))


def _names(training: TrainingArguments) -> list[str]:
    """What --report_to names; transformers makes a list of it when it parses the flags."""
    given = training.report_to
    return given if isinstance(given, list) else []


def _make_log_folder(training: TrainingArguments) -> None:
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = Path(str(training.output_dir)) / "runs" if given is None else Path(given).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        remedy = "give --report_to none" if given is None else "set another TENSORBOARD_LOGGING_DIR"
        raise UserError(f"cannot write TensorBoard's log to {folder}: {reason(error)}; {remedy}") from None


@contextlib.contextmanager
def _in_a_line(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        words = in_a_line(error).rstrip(".")
        raise UserError(
            f"--report_to {name}: {words}; put that right and run the same command again, or give --report_to none"
        ) from error
