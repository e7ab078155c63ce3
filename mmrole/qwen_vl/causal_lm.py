"""Qwen-VL with its LM head: logits, loss and generation (spec §2, §4, §6)."""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from mmrole.qwen_vl.configuration import QWenConfig
from mmrole.qwen_vl.image_positions import find_image_positions
from mmrole.qwen_vl.lm_head import LMHead, LossPositions
from mmrole.qwen_vl.modeling import QWenModel, QWenPreTrainedModel
from mmrole.qwen_vl.rotary import at_least_float32
from mmrole.qwen_vl.rotary import ntk_alpha as ntk_alpha_of

_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("early_stopping", "length_penalty")
_CACHE_ONLY = ("cache_implementation", "cache_config")


class QWenLMHeadModel(QWenPreTrainedModel, GenerationMixin):
    """Qwen-VL with its LM head: what `AutoModelForCausalLM` loads."""

    # transformers declares for instances what it reads from the class.
    _tied_weights_keys: ClassVar = {"lm_head.weight": "transformer.wte.weight"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The LM head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the LM head."""
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels [images, 3, size, size] → features [images, 256, hidden_size]."""
        return self.transformer.get_image_features(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        image_positions: Tensor | None = None,
        ntk_alpha: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        loss_positions: LossPositions | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss if labels are given.

        Args:
            input_ids: int [batch, positions]; what stands between `<img>` and `</img>` is overwritten by features.
            attention_mask: [batch, keys] with 0 at padding, which moves no position; or [batch, 1, queries, keys],
                boolean or integer (True or 1: may attend) or additive; or a FlexAttention BlockMask. Causal if None.
            position_ids: int [batch, positions]; by default each row counts its own positions without padding.
            past_key_values: keys and values of earlier positions; any number of new ones may follow.
            inputs_embeds: [batch, positions, hidden_size] in place of `input_ids`.
            labels: int [batch, positions], -100 where there is no loss; shifted by one inside.
            logits_to_keep: compute only so many last logits (0: all), or those at these indices.
            pixel_values: [images, 3, size, size]: each distinct image once.
            image_positions: int64 [batch, positions]: which row of the features (256 for each image, one image after
                the other) a position takes, -1 for none. By default the spans in `input_ids` take the images in order.
            ntk_alpha: int, [batch] or [batch, positions]: dynamic NTK factors. By default that of the prompt in the
                cache, else from each row's own length. Evaluation mode only.
            token_type_ids: ignored, as in the original.
            num_items_in_batch: divisor of the summed loss (gradient accumulation); the number of labels by default.
            loss_positions: in place of labels: the loss is the weighted sum over these, and there are no logits.
            kwargs: `output_hidden_states`, `output_attentions` (eager), `tree_attention` and `training_rules` (see
                `QWenModel.forward`), and what the attention implementation takes.

        Raises:
            ValueError: if images and image spans do not match, or for a mask that the implementation cannot take.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            image_positions=image_positions,
            ntk_alpha=ntk_alpha,
            return_dict=True,
            **kwargs,
        )
        if loss_positions is not None:
            hidden_states = outputs.last_hidden_state.flatten(0, 1)
            return CausalLMOutputWithPast(loss=self.lm_head(hidden_states, loss_positions))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        kept = slice(None) if isinstance(kept, int) else kept
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(
            loss=None if labels is None else causal_lm_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    # transformers' other arguments go through kwargs.
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """transformers' `generate`; takes `pixel_values` and `image_positions` besides the usual arguments."""
        defaults = generation_config or self.generation_config
        chunked = kwargs.get("prefill_chunk_size", getattr(defaults, "prefill_chunk_size", None)) is not None
        cache, prompt = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if chunked and kwargs.get("ntk_alpha") is None and (cache is None or int(cache.get_seq_length()) == 0):
            # A chunk does not know the length of its prompt.
            prompt = torch.ones_like(kwargs.get("input_ids", inputs)) if prompt is None else prompt
            kwargs["ntk_alpha"] = ntk_alpha_of(prompt.sum(dim=-1), self.config.seq_length)
        # GenerationMixin declares a self that no model of transformers is; so below.
        return super().generate(inputs, generation_config, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, also with generation settings that have no effect beside the others.

        transformers refuses to save those, such as the shipped `top_p` after `generation_config.do_sample = False`:
        they are left out of the saved generation_config.json.
        """
        kept = self.generation_config
        self.generation_config = copy.deepcopy(kept)
        for name in _without_effect(kept):
            setattr(self.generation_config, name, None)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.generation_config = kept

    # Called by name; transformers' other arguments go through kwargs.
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        is_first_iteration: bool | None = False,
        pixel_values: Tensor | None = None,
        image_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,  # named here, or transformers believes that they are not supported
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images go in with the prompt, and again at every step if there is no cache."""
        # transformers has as `self` of these methods a class of its own that no model is; so below.
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, is_first_iteration=is_first_iteration, inputs_embeds=inputs_embeds, **kwargs
        )
        if image_positions is None or (not is_first_iteration and kwargs.get("use_cache", True)):
            return inputs
        new = inputs["inputs_embeds"] if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
        generated = input_ids.shape[1] - image_positions.shape[1]
        image_positions = nn.functional.pad(image_positions, (0, max(generated, 0)), value=-1)
        return inputs | {"pixel_values": pixel_values, "image_positions": image_positions[:, -new.shape[1] :]}

    # transformers declares a LongTensor, which no operation is said to return.
    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        # Rows are repeated for beams and for several samples of a prompt; its images are encoded once all the same.
        pixel_values = model_kwargs.pop("pixel_values", None)
        if pixel_values is not None and input_ids is not None and model_kwargs.get("image_positions") is None:
            model_kwargs["image_positions"] = find_image_positions(
                input_ids, self.config.image_start_id, len(pixel_values)
            )
        # As above: another `self`.
        expanded, others = super()._expand_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return expanded, others | {"pixel_values": pixel_values}


def _without_effect(settings: GenerationConfig) -> list[str]:
    """Names of settings that transformers reads only beside others, which are not set."""
    names: list[str] = []
    if settings.do_sample is not True:
        names += _SAMPLING_ONLY
    if settings.num_beams in (None, 1):
        names += _BEAMS_ONLY
    if settings.return_dict_in_generate is not True:
        names += settings.extra_output_flags
    if settings.use_cache is False:
        names += _CACHE_ONLY
    return names


def causal_lm_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy of each position's logits with the next label, mean over labels ≠ -100; at least float32.

    Args:
        logits: [batch, positions, vocabulary].
        labels: int [batch, positions].
        num_items_in_batch: divisor of the sum in place of the number of labels.
    """
    targets = labels[:, 1:].to(logits.device).flatten().long()
    logits = logits[:, :-1].flatten(0, 1)
    logits = logits.to(at_least_float32(logits.dtype))
    if num_items_in_batch is None:
        return nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    return nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / num_items_in_batch
