"""The headers of a checkpoint's weight files, compared with what its configuration makes of the model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from safetensors import safe_open

from mmrole.base.errors import UserError
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import transformers_quiet
from mmrole.qwen_vl import CheckpointError
from mmrole.qwen_vl.checkpoint_files import read_shapes

_QUANTIZED = ("I8", "U8", "F8_", "F6_", "F4")
"""Beginnings of the names of such types in safetensors."""


def check_number_of_weights(directory: Path, family: Vlm) -> None:
    """Checks that the files are whole, and hold as many numbers as the model has.

    transformers renames and joins the weights of older checkpoints as it loads them, so names are not compared here;
    what is missing then is found by `Vlm.load_module`.

    Raises:
        UserError: a file is missing or damaged, there are too few weights, or weights in 8 bits or fewer.
    """
    try:
        found = read_shapes(directory)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    _check_not_quantized(directory)
    try:
        with transformers_quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = family.empty_module()
    except Exception as error:  # sizes of config.json that no model has, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{directory / 'config.json'}: transformers makes no model of it ({reason})") from None
    wanted = sum(parameter.numel() for parameter in module.parameters())  # tied ones once
    held = sum(map(math.prod, found.values()))
    if held < wanted:
        raise UserError(
            f"{directory}: its weight files hold {held:,} numbers, the model of config.json has {wanted:,}; download "
            "or copy the checkpoint again"
        )


def _check_not_quantized(directory: Path) -> None:
    """Raises UserError for weights in 8 bits or fewer, of which transformers would take the numbers as they are."""
    for file in sorted(directory.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                dtype = tensors.get_slice(name).get_dtype()
                if dtype.startswith(_QUANTIZED):
                    raise UserError(
                        f"{file}: {name} is stored as {dtype}: quantized checkpoints are not supported; give the model "
                        "that was quantized"
                    )
