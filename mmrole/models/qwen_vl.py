"""Qwen-VL as a family: its chat format, positions, images and modules, for engine and training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from mmrole.base.files import read_json
from mmrole.data.messages import Message
from mmrole.models.encoding import encode_chat, text_encoder
from mmrole.models.families import Encoded, EncodedImage, KVShape, Pixels
from mmrole.prompt_tree import PromptTree
from mmrole.prompt_tree.attention import TreeAttention
from mmrole.qwen_vl import QWenConfig, QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.blocks import QWenBlock
from mmrole.qwen_vl.chat_format import decode_answer
from mmrole.qwen_vl.image_processing import preprocess
from mmrole.qwen_vl.lm_head import LossPositions
from mmrole.qwen_vl.rotary import ntk_alpha
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE, PositionTables


class QwenVL:
    """A `Family`: Qwen-VL with the vocabulary and configuration of a checkpoint."""

    reads_trees = True
    position_rows = 1
    active_experts = 0
    images_both_ways = False
    not_quantized: Sequence[str] = ("lm_head", "transformer.visual")
    not_adapted: str | None = None
    lora_targets: Sequence[str] = ("c_attn", "attn.c_proj", "w1", "w2")  # as published

    def __init__(self, tokenizer: QWenTokenizer, config: QWenConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.max_positions, self.hidden_size = config.max_position_embeddings, config.hidden_size
        self.layers, self.heads, self.head_size = (
            config.num_hidden_layers,
            config.num_attention_heads,
            config.kv_channels,
        )
        self.drops_attention = config.attn_dropout_prob > 0
        self.windows: Sequence[int] = (0,) * config.num_hidden_layers
        self.stop_ids = frozenset((tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id))
        self._encode_text = text_encoder(tokenizer)

    def __reduce__(self) -> tuple[type[QwenVL], tuple[QWenTokenizer, QWenConfig]]:
        return QwenVL, (self.tokenizer, self.config)  # for the workers of a DataLoader

    def encode(self, messages: Sequence[Message], *, for_training: bool = False) -> Encoded:
        """See `Family.encode` and, for the ids, `encode_chat`. Loss positions are the published ones (spec §7)."""
        chat = encode_chat(self.tokenizer, messages, answer=not for_training, encode_text=self._encode_text)
        lengths, learned = zip(*chat.learned, strict=True)
        shown = (
            EncodedImage(((start, start + FEATURES_PER_IMAGE),), label_start, start + FEATURES_PER_IMAGE + 1, image)
            for start, image, label_start in chat.images
        )
        return Encoded(np.array(chat.input_ids, dtype=np.int32), np.repeat(learned, lengths), tuple(shown))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a reply; a broken `<img>` and ids without a token are left out."""
        try:
            return decode_answer(self.tokenizer, token_ids)
        except (KeyError, ValueError):
            # A model may generate `<img>` or an id without a token; that must not cost the other replies.
            return decode_answer(self.tokenizer, [token for token in token_ids if token < self.tokenizer.eod_id])

    def decode_piece(self, token_ids: Sequence[int]) -> bytes:
        """The UTF-8 of some tokens; special ones, `<img>` too, are left out."""
        return self.tokenizer.tokenizer.decode_bytes([token for token in token_ids if token < self.tokenizer.eod_id])

    def share_keys(self, lengths: Sequence[int]) -> list[int]:
        """The NTK factors of prompts of these lengths (spec §2.3): they are in all keys."""
        return ntk_alpha(torch.tensor(lengths, dtype=torch.int64), self.config.seq_length).tolist()

    def positions(self, tree: PromptTree, grids: Mapping[int, tuple[int, int] | None]) -> np.ndarray:
        """Depths, [1, N]: a position of an image counts like one of text."""
        return tree.depths[None]

    def preprocess(self, pictures: Sequence[Image.Image | Path], among_others: int = 0) -> Pixels:
        """`pixel_values` float32 [images, 3, size, size]; all images are read alike."""
        return {"pixel_values": preprocess(pictures, self.config.visual["image_size"])}

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files."""
        self.tokenizer.save_pretrained(directory)

    def empty_module(self) -> QWenLMHeadModel:
        """The model on the meta device."""
        with torch.device("meta"), no_init_weights():
            return QWenLMHeadModel(self.config)

    def load_module(self, directory: str | Path, *, for_training: bool = False, **options: Any) -> QWenLMHeadModel:
        """The model with the weights of a directory; its forward always takes `loss_arguments`.

        Raises:
            CheckpointError: the checkpoint is damaged or incomplete.
        """
        return QWenLMHeadModel.from_pretrained(directory, attn_implementation="sdpa", **options)

    def saved_weights(self, directory: str | Path) -> dict[str, Tensor]:
        """See `Family.saved_weights`."""
        files = [file.name for file in Path(directory).glob(SAFE_WEIGHTS_NAME)]
        if not files:
            index = read_json(Path(directory) / SAFE_WEIGHTS_INDEX_NAME, dict)
            files = sorted({Path(name).name for name in index["weight_map"].values()})
        return {name: weight for file in files for name, weight in load_file(Path(directory) / file).items()}

    def use_flex_attention(self, module: nn.Module) -> None:
        """See `Family.use_flex_attention`."""
        cast(QWenLMHeadModel, module).set_attn_implementation("flex_attention")

    def freeze(self, module: nn.Module, frozen: Collection[str]) -> None:
        """See `Family.freeze`. The projector is the resampler, its table of positions too where the tower is frozen.

        Otherwise the table stays as it was loaded, frozen: so did the published code (spec §7).
        """
        for name, parameter in module.named_parameters():
            if name.endswith("attn_pool.pos_embed") and "vision" not in frozen:
                continue
            part = "projector" if ".attn_pool." in name else "vision" if ".visual." in name else "language"
            if parameter.is_floating_point():  # 4 bits have no gradient
                parameter.requires_grad_(part not in frozen)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """See `Family.blocks`; they are found inside of wrappers, too."""
        return [each for each in module.modules() if isinstance(each, QWenBlock)]

    def language_matrices(self, module: nn.Module) -> list[str]:
        """As `attn.c_attn`: the parts of their names behind the layer's number."""
        inner = {name for name, each in module.named_modules() if isinstance(each, nn.Linear) and ".h." in name}
        return sorted({".".join(name.split(".")[3:]) for name in inner})

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
        """Arguments of `QWenLMHeadModel.forward`, see `Family.loss_arguments`."""
        return {
            **attention,
            "input_ids": input_ids,
            "position_ids": position_ids,
            "image_positions": image_positions,
            "pixel_values": None if pixels is None else pixels["pixel_values"],
            "loss_positions": LossPositions(sources, targets, weights),
            "use_cache": False,
            "training_rules": True,
        }


class QwenVLTreeModel:
    """A `TreeModel`: a loaded Qwen-VL, in evaluation mode.

    Its attention implementation must take a mask for each query (eager, SDPA, FlexAttention).
    """

    def __init__(self, module: QWenLMHeadModel, family: QwenVL) -> None:
        self.module, self.family = module.eval(), family
        self._position_tables: dict[int, PositionTables] = {}
        config = module.config
        weights = [cast(QWenBlock, block).attn.c_attn.weight for block in module.transformer.h]
        self.kv_shapes = [
            KVShape(config.num_attention_heads, config.kv_channels, weight.dtype, weight.device) for weight in weights
        ]

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.module.device

    @property
    def vocabulary_size(self) -> int:
        """Numbers in a row of logits."""
        return self.module.lm_head.out_features

    @property
    def attention(self) -> str:
        """Eager if the model's attention is that; every other one cannot take trees' masks, or is SDPA's equal."""
        return "eager" if self.module.config._attn_implementation == "eager" else "sdpa"

    def image_features(self, images: Sequence[Pixels]) -> list[Tensor]:
        """→ [256, hidden_size] each."""
        pixels = torch.cat([image["pixel_values"] for image in images])
        visual = self.module.transformer.visual
        patches = (pixels.shape[-1] // visual.conv1.kernel_size[0]) ** 2
        if patches not in self._position_tables:
            self._position_tables[patches] = visual.position_tables(patches)
        return list(visual(pixels.to(self.device), self._position_tables[patches]))

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        share_keys: Tensor,
        attention: TreeAttention,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """See `TreeModel.hidden_states`."""
        embeddings = self.module.get_input_embeddings()(input_ids)[None]
        if images is not None:
            places, features = images
            embeddings[0, places] = features.to(embeddings)
        outputs = self.module.transformer(
            inputs_embeds=embeddings, position_ids=positions, ntk_alpha=share_keys[None], tree_attention=attention
        )
        return outputs.last_hidden_state[0]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[n, hidden_size] → [n, vocabulary]."""
        return self.module.lm_head(hidden_states)
