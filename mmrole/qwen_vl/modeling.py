"""Qwen-VL for current transformers: loading, initial values, and the model without its LM head (spec §2, §4)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from mmrole.qwen_vl.attention import prepare_mask
from mmrole.qwen_vl.blocks import LayerAttention, QWenBlock, RMSNorm
from mmrole.qwen_vl.checkpoint_files import check_loaded, check_weight_files
from mmrole.qwen_vl.configuration import QWenConfig
from mmrole.qwen_vl.image_positions import find_image_positions, has_image_span
from mmrole.qwen_vl.rotary import at_least_float32, logn_factors, rotary_tables
from mmrole.qwen_vl.rotary import ntk_alpha as ntk_alpha_of
from mmrole.qwen_vl.vision import QUERIES_PER_SIDE, Resampler, VisionTransformer, initial_values


class QWenPreTrainedModel(PreTrainedModel):
    """Loading, initial values and capabilities that all Qwen-VL models share."""

    config_class = QWenConfig
    config: QWenConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    # A tuple as in transformers' own models.
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    # transformers declares for instances what it reads from the class; so below.
    _no_split_modules: ClassVar = ["QWenBlock", "VisionTransformer"]  # the tower has parameters of its own  # pyright: ignore[reportIncompatibleVariableOverride]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]  # pyright: ignore[reportIncompatibleVariableOverride]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Non-persistent buffers of the original code that old checkpoints carry.
    _keys_to_ignore_on_load_unexpected: ClassVar = [  # pyright: ignore[reportIncompatibleVariableOverride]
        r"\.attn\.masked_bias$",
        r"\.attn\.bias$",
        r"\.rotary_emb\.inv_freq$",
    ]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Self:
        """transformers' `from_pretrained`; the checkpoint is checked first and its code is never run.

        A directory with a model of its own is that model: adapter files that lie beside it are left alone.

        Raises:
            CheckpointError: for a damaged or incomplete checkpoint, in one line.
        """
        # With it, transformers would run custom_generate/generate.py of the checkpoint.
        kwargs.pop("trust_remote_code", None)
        source = pretrained_model_name_or_path
        checked = source if kwargs.get("state_dict") is None else None
        if checked is not None:
            check_weight_files(cls, checked, **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        if source is not None and (alone := _without_adapters(Path(source), kwargs)) is not None:
            source = alone
        loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if source is not pretrained_model_name_or_path:
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if checked is not None:
            check_loaded(checked, info)
        for module in model.modules():
            if isinstance(module, Resampler):
                module.pos_embed.requires_grad_(False)  # loading makes every parameter trainable
        return loaded if wants_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' functions leave alone what came from a checkpoint; writing to `.data` would not.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            # GPT-2's rule: the residual stream sums 2 * layers branches.
            branches = 2 * self.config.num_hidden_layers if getattr(module, "ends_branch", False) else 1
            init.normal_(module.weight, std=std / branches**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        else:
            for name, value in initial_values(module, std).items():
                parameter = getattr(module, name)
                init.copy_(parameter, value) if isinstance(value, Tensor) else init.normal_(parameter, std=value)


def _without_adapters(directory: Path, kwargs: dict[str, Any]) -> Path | None:
    """Another name of a whole model's directory, under which transformers finds no adapter that lies there.

    Args:
        directory: of the model.
        kwargs: of `from_pretrained`; they get what belongs to the name.

    Returns:
        None if there is no adapter, or the one that the auto classes have come from, in a directory of its own.
    """
    folder = directory / (kwargs.get("subfolder") or "")
    adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path", directory)
    beside = any((place / "adapter_config.json").exists() for place in (directory, folder))
    if not beside or not (folder / "config.json").is_file() or Path(adapter) != directory:
        return None
    # Some versions look for an adapter in the directory itself, others in the subfolder; below a file there is none.
    root = Path(folder.absolute().anchor)
    kwargs["subfolder"] = str(folder.absolute().relative_to(root))
    kwargs["adapter_kwargs"] = {"subfolder": str(folder.absolute().relative_to(root) / "config.json")}
    return root


class QWenModel(QWenPreTrainedModel):
    """Embeddings with image features in place, the blocks and the final norm (no LM head)."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QWenBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTransformer(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings."""
        self.wte = cast("nn.Embedding", value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels [images, 3, size, size] → features [images, 256, hidden_size]."""
        return self.visual(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_positions: Tensor | None = None,
        ntk_alpha: Tensor | None = None,
        tree_attention: LayerAttention | None = None,
        training_rules: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of all positions; see `QWenLMHeadModel.forward` for the arguments.

        `tree_attention` keeps keys and values in place of a cache, and knows who sees what: with it position ids are
        explicit, and there is no mask. `training_rules` (by default in training mode): no dynamic NTK, no log-n factor,
        and the vision tower runs even if there are no images; for a loss in evaluation mode that compares with the one
        in training.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        config = self.config
        training_rules = self.training if training_rules is None else training_rules
        use_cache = config.use_cache if use_cache is None else use_cache
        if (self.training and self.gradient_checkpointing) or tree_attention is not None:
            use_cache = False
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions

        inputs_embeds = self._place_images(
            self.wte(input_ids) if inputs_embeds is None else inputs_embeds,
            input_ids,
            pixel_values,
            image_positions,
            past_key_values,
            training_rules,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)

        mask = None
        if tree_attention is None:
            mask = prepare_mask(config, attention_mask, inputs_embeds, past_key_values)
        if position_ids is None:
            position_ids = _default_positions(inputs_embeds, attention_mask, past_key_values)
        if training_rules or not config.use_dynamic_ntk:
            alpha = torch.ones(1, dtype=torch.int64, device=position_ids.device)
        else:
            alpha = self._alpha(ntk_alpha, position_ids, past_key_values, len(inputs_embeds))
        dtype = inputs_embeds.dtype
        channels = int(config.kv_channels * config.rotary_pct)
        rotary = rotary_tables(position_ids, alpha, channels, config.rotary_emb_base, at_least_float32(dtype))
        logn = None
        if config.use_logn_attn and not training_rules:
            logn = logn_factors(position_ids, config.seq_length, dtype)

        hidden_states = self.drop(inputs_embeds)
        all_hidden_states, all_attentions = [], []
        for block in self.h:
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            hidden_states, weights = block(
                hidden_states,
                attention_mask=mask,
                rotary=rotary,
                logn=logn,
                past_key_values=past_key_values if use_cache else None,
                tree_attention=tree_attention,
                **kwargs,
            )
            if output_attentions:
                all_attentions.append(weights)
        hidden_states = self.ln_f(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _place_images(
        self,
        inputs_embeds: Tensor,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        image_positions: Tensor | None,
        past_key_values: Cache | None,
        training_rules: bool,
    ) -> Tensor:
        device, dtype = inputs_embeds.device, inputs_embeds.dtype
        if pixel_values is None or len(pixel_values) == 0:
            at_prompt = past_key_values is None or int(past_key_values.get_seq_length()) == 0
            if (
                input_ids is not None
                and image_positions is None
                and at_prompt
                and has_image_span(input_ids, self.config.image_start_id)
            ):
                raise ValueError("input_ids hold an image span (<img> … </img>), but there are no pixel_values.")
            if image_positions is not None and bool((image_positions >= 0).any()):
                raise ValueError("image_positions name image features, but there are no pixel_values.")
            if training_rules:
                # ZeRO-3 waits for a gradient of every parameter on every rank, images or not (spec §4).
                size = QUERIES_PER_SIDE * self.config.visual["patch_size"]
                blank = torch.zeros(1, 3, size, size, device=device)
                return inputs_embeds + self.visual(blank).to(device, dtype).mean() * 0
            return inputs_embeds
        if image_positions is None:
            if input_ids is None:
                raise ValueError("inputs_embeds with pixel_values need image_positions.")
            image_positions = find_image_positions(input_ids, self.config.image_start_id, len(pixel_values))
        features = self.get_image_features(pixel_values).flatten(0, 1).to(device, dtype)  # [images * 256, hidden_size]
        image_positions = image_positions.to(device)
        return torch.where((image_positions >= 0)[..., None], features[image_positions.clamp(min=0)], inputs_embeds)

    def _alpha(self, given: Tensor | None, position_ids: Tensor, past_key_values: Cache | None, batch: int) -> Tensor:
        # The factor of the prompt stays in force while its cache grows (spec §2.3); it belongs to the keys in the
        # cache, so that is where it is kept.
        if given is None and past_key_values is not None and int(past_key_values.get_seq_length()) > 0:
            given = _factors_of_cache(past_key_values, batch)
        if given is None:
            given = ntk_alpha_of(position_ids.amax(dim=-1) + 1, self.config.seq_length)
        elif given.dim() not in (1, 2) or len(given) not in (1, batch):
            raise ValueError(f"ntk_alpha has shape {list(given.shape)}; expected [{batch}] or [{batch}, positions].")
        if past_key_values is not None:
            past_key_values.ntk_alpha = given  # an attribute of our own  # pyright: ignore[reportAttributeAccessIssue]
        return given


def _factors_of_cache(past_key_values: Cache, batch: int) -> Tensor | None:
    alpha = getattr(past_key_values, "ntk_alpha", None)
    if alpha is None or (alpha.dim() == 1 and len(alpha) in (1, batch)):
        return alpha
    if alpha.dim() == 1 and batch % len(alpha) == 0:  # after batch_repeat_interleave
        return alpha.repeat_interleave(batch // len(alpha))
    raise ValueError(
        f"the cache was filled with NTK factors of shape {list(alpha.shape)}; give ntk_alpha for this batch of {batch}."
    )


def _default_positions(
    inputs_embeds: Tensor, attention_mask: Tensor | BlockMask | None, past_key_values: Cache | None
) -> Tensor:
    """[batch or 1, positions]: each row's own count, padding left out."""
    new = inputs_embeds.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:].to(inputs_embeds.device)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    return (torch.arange(new, device=inputs_embeds.device) + past)[None]
