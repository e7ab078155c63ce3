"""A Qwen-VL checkpoint: checked before it is loaded, its family, the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mmrole.base.errors import UserError
from mmrole.models.adapters import check_adapter
from mmrole.models.checkpoints import VOCABULARY, Checkpoint
from mmrole.models.context import Context
from mmrole.models.generation_config import check_stop_tokens
from mmrole.models.model_files import check_model_files
from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel
from mmrole.models.qwen_vl_lengths import QwenVLLengths
from mmrole.qwen_vl import CheckpointError, QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.checkpoint_files import check_weight_files, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmrole.models.families import Family


def check(checkpoint: Checkpoint, max_pixels: int | None = None) -> Context:
    """See `mmrole.models.loading.check_checkpoint`."""
    if max_pixels is not None:
        raise UserError(
            f"--max_pixels has no effect on {checkpoint}: Qwen-VL stretches every image to one size; leave it out"
        )
    try:
        config = read_config(checkpoint.base)
        check_weight_files(QWenLMHeadModel, checkpoint.base, config)
        tokenizer = QWenTokenizer(checkpoint.file(VOCABULARY))
    except CheckpointError as error:
        raise UserError(str(error)) from None
    if tokenizer.img_start_id != config.image_start_id:
        raise UserError(
            f"{checkpoint.file(VOCABULARY)}: its <img> is {tokenizer.img_start_id}, that of {checkpoint.base} is "
            f"{config.image_start_id}; this is the vocabulary of another model"
        )
    for directory in filter(None, (checkpoint.base, checkpoint.adapter)):
        check_model_files(directory, frozenset(tokenizer.special_tokens))
    check_stop_tokens(checkpoint, frozenset((tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id)))
    if checkpoint.adapter is not None:
        check_adapter(checkpoint.adapter, checkpoint.base, lambda: QWenLMHeadModel(config))
    return Context(QwenVLLengths(tokenizer), config.max_position_embeddings)


def read_family(checkpoint: Checkpoint, max_pixels: int | None = None, reads_trees: bool = True) -> QwenVL:
    """See `mmrole.models.loading.read_family`; it always reads trees."""
    try:
        return QwenVL(QWenTokenizer(checkpoint.file(VOCABULARY)), read_config(checkpoint.base))
    except CheckpointError as error:
        raise UserError(str(error)) from None


def tree_model(module: PreTrainedModel, family: Family) -> QwenVLTreeModel:
    """A loaded model."""
    return QwenVLTreeModel(cast("QWenLMHeadModel", module), cast("QwenVL", family))
