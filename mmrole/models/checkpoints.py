"""A checkpoint directory before it is loaded: found and identified, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmrole.base.errors import UserError
from mmrole.base.file_hashes import hash_files
from mmrole.base.files import read_json
from mmrole.data.images import OTHER_PIXELS, PIXELS
from mmrole.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config, weights_file

PUBLISHED = {"MMRole-Agent": "agent", "MMRole-Eval_RM": "rm", "Qwen-VL-Chat": "base"}
"""Directory names of the published checkpoints, and what `scripts/download.sh` calls them."""

VOCABULARY = "qwen.tiktoken"
"""Of Qwen-VL."""
QWEN_VL = "qwen"
"""`model_type` of Qwen-VL's config.json; other types are those of transformers' models."""
TOKENIZER = "tokenizer.json"
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
"""One of them describes the image processor of a transformers' model."""
PROCESSOR_FILES = (
    *(TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *(*IMAGE_PROCESSOR, "video_preprocessor_config.json"),
)
"""Of transformers' models: tokenizer, chat template, image processor. What is there belongs to the model."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model*.index.json", "pytorch_model*.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: the directory of its weights and, if it is a LoRA adapter on them, that of the adapter."""

    base: Path
    adapter: Path | None = None

    def __str__(self) -> str:
        return str(self.base) if self.adapter is None else f"{self.adapter} on {self.base}"

    @property
    def is_qwen_vl(self) -> bool:
        """Whether it is a Qwen-VL, in the original layout; otherwise it is a model of transformers."""
        return is_qwen_vl(self.base)

    @property
    def pixels(self) -> str:
        """What makes the pixels of its images, for fingerprints."""
        return PIXELS if self.is_qwen_vl else OTHER_PIXELS

    @property
    def processor_directory(self) -> Path:
        """Of a transformers' model: where tokenizer, chat template and image processor are, the adapter's if it has
        them."""
        adapter = self.adapter
        if adapter is None or not (adapter / TOKENIZER).is_file():
            return self.base
        return adapter if any((adapter / name).is_file() for name in IMAGE_PROCESSOR) else self.base

    @property
    def processor_files(self) -> list[Path]:
        """The files of tokenizer, chat template and image processor."""
        if self.is_qwen_vl:
            return [self.file(VOCABULARY)]
        return processor_files(self.processor_directory)

    def file(self, name: str) -> Path:
        """A file of the adapter if it has one of this name, else of the base."""
        if self.adapter is not None and (self.adapter / name).is_file():
            return self.adapter / name
        return self.base / name

    def identity(self) -> dict[str, str]:
        """Content hashes of what the model computes with: vocabulary, configuration, weights, adapter; every byte.

        Where the directory lies, what it is called, and when its files were written, does not matter.

        Raises:
            UserError: a file cannot be read.
        """
        weights = _weight_files(self.base)
        identity = {"model": hash_files([*self.processor_files, self.base / "config.json", *weights])}
        if self.adapter is not None:
            adapter = [self.adapter / ADAPTER_CONFIG, *_files(self.adapter, ADAPTER_WEIGHTS)]
            identity["adapter"] = hash_files(adapter)
        return identity

    def check_unchanged(self, identity: Mapping[str, object]) -> None:
        """Raises UserError if the files are others than those with this identity, now that they have been loaded."""
        for part, now in self.identity().items():
            if identity.get(part) != now:
                raise UserError(
                    f"the files of the {part} of {self} have been replaced since this command has begun; "
                    "what is finished is kept: put them back, or start anew with another output"
                )


def find_checkpoint(model_path: Path, use_lora: bool) -> Checkpoint:
    """The checkpoint at a path; looks at names, and at an adapter's configuration.

    Without `use_lora` a directory with a model of its own is that model, whatever adapter files lie beside it.

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
    read_adapter_config(model_path)
    weights_file(model_path)
    base = Path(str(read_json(model_path / ADAPTER_CONFIG, dict).get("base_model_name_or_path")))
    if not os.path.isdir(base):
        raise UserError(
            f"{model_path / ADAPTER_CONFIG}: its base_model_name_or_path, {base}, is no directory here; "
            f"{_how_to_get(base)}, and write that path there"
        )
    _require_model(base)
    if base.samefile(model_path):
        raise UserError(
            f"{model_path} names itself as the base of the adapter in it, which may be merged into its weights "
            "already; leave out --use_lora for the model, or move the adapter into a directory of its own"
        )
    return Checkpoint(base, model_path)


def processor_files(directory: Path) -> list[Path]:
    """Of a transformers' model: the files of tokenizer, chat template and image processor that are there."""
    return [file for name in PROCESSOR_FILES if (file := directory / name).is_file()]


def is_qwen_vl(directory: Path) -> bool:
    """Whether the model in a directory is a Qwen-VL, by its vocabulary, or by its config.json.

    Raises:
        UserError: the latter is damaged.
    """
    if (directory / VOCABULARY).is_file():
        return True
    return read_json(directory / "config.json", dict).get("model_type", QWEN_VL) == QWEN_VL


def _require_model(directory: Path) -> None:
    if _files(directory, ("*.gguf",)) and not _files(directory, _WEIGHTS):
        raise UserError(
            f"{directory} holds a model for llama.cpp (*.gguf): let its server load it, and give --api_base; or "
            f"{_how_to_get(directory)}"
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory / 'config.json'} is missing; {_how_to_get(directory)}")
    vocabulary = VOCABULARY if is_qwen_vl(directory) else TOKENIZER
    if vocabulary == VOCABULARY and (directory / TOKENIZER).is_file() and not (directory / VOCABULARY).is_file():
        raise UserError(
            f"{directory / 'config.json'} must have the model_type of a model of transformers; {_how_to_get(directory)}"
        )
    if not (directory / vocabulary).is_file():
        raise UserError(f"{directory / vocabulary} is missing; {_how_to_get(directory)}")
    if vocabulary == TOKENIZER and not any((directory / name).is_file() for name in IMAGE_PROCESSOR):
        raise UserError(
            f"{directory} has no image processor ({IMAGE_PROCESSOR[0]}): no model that sees; {_how_to_get(directory)}"
        )
    if not _files(directory, _WEIGHTS):
        raise UserError(
            f"{directory} has no weights (model*.safetensors or pytorch_model*.bin); {_how_to_get(directory)}"
        )


def _weight_files(directory: Path) -> list[Path]:
    """The files of weights, those too that only an index names."""
    files = set(_files(directory, _WEIGHTS))
    for index in _files(directory, ("*.index.json",)):
        with suppress(UserError):  # a damaged one is told of when weights are looked at
            shards = read_json(index, dict).get("weight_map")
            names = shards.values() if isinstance(shards, dict) else ()
            files |= {directory / name for name in names if isinstance(name, str) and (directory / name).is_file()}
    return sorted(files)


def _how_to_get(directory: Path) -> str:
    if directory.name in PUBLISHED:
        return (
            f"bash scripts/download.sh {PUBLISHED[directory.name]} fetches it into model_weights/{directory.name}, "
            "or give another directory"
        )
    # Names that no directory can have are refused by glob.
    inside = _files(directory, ("snapshots/*/config.json",)) if os.path.isdir(directory) else []
    if inside:  # the model hub's cache
        return f"give {inside[0].parent}"
    return "give the directory of a checkpoint (from the model hub: hf download NAME --local-dir DIRECTORY)"


def _files(directory: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in directory.glob(pattern))
