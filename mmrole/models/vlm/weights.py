"""The weights of a checkpoint into the model of transformers that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.integrations import deepspeed

from mmrole.base.errors import UserError, listed
from mmrole.models.vlm.processor import transformers_quiet

# transformers finds out by the shapes of parameters whether it must transpose experts; ZeRO-3 has taken these apart.
_EXPERTS = "with ZeRO-3 experts are read as Qwen3-VL MoE was published, not as transformers saves them; use ZeRO-2"


@contextmanager
def undivided() -> Iterator[None]:
    """Models are made whole here, by the processes that want them, also where ZeRO-3 would divide them among all."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def load_pretrained(directory: str | Path, **options: Any) -> PreTrainedModel:
    """The model of a directory with its weights, its attention SDPA's. What files hold besides is passed over.

    Args:
        directory: of a checkpoint.
        options: those of transformers' `from_pretrained`.

    Raises:
        UserError: a file is damaged, or weights are missing, which transformers would draw at random, or have other
            shapes.
    """
    copy_again = "download or copy the checkpoint again"
    try:
        with transformers_quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                directory,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(f"{error}".split())[:200]
        divided = ".experts." in reason and deepspeed.is_deepspeed_zero3_enabled()
        remedy = _EXPERTS if divided else copy_again
        raise UserError(f"{directory}: its weights cannot be loaded ({reason}); {remedy}") from None
    module, found = loaded
    others = sorted(name for name, *_ in found["mismatched_keys"])
    if others:
        raise UserError(
            f"{directory}: config.json has other shapes than the weights for {listed(others, 3)}; {copy_again}"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{directory}: it has no weights for {listed(missing, 3)}; {copy_again}")
    # When transformers saves, it undoes what it has done to names. With ZeRO-3 it remembers all that it can do.
    if hasattr(module, "_weight_conversions"):
        module._weight_conversions = [change for change in module._weight_conversions if change.was_used()]
    return module
