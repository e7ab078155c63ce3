"""Checks a checkpoint directory: complete and sound, by the headers of its files, before any weight is read."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from mmrole.base.errors import shown
from mmrole.qwen_vl.configuration import QWenConfig
from mmrole.qwen_vl.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

# In the order in which transformers looks for them: one file, or an index of shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_AGAIN = "download or copy the checkpoint again."
_OTHER_FORMS = ("gguf_file", "variant", "quantization_config", "key_mapping")
_LAYERS = re.compile(r"(^|\.)(h\.\d+|visual)\.")
_LEFTOVERS = re.compile(r"\.(masked_bias|bias|inv_freq)$")
LFS_POINTER = b"version https://git-lfs"

Shape = tuple[int, ...]


def read_config(directory: str | os.PathLike[str]) -> QWenConfig:
    """The configuration of a Qwen-VL checkpoint.

    Raises:
        CheckpointError: if there is no such directory or `config.json`, if that is broken, or not that of a Qwen-VL.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a Qwen-VL checkpoint.")
    fields = _read_json(directory / "config.json")
    model_type = fields.get("model_type")
    if model_type != QWenConfig.model_type:
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type is {shown(model_type)}, not 'qwen'; "
            "give a Qwen-VL checkpoint such as Qwen-VL-Chat or MMRole-Agent."
        )
    return QWenConfig.from_dict(fields, name_or_path=str(directory))


def check_weight_files(
    model_class: type[PreTrainedModel],
    name_or_path: str | os.PathLike[str],
    config: QWenConfig | None = None,
    subfolder: str = "",
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> None:
    """Compares the headers of a directory's weight files with what `model_class` needs.

    Names that are no directories (a model on the hub), LoRA adapters, and weights that are to be loaded in a form of
    their own (GGUF, another variant, quantized while they load, renamed) are left to transformers.

    Raises:
        CheckpointError: one line that names the file and what is wrong with it: missing, truncated or corrupt shard,
            missing weights, shapes that contradict the configuration, settings that generate() would not take.
    """
    directory = Path(name_or_path) / subfolder
    if not directory.is_dir():
        if _can_only_be_local(str(name_or_path)):
            raise CheckpointError(f"{directory}: no such directory; give a Qwen-VL checkpoint.")
        return
    adapter_only = (directory / "adapter_config.json").is_file() and not (directory / "config.json").exists()
    if adapter_only or any(kwargs.get(key) for key in _OTHER_FORMS):
        return
    if not isinstance(config, QWenConfig):
        config = read_config(directory)
    if kwargs.get("generation_config") is None:
        _check_generation_config(directory)
    found = read_shapes(directory, kwargs.get("use_safetensors"))
    try:
        expected = expected_shapes(model_class, config)
    except (RuntimeError, ValueError, OverflowError) as error:  # sizes whose product is no number of bytes
        raise CheckpointError(f"{directory / 'config.json'}: no model has these sizes ({_words(error)}).") from None
    prefix = model_class.base_model_prefix + "."
    if not any(name in found for name in expected) and any(prefix + name in found for name in expected):
        expected = {prefix + name: shape for name, shape in expected.items()}  # the base model out of a whole one
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(f"{directory}: {_count(missing, 'weight')} missing, first {missing[0]!r}; {_AGAIN}")
    # The base model may be read out of a whole one; but blocks or parts of the tower that are left over mean that
    # config.json belongs to a smaller model.
    surplus = sorted(
        name for name in set(found) - set(expected) if _LAYERS.search(name) and not _LEFTOVERS.search(name)
    )
    if surplus:
        raise CheckpointError(
            f"{directory}: config.json has no place for {_count(surplus, 'weight')}, first {surplus[0]!r}; "
            "copy the config.json that belongs to these weights."
        )
    different = sorted(name for name, shape in expected.items() if found[name] != shape)
    if different and not ignore_mismatched_sizes:
        name = different[0]
        raise CheckpointError(
            f"{directory}: {_count(different, 'shape')} contradict config.json, first {name!r}: "
            f"{list(found[name])} in the file, {list(expected[name])} by the configuration."
        )


def check_loaded(name_or_path: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Raises CheckpointError if weights were missing after all: transformers fills them with random values."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{name_or_path}: {_count(missing, 'weight')} missing, first {missing[0]!r}; {_AGAIN}")


def expected_shapes(model_class: type[PreTrainedModel], config: QWenConfig) -> dict[str, Shape]:
    """Names and shapes of the weights of a model with this configuration."""
    with torch.device("meta"):
        model = model_class(config)
    tied = (model._tied_weights_keys or {}) if config.tie_word_embeddings else {}  # not in the files
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def read_shapes(directory: Path, use_safetensors: bool | None = None) -> dict[str, Shape]:
    """Names and shapes of all weights in a directory, from the headers of its files.

    Raises:
        CheckpointError: if a file is missing, truncated or corrupt.
    """
    kinds = {None: ("bin", "safetensors"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    candidates = [name for name in WEIGHT_FILES if any(kind in name for kind in kinds)]
    file = next((directory / name for name in candidates if (directory / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{directory}: no weights ({', '.join(candidates)}); {_AGAIN}")
    if file.suffix != ".json":
        return shapes_in_file(file)
    weight_map = _read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{file}: has no `weight_map` from weights to files; {_AGAIN}")
    shapes: dict[str, Shape] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{file}: names the shard {shard!r}, which is not a file beside it; {_AGAIN}")
        if not (directory / shard).is_file():
            raise CheckpointError(f"{directory / shard}: missing shard, named in {file.name}; {_AGAIN}")
        shapes |= shapes_in_file(directory / shard)
    absent = sorted(set(weight_map) - set(shapes))
    if absent:
        raise CheckpointError(
            f"{directory / weight_map[absent[0]]}: lacks {_count(absent, 'weight')} that {file.name} promises, "
            f"first {absent[0]!r}; {_AGAIN}"
        )
    return shapes


def shapes_in_file(file: Path) -> dict[str, Shape]:
    """Names and shapes of the weights in one file, from its header.

    Raises:
        CheckpointError: if the file is truncated, corrupt, or would run code.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        # Tensors on the meta device: the shapes come from the pickle, the data stays on disk. Files from before
        # PyTorch 1.6 are no archives and cannot be mapped.
        tensors = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        return {name: tuple(tensor.shape) for name, tensor in _tensors(tensors)}
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{file}: {_reason(file, error)}") from None


def _check_generation_config(directory: Path) -> None:
    # transformers reads it when the weights are loaded already, and fails in its own words.
    file = directory / "generation_config.json"
    if file.exists():
        fields = _read_json(file)
        try:
            GenerationConfig.from_dict(fields)
        except Exception as error:  # of what kind differs from setting to setting
            raise CheckpointError(f"{file}: holds a value that cannot be used ({_words(error)}).") from None


def _can_only_be_local(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or os.path.isfile(name)


def _reason(file: Path, error: Exception) -> str:
    with file.open("rb") as start:
        if start.read(len(LFS_POINTER)) == LFS_POINTER:
            return "is a pointer of Git LFS, not the file itself; run `git lfs pull`."
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and named:
        return f"refused, for it would run {named[1]}; weights are tensors and nothing else."
    return f"truncated or corrupt ({_words(error)}); {_AGAIN}"


def _tensors(loaded: object) -> Iterable[tuple[str, torch.Tensor]]:
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError("not a dictionary of tensors")
    return loaded.items()


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; give a complete checkpoint directory.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({_words(error)}); {_AGAIN}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: not a JSON object; {_AGAIN}")
    return fields


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _count(names: list[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'}"
