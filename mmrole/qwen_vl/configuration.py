"""Configuration of Qwen-VL checkpoints in the original layout (`model_type: qwen`)."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from mmrole.base.errors import shown
from mmrole.qwen_vl.config_values import VISUAL_SIZES, check_config_values
from mmrole.qwen_vl.errors import CheckpointError

# Keys of a `config.json` that would make transformers fetch or run code which the checkpoint's author chose: remote
# modules, tokenizers of its own, and attention kernels taken from a hub. Private keys are transformers' own state,
# `_attn_implementation` among them.
_KEYS_THAT_NAME_CODE = (
    "auto_map",
    "custom_pipelines",
    "tokenizer_class",
    "attn_implementation",
    "experts_implementation",
)

# The form in which a call returns its results is the caller's to choose.
_KEYS_OF_CALLS = ("return_dict", "use_return_dict")

_KEYS_OF_QUANTIZED_WEIGHTS = ("quantization_config", "compression_config")

_REMEDY = "give a Qwen-VL checkpoint such as Qwen-VL-Chat or MMRole-Agent."

QWEN_VL_CHAT_VISUAL: dict[str, Any] = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}


class QWenConfig(PreTrainedConfig):
    """Qwen-VL: a Qwen-1 language model with a vision tower (spec §1; the defaults are those of Qwen-VL-Chat).

    Field names are the original ones, so that a saved `config.json` is read by the original code as well.

    Attributes:
        intermediate_size: twice the width of the feed-forward layers (original convention; Qwen-VL-Chat: 22,016 for
            a width of 11,008).
        kv_channels: channels of one attention head; `hidden_size == kv_channels * num_attention_heads`.
        seq_length: training length in positions; threshold of dynamic NTK and of log-n attention.
        rotary_pct: fraction of each head's channels that is rotated.
        no_bias: no biases in `attn.c_proj` and in the feed-forward layers (`attn.c_attn` always has one).
        use_dynamic_ntk, use_logn_attn: switches of the two long-context rules; both are off in training mode.
        visual: fields of the vision tower: `image_size` and `patch_size` in pixels, `width`, `layers`, `heads`,
            `mlp_ratio`, `output_dim` (= hidden_size), and `image_start_id`, the id of `<img>` (`</img>` and `<imgpad>`
            follow it).
        bf16, fp16, fp32, use_flash_attn, scale_attn_weights, max_position_embeddings, onnx_safe, tokenizer_type: kept
            in the file, without effect here (`dtype=` and `attn_implementation=` of `from_pretrained` decide).
    """

    model_type = "qwen"
    tokenizer_class: ClassVar[str] = "QWenTokenizer"  # for directories without tokenizer_config.json
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    emb_dropout_prob: float = 0.0
    attn_dropout_prob: float = 0.0
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 8192
    seq_length: int = 2048
    rotary_emb_base: float | int = 10000
    rotary_pct: float = 1.0
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    scale_attn_weights: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bf16: bool = False
    fp16: bool = False
    fp32: bool = False
    use_flash_attn: bool | str = False
    onnx_safe: bool | None = None
    tokenizer_type: str = "QWenTokenizer"
    visual: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        self.visual = deepcopy(QWEN_VL_CHAT_VISUAL) | self.visual
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.kv_channels

    @property
    def image_start_id(self) -> int:
        """Token id of `<img>`; `</img>` and `<imgpad>` are the next two."""
        return self.visual["image_start_id"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """transformers' `from_pretrained`; errors as of `from_dict`."""
        # The name in the file itself is what its author typed ("./").
        name = {"name_or_path": str(pretrained_model_name_or_path)}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **name | kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Builds the configuration of a checkpoint; with `return_unused_kwargs`, a pair of it and what is unused.

        Raises:
            CheckpointError: for another model than a Qwen-VL, for quantized weights, for values of no use and sizes
                that contradict each other, and for a directory whose tokenizer is declared to be something that only
                its own code could build.
        """
        name = str(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "config.json")
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CheckpointError(f"{name}: model_type is {shown(model_type)}, not {cls.model_type!r}; {_REMEDY}")
        if not isinstance(config_dict.get("visual"), dict):
            raise CheckpointError(f"{name}: a text-only Qwen (its config.json has no `visual` section); {_REMEDY}")
        absent = [key for key in (*VISUAL_SIZES, "mlp_ratio") if key not in config_dict["visual"]]
        if absent:
            raise CheckpointError(f"{name}: `visual` in config.json has no {absent[0]!r}; copy config.json again.")
        _refuse_quantized(name, config_dict)
        _refuse_foreign_tokenizer(name)
        left_out = {*_KEYS_THAT_NAME_CODE, *_KEYS_OF_CALLS, *_KEYS_OF_QUANTIZED_WEIGHTS}
        config_dict = {
            key: value
            for key, value in config_dict.items()
            if key not in left_out and (not key.startswith("_") or key == "_name_or_path")
        }
        try:
            loaded: Any = super().from_dict(config_dict, **kwargs)
        except Exception as error:  # what transformers does with a field of the wrong kind differs from field to field
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{name}: config.json holds a value that cannot be used ({reason}).") from error
        config: Self = loaded[0] if kwargs.get("return_unused_kwargs") else loaded
        config.check_sizes(name)
        return loaded

    def check_sizes(self, name: str) -> None:
        """Raises CheckpointError for values of no use, and for sizes that contradict each other; `name` comes first."""
        check_config_values(self, name)

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields of the saved `config.json`: the original's names (`torch_dtype`, not `dtype`), no `auto_map`."""
        fields = super().to_diff_dict()
        if "dtype" in fields:
            fields["torch_dtype"] = fields.pop("dtype")
        return fields


def _refuse_quantized(name: str, fields: dict[str, Any]) -> None:
    for key in _KEYS_OF_QUANTIZED_WEIGHTS:
        settings = fields.get(key)
        if settings is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            kind = method.upper() if isinstance(method, str) and method.isalnum() else "quantized"
            raise CheckpointError(
                f"{name}: {key} in config.json: {kind} checkpoints are not supported; "
                "give the model that was quantized, such as Qwen-VL-Chat itself."
            )


def _refuse_foreign_tokenizer(directory: str) -> None:
    # AutoTokenizer(trust_remote_code=True) runs a directory's own tokenizer module unless the class that
    # tokenizer_config.json names is registered; it asks for the configuration first, so this is the one place where
    # our code can prevent that.
    # Subfolders too: which one `subfolder=` names is not said here.
    if not os.path.isdir(directory):
        return
    name = "tokenizer_config.json"
    for file in (Path(directory) / name, *Path(directory).glob(f"*/{name}"), *Path(directory).glob(f"*/*/{name}")):
        if file.is_file():
            _refuse_foreign_class(file)


def _refuse_foreign_class(file: Path) -> None:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: not a JSON object.")
    declared = fields.get("tokenizer_class")
    if "auto_map" in fields and declared != "QWenTokenizer":
        raise CheckpointError(
            f"{file}: names a tokenizer of its own ({declared!r}) with code in the checkpoint, which is never run; "
            'set "tokenizer_class": "QWenTokenizer" if its vocabulary is a qwen.tiktoken file.'
        )
