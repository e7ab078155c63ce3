"""Any vision-language model of transformers as a family: template, tokenizer, images, for engine and training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from mmrole.data.messages import Message
from mmrole.models.families import Encoded, Pixels
from mmrole.models.vlm import facts, parts
from mmrole.models.vlm.attention import FLEX, NAME
from mmrole.models.vlm.encoding import ChatEncoder
from mmrole.models.vlm.image_rows import without_effect
from mmrole.models.vlm.mrope import mrope_positions
from mmrole.models.vlm.processor import VlmProcessor
from mmrole.models.vlm.reply_bytes import ReplyBytes
from mmrole.models.vlm.saving import save_processor
from mmrole.models.vlm.training_module import take_micro_batches
from mmrole.models.vlm.weights import load_pretrained, undivided
from mmrole.qwen_vl.lm_head import LossPositions

if TYPE_CHECKING:
    from mmrole.prompt_tree import PromptTree


class Vlm:
    """A `Family`: a vision-language model of transformers with tokenizer, template and image processor of a checkpoint.

    Args:
        directory: of the checkpoint, whose vocabulary and image processor are used.
        config: its configuration.
        generation: what generation_config.json says.
        max_pixels: most pixels of an image; None for the checkpoint's own limit.
        reads_trees: whether prompt trees are exact with it.

    Raises:
        UserError: a part is missing or damaged.
    """

    not_adapted: str | None = parts.NOT_LANGUAGE

    def __init__(
        self,
        directory: Path,
        config: Any,
        generation: dict[str, Any],
        max_pixels: int | None = None,
        reads_trees: bool = True,
    ) -> None:
        self._made_of = directory, config, generation, max_pixels, reads_trees
        self.directory, self.config = directory, config
        text = facts.text_config(config)
        self.processor = VlmProcessor(directory, config, max_pixels)
        self.stop_ids = facts.stop_ids(config, generation, self.processor.tokenizer)
        self.encoder = ChatEncoder(self.processor, config.image_token_id, self.stop_ids)
        self.max_positions, self.hidden_size = text.max_position_embeddings, text.hidden_size
        self.layers, self.heads = text.num_hidden_layers, text.num_attention_heads
        self.head_size = facts.head_size(config)
        self.active_experts = facts.active_experts(config)
        self.windows = facts.windows(config)
        self.images_both_ways = facts.images_both_ways(config)
        self.position_rows = facts.position_rows(config)
        self.reads_trees = reads_trees and not facts.keys_depend_on_length(config)
        self.drops_attention = (getattr(text, "attention_dropout", 0.0) or 0.0) > 0
        self._bytes = ReplyBytes(self.processor.tokenizer)

    def __reduce__(self) -> tuple[type[Vlm], tuple[Any, ...]]:
        return Vlm, self._made_of  # for the workers of a DataLoader

    def encode(self, messages: Sequence[Message], *, for_training: bool = False) -> Encoded:
        """See `Family.encode`."""
        return self.encoder.encode(messages, for_training=for_training)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a reply; special tokens and ids without a token are left out."""
        return self.decode_piece(token_ids).decode("utf-8", "replace").strip()

    def decode_piece(self, token_ids: Sequence[int]) -> bytes:
        """The UTF-8 of some tokens; special ones are left out."""
        return self._bytes.of(token_ids)

    def share_keys(self, lengths: Sequence[int]) -> list[int]:
        """All prompts may share keys and values."""
        return [1] * len(lengths)

    def positions(self, tree: PromptTree, grids: Mapping[int, tuple[int, int] | None]) -> np.ndarray:
        """Depths, [1, N], or with M-RoPE [3, N]."""
        return tree.depths[None] if self.position_rows == 1 else mrope_positions(tree, grids)

    def preprocess(self, pictures: Sequence[Image.Image | Path], among_others: int = 0) -> Pixels:
        """What the image processor makes of them."""
        return self.processor.pixels(pictures, among_others)

    def empty_module(self) -> PreTrainedModel:
        """The model on the meta device."""
        with undivided(), torch.device("meta"), no_init_weights():
            module = AutoModelForImageTextToText.from_config(self.config, attn_implementation="sdpa")
        module.tie_weights()
        return module

    def load_module(self, directory: str | Path, *, for_training: bool = False, **options: Any) -> PreTrainedModel:
        """The model with the weights of a directory, its language model's attention that of trees.

        For training it has no generation settings, which transformers would refuse to save where they contradict each
        other: `save` copies those of the checkpoint.

        Raises:
            UserError: the checkpoint is damaged or incomplete.
        """
        if for_training:
            options["generation_config"] = GenerationConfig()
        module = load_pretrained(directory, **options)
        parts.hold_rotary(parts.language_model(module))
        if self.reads_trees:
            cast("PreTrainedModel", parts.language_model(module)).set_attn_implementation(NAME)
        if for_training:
            take_micro_batches(module)
        return module

    def saved_weights(self, directory: str | Path) -> dict[str, Tensor]:
        """See `Family.saved_weights`; transformers has names in files that are not those of its modules."""
        return self.load_module(directory).state_dict()

    def use_flex_attention(self, module: nn.Module) -> None:
        """See `Family.use_flex_attention`; without trees its attention stays its own."""
        if self.reads_trees:
            cast("PreTrainedModel", parts.language_model(module)).set_attn_implementation(FLEX)

    def freeze(self, module: nn.Module, frozen: Collection[str]) -> None:
        """See `Family.freeze`. Embeddings and LM head belong to the language model.

        Of a tower that is trained, what no feature depends on is frozen: processes would wait for its gradient.
        """
        unused = () if "vision" in frozen else without_effect(self.empty_module(), self._blank)
        parts.freeze(module, frozen, unused)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """See `Family.blocks`; they are found inside of wrappers, too."""
        return list(cast("Any", parts.language_model(parts.model_in(module))).layers)

    def language_matrices(self, module: nn.Module) -> list[str]:
        """As `self_attn.q_proj`: the parts of their names behind the layer's number."""
        return parts.matrices(parts.model_in(module))

    @cached_property
    # `Family` has an attribute, which this is once it was read.
    def lora_targets(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All matrices of the language model's blocks, as `q_proj`."""
        return sorted({name.rpartition(".")[2] for name in self.language_matrices(self.empty_module())})

    @cached_property
    def not_quantized(self) -> Sequence[str]:
        """Tower, projector and LM head."""
        return parts.beside_language_model(self.empty_module())

    @cached_property
    def _blank(self) -> Pixels:
        """Pixels for a micro-batch without images."""
        return self.preprocess([Image.new("RGB", (64, 64))])

    def loss_arguments(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        pixels: Pixels | None,
        image_positions: Tensor,
        sources: Tensor,
        targets: Tensor,
        weights: Tensor,
        attention: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Arguments of a module's forward after `take_micro_batches`, see `Family.loss_arguments`."""
        return {
            **attention,
            "input_ids": input_ids,
            "position_ids": position_ids,
            "pixels": self._blank if pixels is None else pixels,
            "image_positions": image_positions.to(input_ids.device),
            "loss_positions": LossPositions(sources, targets, weights),
        }

    def save(self, directory: str | Path) -> None:
        """Copies tokenizer, chat template, image processor, with its limit, and generation settings."""
        save_processor(self.directory, Path(directory), self.processor.max_pixels)
