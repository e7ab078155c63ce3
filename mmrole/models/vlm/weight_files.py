"""The headers of a checkpoint's weight files, compared with what its configuration makes of the model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from mmrole.base.errors import UserError
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import transformers_quiet
from mmrole.qwen_vl import CheckpointError
from mmrole.qwen_vl.checkpoint_files import read_shapes


def check_number_of_weights(directory: Path, family: Vlm) -> None:
    """Checks that the files are whole, and hold as many numbers as the model has.

    transformers renames and joins the weights of older checkpoints as it loads them, so names are not compared here;
    what is missing then is found by `Vlm.load_module`.

    Raises:
        UserError: a file is missing or damaged, or there are too few weights.
    """
    try:
        found = read_shapes(directory)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    try:
        with transformers_quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = family.empty_module()
    except Exception as error:  # sizes of config.json that no model has, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{directory / 'config.json'}: no model has these sizes ({reason})") from None
    wanted = sum(parameter.numel() for parameter in module.parameters())  # tied ones once
    held = sum(map(math.prod, found.values()))
    if held < wanted:
        raise UserError(
            f"{directory}: its weight files hold {held:,} numbers, the model of config.json has {wanted:,}; download "
            "or copy the checkpoint again"
        )
