"""Which parts of the model are trained: the published full fine-tuning, LoRA adapters, adapters on 4-bit matrices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from mmrole.base.errors import UserError
from mmrole.models.families import Family
from mmrole.prompt_tree.flex import flex_is_usable
from mmrole.training.arguments import LoraArguments, TrainingArguments


def load_model(
    family: Family, directory: str, training: TrainingArguments, lora: LoraArguments
) -> PreTrainedModel | PeftModel:
    """Loads a checkpoint for training and decides which of its parameters are trained.

    In bfloat16 (float16) where DeepSpeed keeps float32 copies of the trained weights, or where only adapters are
    trained; else in float32, with which `--bf16` computes in mixed precision. On a GPU attention is FlexAttention's, if
    it can be compiled there.

    Raises:
        CheckpointError: the checkpoint is damaged or incomplete.
    """
    reduced = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    dtype = reduced if training.deepspeed or training.use_lora else torch.float32
    quantization = four_bits(dtype, family.not_quantized) if lora.q_lora else None
    device_map = {"": training.device} if lora.q_lora else None
    model = family.load_module(
        directory, for_training=True, dtype=dtype, quantization_config=quantization, device_map=device_map
    )
    family.freeze(model, training.frozen)
    if training.device.type == "cuda" and not family.drops_attention and flex_is_usable(family.head_size):
        family.use_flex_attention(model)
    if training.use_lora:
        return add_adapters(model, family, lora, bool(training.gradient_checkpointing))
    return model


def add_adapters(
    model: PreTrainedModel, family: Family, lora: LoraArguments, activation_checkpointing: bool
) -> PeftModel:
    """Freezes the model and adds trainable LoRA adapters; in 4 bits, small weights are kept in float32."""
    if lora.q_lora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if activation_checkpointing:
        # transformers' own switch has the frozen vision tower keep its activations as well.
        model.get_input_embeddings().register_forward_hook(_require_gradient)
    adapted = get_peft_model(model, _config(family, lora))
    for config in adapted.peft_config.values():
        # peft keeps a set, whose order in adapter_config.json, which adapters are known by, would be another each time.
        config.target_modules = sorted(config.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
    for name, parameter in adapted.named_parameters():
        # peft trains the biases of all modules (--lora_bias all), also of those that no feature depends on, for whose
        # gradient processes would wait.
        if re.fullmatch(family.not_adapted or "", name):
            parameter.requires_grad_(False)
    return adapted


def _require_gradient(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
    """A block that is computed again in the reentrant way has a gradient only if its input has one."""
    output.requires_grad_(True)


def check_adapters(family: Family, lora: LoraArguments) -> None:
    """Finds out on a model without weights whether these adapters can be added.

    Raises:
        UserError: a name of --lora_target_modules names nothing, or what cannot have an adapter.
    """
    model = family.empty_module()
    modules = dict(model.named_modules())
    for target in lora.targets(family):
        matched = [name for name in modules if name == target or name.endswith(f".{target}")]
        matched = [name for name in matched if not re.fullmatch(family.not_adapted or "", name)]
        if not matched:
            own = ", ".join(family.language_matrices(model))
            raise UserError(f"--lora_target_modules {target}: the model has no such module; its own are {own}")
        if "lm_head" in matched:
            raise UserError(f"--lora_target_modules {target}: the LM head gets no adapter; leave it out")
    try:
        get_peft_model(model, _config(family, lora))
    except ValueError as error:
        raise UserError(f"--lora_target_modules: {' '.join(str(error).split())}") from None


def _config(family: Family, lora: LoraArguments) -> LoraConfig:
    return LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.targets(family),
        exclude_modules=family.not_adapted,
        bias=cast(Literal["none", "all", "lora_only"], lora.lora_bias),  # checked with the other flags
        task_type="CAUSAL_LM",
    )


def four_bits(dtype: torch.dtype, not_quantized: Sequence[str]) -> BitsAndBytesConfig:
    """QLoRA's quantization: NF4 with quantized scales, computing in `dtype`; some modules stay as they are."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(not_quantized),
    )


def trained_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters, also where ZeRO-3 has distributed them."""
    sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)
