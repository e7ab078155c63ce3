"""A checkpoint of a vision-language model of transformers: checked before it is loaded, its family, the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json
from mmrole.base.json_values import JsonObject
from mmrole.models.adapters import check_adapter
from mmrole.models.checkpoints import Checkpoint
from mmrole.models.context import Context
from mmrole.models.generation_config import FILE_NAME as GENERATION_CONFIG
from mmrole.models.generation_config import check_token_ids
from mmrole.models.model_files import QUANTIZED
from mmrole.models.vlm.chat_probe import check_encoding
from mmrole.models.vlm.facts import text_config
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import transformers_quiet
from mmrole.models.vlm.tree_model import VlmTreeModel
from mmrole.models.vlm.weight_files import check_number_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmrole.models.families import Family

_QUANTIZATION = ("quantization_config", "compression_config")
_COUNTS = ("num_hidden_layers", "max_position_embeddings")


def check(checkpoint: Checkpoint, max_pixels: int | None = None) -> Context:
    """See `mmrole.models.loading.check_checkpoint`."""
    family = read_family(checkpoint, max_pixels)
    check_encoding(family.encoder)
    check_number_of_weights(checkpoint.base, family)
    _check_language_model(checkpoint.base, family)
    if checkpoint.adapter is not None:
        check_adapter(checkpoint.adapter, checkpoint.base, family.empty_module)
    return Context(family.encoder, family.max_positions)


def read_family(checkpoint: Checkpoint, max_pixels: int | None = None, reads_trees: bool = True) -> Vlm:
    """See `mmrole.models.loading.read_family`.

    Raises:
        UserError: transformers has no such model, or a part is missing or damaged.
    """
    config = read_config(checkpoint.base)
    file = checkpoint.file(GENERATION_CONFIG)
    generation = read_json(file, dict) if file.is_file() else {}
    check_token_ids(file, generation.get("eos_token_id"))
    return Vlm(checkpoint.processor_directory, config, generation, max_pixels, reads_trees)


def read_config(directory: Path) -> Any:
    """The configuration of a model that transformers can load without code of others.

    Raises:
        UserError: it cannot.
    """
    file = directory / "config.json"
    fields = read_json(file, dict)
    _check_not_quantized(directory, fields)
    try:
        with transformers_quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each class of configuration checks its fields in its own way
        known = "it needs code of its own, which is not run, or a newer transformers"
        reason = known if fields.get("auto_map") or "model type" in str(error) else " ".join(str(error).split())[:200]
        raise UserError(f"{file}: model_type {shown(fields.get('model_type'))} cannot be loaded: {reason}") from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or not hasattr(config, "image_token_id"):
        raise UserError(
            f"{file}: model_type {shown(fields.get('model_type'))} is no model of transformers that reads images and "
            "text; docs/models.md lists those that were tried"
        )
    _check_sizes(file, config)
    return config


def _check_not_quantized(directory: Path, fields: JsonObject) -> None:
    """Raises UserError where a checkpoint says of itself that its weights are quantized."""
    parts = [fields, *(part for part in fields.values() if isinstance(part, dict))]
    named = any(part.get(name) for part in parts for name in _QUANTIZATION)
    file = next((name for name in QUANTIZED if (directory / name).is_file()), "config.json" if named else None)
    if file is not None:
        raise UserError(
            f"{directory / file}: quantized checkpoints are not supported; give the model that was quantized"
        )


def _check_sizes(file: Path, config: Any) -> None:
    """Raises UserError unless the language model has layers, all of one size, and positions."""
    text = text_config(config)
    for name in (*_COUNTS, "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        try:
            value = getattr(text, name, None)
        except Exception:  # transformers' own for what each layer has for itself
            raise UserError(f"{file}: {name} differs from layer to layer, which is not supported") from None
        if name in _COUNTS and (type(value) is not int or value < 1):
            raise UserError(f"{file}: {name} of the language model must be a number above 0, not {shown(value)}")


def _check_language_model(directory: Path, family: Vlm) -> None:
    """Raises UserError for an LM head that does more than a product with its matrix, or blocks that are not found."""
    module = family.empty_module()
    try:
        family.blocks(module)
    except AttributeError:
        kind = type(text_config(family.config)).__name__.removesuffix("Config")
        raise UserError(f"{directory}: a language model of the kind {kind} is not supported") from None
    head = module.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise UserError(f"{directory}: an LM head with a bias, or of a kind of its own, is not supported")
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(text_config(family.config), name, None)
        if value not in (None, 1):
            raise UserError(f"{directory / 'config.json'}: {name} {shown(value)} is not supported")


def tree_model(module: PreTrainedModel, family: Family) -> VlmTreeModel:
    """A loaded model."""
    return VlmTreeModel(module, cast("Vlm", family))
