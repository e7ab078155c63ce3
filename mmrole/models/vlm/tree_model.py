"""A loaded vision-language model of transformers, which reads prompt trees, or sequences one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from mmrole.models.families import KVShape, Pixels
from mmrole.models.vlm import facts, parts
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.image_rows import features_of_each
from mmrole.prompt_tree.attention import TreeAttention


class VlmTreeModel:
    """A `TreeModel` and a `SequenceModel`: a loaded model, in evaluation mode.

    Its attention is that of trees, or, where `Family.reads_trees` is false, transformers' own.

    Args:
        module: of `Vlm.load_module`.
        family: of the checkpoint.
    """

    def __init__(self, module: PreTrainedModel, family: Vlm) -> None:
        self.module, self.family = module.eval(), family
        self._language = parts.language_model(module)
        self._head = cast("Any", module.get_output_embeddings())
        self._embed = cast("Any", module.get_input_embeddings())
        heads, size = facts.kv_heads(family.config), family.head_size
        self.kv_shapes = [
            KVShape(heads, size, weight.dtype, weight.device)
            for weight in (next(layer.parameters()) for layer in cast("Any", self._language).layers)
        ]

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.module.device

    @property
    def vocabulary_size(self) -> int:
        """Numbers in a row of logits."""
        return self._head.weight.shape[0]

    @property
    def attention(self) -> str:
        """SDPA's arithmetic."""
        return "sdpa"

    def image_features(self, images: Sequence[Pixels]) -> list[Tensor]:
        """→ [rows, (1 + D) * hidden_size] each, D of them for the first layers (Qwen3-VL's deepstack)."""
        return features_of_each(self.module.model, images, self.device)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        share_keys: Tensor,
        attention: TreeAttention,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """See `TreeModel.hidden_states`."""
        return self._read(input_ids, positions, images, use_cache=False, tree_attention=attention)

    def new_cache(self) -> Cache:
        """transformers' own for the layers of this model."""
        return DynamicCache(config=cast("Any", self._language).config)

    def cache_bytes(self, cache: Cache) -> int:
        """Of the tensors in its layers."""
        return sum(_nbytes(value) for layer in cache.layers for value in vars(layer).values())

    def read_on(
        self, input_ids: Tensor, positions: Tensor, cache: Cache, images: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """See `SequenceModel.read_on`."""
        return self._read(input_ids, positions, images, use_cache=True, past_key_values=cache)

    def _read(self, input_ids: Tensor, positions: Tensor, images: tuple[Tensor, Tensor] | None, **more: Any) -> Tensor:
        if images is None:
            embeddings = self._embed(input_ids)
        else:
            places, features = images
            shows = torch.zeros_like(input_ids, dtype=torch.bool).index_fill(0, places, True)
            # Gemma 3's placeholder may lie behind the table.
            embeddings = self._embed(input_ids.masked_fill(shows, 0))
            own, *deep = features.to(embeddings).split(embeddings.shape[-1], dim=-1)
            embeddings = embeddings.index_copy(0, places, own)
            if deep:
                more |= {"visual_pos_masks": shows[None], "deepstack_visual_embeds": deep}
        return self._language(
            inputs_embeds=embeddings[None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            **more,
        ).last_hidden_state[0]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[n, hidden_size] → [n, vocabulary]."""
        return self._head(hidden_states)


def _nbytes(value: object) -> int:
    """Of a tensor, or of those of a dictionary."""
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    return value.nbytes if isinstance(value, Tensor) else 0
