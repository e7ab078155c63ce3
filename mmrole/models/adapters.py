"""A LoRA adapter before it is loaded: its configuration key by key, its weights against the model that it is for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""In the order in which peft looks for them."""

MatrixShape = tuple[int, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 < abs(value) < 2**31


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_modules(value: Any) -> bool:
    return isinstance(value, str) or _is_texts(value)


def _is_layers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(item) is int for item in value))


def _is_switch(value: Any) -> bool:
    return type(value) is bool


def _by_module(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


OBEYED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_count, "a positive whole number"),
    "lora_alpha": (_is_factor, "a number other than 0"),
    "rank_pattern": (_by_module(_is_count), "positive whole numbers by module"),
    "alpha_pattern": (_by_module(_is_factor), "numbers other than 0 by module"),
    "target_modules": (_is_modules, "a list of names, or a pattern"),
    "exclude_modules": (_is_modules, "a list of names, or a pattern"),
    "layers_to_transform": (_is_layers, "a list of layer numbers"),
    "layers_pattern": (_is_modules, "a list of names, or a pattern"),
    "modules_to_save": (_is_texts, "a list of names"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "use_rslora": (_is_switch, "true or false"),
    "use_dora": (_is_switch, "true or false"),
}
"""Keys of adapter_config.json that are followed: what holds for their values, and that in words."""

WITHOUT_EFFECT = frozenset(
    {
        *("peft_type", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"),
        "auto_mapping",  # names of classes; none is imported
        "lora_dropout",  # of training
        "fan_in_fan_out",  # peft itself sets it by the kind of the layer
        "megatron_core",  # the name of a module to import, beside a megatron_config, which is refused
        "qalora_group_size",  # beside use_qalora, which is refused
    }
)
"""Keys that change nothing about a trained adapter, or are read elsewhere; those of no other key may say anything."""

# Those that start from other base weights than the base's have changed them as they were loaded.
_INITIAL_VALUES = (None, True, False, "gaussian", "eva", "orthogonal")


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """The settings of an adapter that are followed.

    Raises:
        UserError: the file cannot be read, is not that of a LoRA adapter, or asks for what is not done here.
    """
    file = adapter / ADAPTER_CONFIG
    fields = read_json(file, dict)
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {shown(fields.get('peft_type'))}, not 'LORA'")
    if fields.get("init_lora_weights") not in _INITIAL_VALUES:
        _refuse(file, "init_lora_weights", fields["init_lora_weights"])
    settings = {}
    for key, value in fields.items():
        if value is None or key in WITHOUT_EFFECT or key == "init_lora_weights":
            continue
        if key not in OBEYED:
            if value not in (False, 0, "", [], {}):
                _refuse(file, key, value)
            continue
        holds, wanted = OBEYED[key]
        if not holds(value):
            raise UserError(f"{file}: {shown(key)} must be {wanted}, not {shown(value)}; copy the adapter again")
        settings[key] = value
    return settings


def check_adapter(adapter: Path, base: Path, empty_base: Callable[[], PreTrainedModel]) -> None:
    """Compares the headers of an adapter's weights with what its configuration makes of the base model.

    Args:
        adapter: its directory.
        base: the directory of the model that it is for.
        empty_base: makes that model, without weights.

    Raises:
        UserError: weights are missing, left over or of another shape, or the file is damaged.
    """
    from mmrole.qwen_vl import CheckpointError
    from mmrole.qwen_vl.checkpoint_files import shapes_in_file

    file = weights_file(adapter)
    try:
        found = shapes_in_file(file)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    expected = _expected_shapes(adapter, base, empty_base)
    does_not_fit = f"{file}: this adapter does not fit {base}"
    for names, fault in (
        (expected.keys() - found.keys(), "missing"),
        (found.keys() - expected.keys(), f"left over by {ADAPTER_CONFIG}"),
    ):
        if names:
            raise UserError(f"{does_not_fit}: {len(names):,} weights are {fault}, first {min(names)!r}; {_remedy()}")
    for name, shape in sorted(expected.items()):
        if found[name] != shape:
            raise UserError(
                f"{does_not_fit}: {name!r} has the shape {list(found[name])} in the file, and {list(shape)} by "
                f"{ADAPTER_CONFIG} and the base's config.json; {_remedy()}"
            )


def weights_file(adapter: Path) -> Path:
    """The file with an adapter's weights; raises UserError if there is none."""
    for name in ADAPTER_WEIGHTS:
        if (adapter / name).is_file():
            return adapter / name
    raise UserError(f"{adapter} has no weights ({ADAPTER_WEIGHTS[0]}); copy the adapter again")


def lora_config(adapter: Path) -> LoraConfig:
    """The configuration as peft takes it, with nothing in it but what is followed."""
    from peft import LoraConfig

    return LoraConfig(**read_adapter_config(adapter))


def _expected_shapes(adapter: Path, base: Path, empty_base: Callable[[], PreTrainedModel]) -> Mapping[str, MatrixShape]:
    """Names and shapes of the adapter's weights, from a model without data."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel(empty_base(), lora_config(adapter))
            weights: Iterable[tuple[str, torch.Tensor]] = get_peft_model_state_dict(adapted).items()
    except UserError:
        raise
    except Exception as error:  # peft's own checks are of many kinds; patterns may be none
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{adapter / ADAPTER_CONFIG}: this adapter does not fit {base}: {text}") from None
    return {name: tuple(weight.shape) for name, weight in weights}


def _refuse(file: Path, key: str, value: Any) -> None:
    raise UserError(
        f"{file}: {shown(key)} {shown(value)} is not supported; merge the adapter with the peft that trained it, "
        "and give the merged model"
    )


def _remedy() -> str:
    return "give the base that it was trained on, and the files that were saved together"
