"""A checkpoint directory before it is loaded: found, identified, its generation settings read; all without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import UserError, reason
from data_utils.files import read_json
from mmrole.generation.requests import GenerationSettings

PUBLISHED = {"MMRole-Agent": "agent", "MMRole-Eval_RM": "rm", "Qwen-VL-Chat": "base"}
"""Directory names of the published checkpoints, and what `scripts/download.sh` calls them."""

VOCABULARY = "qwen.tiktoken"
ADAPTER_CONFIG = "adapter_config.json"

# What generate() takes where a generation_config.json is silent; for the length, which would be 20, MMRole's.
_SILENT = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 512,
}

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model*.index.json", "pytorch_model*.index.json")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Up to this size a file is hashed whole, above it in evenly spaced blocks (19 GB in a second or two). Training changes
# weights everywhere, and the last block of a .bin file holds the checksums of all its tensors.
_HASHED_WHOLE = 64 << 20
_BLOCKS, _BLOCK_BYTES = 256, 1 << 14


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: the directory of its weights and, if it is a LoRA adapter on them, that of the adapter."""

    base: Path
    adapter: Path | None = None

    def __str__(self) -> str:
        return str(self.base) if self.adapter is None else f"{self.adapter} on {self.base}"

    def file(self, name: str) -> Path:
        """A file of the adapter if it has one of this name, else of the base."""
        if self.adapter is not None and (self.adapter / name).is_file():
            return self.adapter / name
        return self.base / name

    def identity(self) -> dict[str, str]:
        """Content hashes of what the model computes with: vocabulary, configuration, weights, adapter.

        Where the directory lies, what it is called, and when its files were written, does not matter.
        """
        weights = _files(self.base, _WEIGHTS)
        identity = {"model": _content_hash([self.file(VOCABULARY), self.base / "config.json", *weights])}
        if self.adapter is not None:
            adapter = [self.adapter / ADAPTER_CONFIG, *_files(self.adapter, _ADAPTER_WEIGHTS)]
            identity["adapter"] = _content_hash(adapter)
        return identity


def find_checkpoint(model_path: Path, use_lora: bool) -> Checkpoint:
    """The checkpoint at a path; looks at names only.

    Raises:
        UserError: there is none, it is not complete, or it is an adapter where a model was expected or the reverse.
    """
    if not model_path.is_dir():
        raise UserError(f"{model_path}: no such directory; {_how_to_get(model_path)}")
    is_adapter = (model_path / ADAPTER_CONFIG).is_file()
    if not use_lora:
        if is_adapter and not (model_path / "config.json").is_file():
            raise UserError(f"{model_path} is a LoRA adapter ({ADAPTER_CONFIG}); add --use_lora")
        _require_model(model_path)
        return Checkpoint(model_path)
    if not is_adapter:
        raise UserError(f"{model_path} has no {ADAPTER_CONFIG}: not a LoRA adapter; leave out --use_lora")
    config = read_json(model_path / ADAPTER_CONFIG, dict)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{model_path / ADAPTER_CONFIG}: peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if not _files(model_path, _ADAPTER_WEIGHTS):
        raise UserError(f"{model_path} has no weights (adapter_model.safetensors); copy the adapter again")
    base = Path(str(config.get("base_model_name_or_path")))
    if not base.is_dir():
        raise UserError(
            f"{model_path / ADAPTER_CONFIG}: its base_model_name_or_path, {base}, is no directory here; "
            f"{_how_to_get(base)}, and write that path there"
        )
    _require_model(base)
    return Checkpoint(base, model_path)


def generation_settings(
    checkpoint: Checkpoint, *, no_random: bool, seed: int, max_new_tokens: int | None
) -> GenerationSettings:
    """What the checkpoint's generation_config.json says, as `generate()` reads it, and what the flags change.

    Without the file the settings are those of MMRole's inference. Settings of the sampling that greedy decoding does
    not use are left at their defaults, so that equal settings are equal.

    Raises:
        UserError: a value in the file is of the wrong type or out of range.
    """
    settings = _read_settings(checkpoint, seed, max_new_tokens, {"do_sample": False} if no_random else {})
    if settings.do_sample:
        return settings
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        repetition_penalty=settings.repetition_penalty,
    )


def sampling_settings(checkpoint: Checkpoint, *, seed: int, max_new_tokens: int | None) -> GenerationSettings:
    """As `generation_settings`, but sampling in any case: with temperature, top-k and top-p of the file.

    Raises:
        UserError: as `generation_settings`.
    """
    return _read_settings(checkpoint, seed, max_new_tokens, {"do_sample": True})


def _read_settings(
    checkpoint: Checkpoint, seed: int, max_new_tokens: int | None, decided: dict[str, Any]
) -> GenerationSettings:
    file = checkpoint.file("generation_config.json")
    values: dict[str, Any] = {}
    if file.is_file():
        given = read_json(file, dict)
        values = {key: value if given.get(key) is None else given[key] for key, value in _SILENT.items()}
    if max_new_tokens is not None:
        values["max_new_tokens"] = max_new_tokens
    values |= decided
    for key, value in values.items():
        expected = type(_SILENT[key])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise UserError(f"{file}: {key} must be a {expected.__name__}, not {value!r}; correct the file")
    try:
        return GenerationSettings(**values, seed=seed)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _require_model(directory: Path) -> None:
    for name in ("config.json", VOCABULARY):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing; {_how_to_get(directory)}")
    if not _files(directory, _WEIGHTS):
        raise UserError(
            f"{directory} has no weights (model*.safetensors or pytorch_model*.bin); {_how_to_get(directory)}"
        )


def _how_to_get(directory: Path) -> str:
    if directory.name in PUBLISHED:
        return (
            f"bash scripts/download.sh {PUBLISHED[directory.name]} fetches it into model_weights/{directory.name}, "
            "or give another directory"
        )
    return "give the directory of a checkpoint (from the model hub: hf download NAME --local-dir DIRECTORY)"


def _files(directory: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in directory.glob(pattern))


def _content_hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(_digest(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}; make it readable") from None
    return digest.hexdigest()[:16]


def _digest(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(json.dumps([file.name, size]).encode())
    with open(file, "rb") as opened:
        if size <= _HASHED_WHOLE:
            digest.update(opened.read())
            return digest.digest()
        for block in range(_BLOCKS):
            opened.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(opened.read(_BLOCK_BYTES))
    return digest.digest()
