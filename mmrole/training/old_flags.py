"""Flags of transformers 4, which published commands carry, as transformers 5 has them."""

from __future__ import annotations

from collections.abc import Container

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # transformers 5 reads a number below 1 as a share of all steps
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Flags of transformers 4 by the name that they have in transformers 5; those that it still knows are left alone."""

GONE = {
    "overwrite_output_dir": "a run goes on where it was; to start anew, give another --output_dir",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR for another folder than the one below --output_dir",
    "save_safetensors": "weights are always saved as safetensors",
    "group_by_length": "batches are always balanced by tokens",
}
"""Flags of transformers 4 that are ignored, and why."""


def translate(argv: list[str], known: Container[str]) -> tuple[list[str], list[str]]:
    """Flags of transformers 4 as the installed transformers has them.

    Args:
        argv: the command line.
        known: the flags of the installed transformers.

    Returns:
        The command line to parse, and a line about each flag that was renamed or left out.
    """
    translated, notes, skipping = [], [], False
    for argument in argv:
        is_flag = argument.startswith("--")
        if skipping and not is_flag:
            continue
        skipping = False
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if is_flag and name in GONE and name not in known:
            notes.append(f"note: --{name} is ignored: {GONE[name]}")
            skipping = True
        elif is_flag and RENAMED.get(name, "") in known:
            if name not in known or name.startswith("gradient_checkpointing"):
                argument = f"--{RENAMED[name]}{equals}{value}"
            if name not in known:
                notes.append(f"note: --{name} is called --{RENAMED[name]} in transformers 5")
            translated.append(argument)
        else:
            translated.append(argument)
    return translated, notes
