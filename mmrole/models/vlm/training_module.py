"""A loaded model whose forward pass takes a training micro-batch and gives its summed loss."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmrole.models.families import Pixels
from mmrole.models.vlm import parts
from mmrole.models.vlm.image_rows import vision_features
from mmrole.qwen_vl.lm_head import LMHead, LossPositions


def take_micro_batches(module: PreTrainedModel) -> None:
    """Lets a module's forward take `Vlm.loss_arguments`; without `loss_positions` it stays what it was.

    Both it and the model in it are called as modules: what gathers parameters around calls (ZeRO-3) sees all of them.
    Its class stays, whose name config.json holds.
    """
    head = cast("nn.Linear", module.get_output_embeddings())
    head.__class__ = LMHead
    inner = cast("nn.Module", module.model)
    module.forward = MethodType(_with_loss(module.forward), module)
    inner.forward = MethodType(_in_one_row(inner.forward), inner)


def _with_loss(usual: Callable[..., Any]) -> Callable[..., Any]:
    def forward(module: Any, *args: Any, loss_positions: LossPositions | None = None, **kwargs: Any) -> Any:
        if loss_positions is None:
            return usual(*args, **kwargs)
        hidden_states = module.model(**{name: value for name, value in kwargs.items() if value is not None})
        return CausalLMOutputWithPast(loss=module.get_output_embeddings()(hidden_states, loss_positions))

    return forward


def _in_one_row(usual: Callable[..., Any]) -> Callable[..., Any]:
    def forward(inner: Any, *args: Any, pixels: Pixels | None = None, **kwargs: Any) -> Any:
        return usual(*args, **kwargs) if pixels is None else _hidden_states(inner, pixels, **kwargs)

    return forward


def _hidden_states(
    inner: Any, pixels: Pixels, input_ids: Tensor, position_ids: Tensor, image_positions: Tensor, **attention: Any
) -> Tensor:
    """The last hidden states [N, hidden_size] of a micro-batch, see `Vlm.loss_arguments`.

    All images go through the vision tower at once, also one that no position shows: ZeRO-3 waits for a gradient of
    every parameter on every process.
    """
    shows = image_positions >= 0
    # Gemma 3's placeholder may lie behind the table.
    embeddings = inner.get_input_embeddings()(input_ids.masked_fill(shows, 0))
    size = embeddings.shape[-1]
    own, *deep = vision_features(inner, pixels, input_ids.device).to(embeddings.dtype).split(size, dim=-1)
    embeddings = torch.where(shows[..., None], own[image_positions.clamp(min=0)], embeddings)
    more: dict[str, Any] = {}
    if deep:
        shown = image_positions[shows]
        more = {"visual_pos_masks": shows, "deepstack_visual_embeds": [features[shown] for features in deep]}
    return parts.decoder(inner)(
        inputs_embeds=embeddings,
        position_ids=position_ids if len(position_ids) == 1 else position_ids[:, None],
        use_cache=False,
        **attention,
        **more,
    ).last_hidden_state.flatten(0, 1)
