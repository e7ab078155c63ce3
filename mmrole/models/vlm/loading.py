"""A checkpoint of a vision-language model of transformers: checked before it is loaded, its family, the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmrole.base.errors import UserError, shown
from mmrole.base.files import read_json
from mmrole.models.adapters import check_adapter
from mmrole.models.checkpoints import Checkpoint
from mmrole.models.context import Context
from mmrole.models.generation_config import FILE_NAME as GENERATION_CONFIG
from mmrole.models.generation_config import check_token_ids
from mmrole.models.vlm.chat_probe import check_encoding
from mmrole.models.vlm.facts import text_config
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.tree_model import VlmTreeModel
from mmrole.models.vlm.weight_files import check_number_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmrole.models.families import Family


def check(checkpoint: Checkpoint, max_pixels: int | None = None) -> Context:
    """See `mmrole.models.loading.check_checkpoint`."""
    family = read_family(checkpoint, max_pixels)
    check_encoding(family.encoder)
    check_number_of_weights(checkpoint.base, family)
    _check_head(checkpoint.base, family)
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
    if "quantization_config" in fields:
        raise UserError(f"{file}: quantized checkpoints are not supported; give the model that was quantized")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        known = "it needs code of its own, which is not run, or a newer transformers"
        reason = known if fields.get("auto_map") or "model type" in str(error) else " ".join(str(error).split())[:200]
        raise UserError(f"{file}: model_type {shown(fields.get('model_type'))} cannot be loaded: {reason}") from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or not hasattr(config, "image_token_id"):
        raise UserError(
            f"{file}: model_type {shown(fields.get('model_type'))} is no model of transformers that reads images and "
            "text; docs/models.md lists those that were tried"
        )
    return config


def _check_head(directory: Path, family: Vlm) -> None:
    """Raises UserError for an LM head that does more than a product with its matrix."""
    head = family.empty_module().get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise UserError(f"{directory}: an LM head with a bias, or of a kind of its own, is not supported")
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(text_config(family.config), name, None)
        if value not in (None, 1):
            raise UserError(f"{directory / 'config.json'}: {name} {shown(value)} is not supported")


def tree_model(module: PreTrainedModel, family: Family) -> VlmTreeModel:
    """A loaded model."""
    return VlmTreeModel(module, cast("Vlm", family))
