"""What the engine and training ask of a kind of model: its rules, before weights are loaded, and the loaded model.

A `Family` is made from a checkpoint's vocabulary and configuration; a `TreeModel` is a family with weights, which reads
prompt trees; a `SequenceModel` can read sequences one by one, too. Only `models/` knows what stands behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor, nn
    from transformers import Cache, PreTrainedModel

    from mmrole.data.messages import Message
    from mmrole.prompt_tree import PromptTree
    from mmrole.prompt_tree.attention import TreeAttention


Pixels: TypeAlias = "dict[str, Tensor]"
"""Images as a model takes them: its arguments by name."""


PARTS = ("vision", "projector", "language")
"""Of a vision-language model: `Family.freeze` takes them."""


class EncodedImage(NamedTuple):
    """An image in a sequence of tokens.

    Attributes:
        spans: the positions that take the rows of its features, in order: ranges, each its first and one behind its
            last.
        label_start: the first position of all that belongs to it: label, frame and rows.
        stop: the end of that.
        image: what the message holds.
        grid: rows and columns of its features, where positions count them so (M-RoPE); else None.
        among_others: whether it is read as one of several images of its chat, by a model that reads those otherwise
            than the only one (LLaVA-OneVision).
    """

    spans: tuple[tuple[int, int], ...]
    label_start: int
    stop: int
    image: Any
    grid: tuple[int, int] | None = None
    among_others: bool = False


class Encoded(NamedTuple):
    """Messages as the model reads them.

    Attributes:
        input_ids: int [length].
        targets: bool [length], the loss positions where the messages are a training sample (before the shift).
        images: in order.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    images: tuple[EncodedImage, ...]


class KVShape(NamedTuple):
    """What a layer keeps of each position: keys and values [heads, head_size] each, and where."""

    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device


class Family(Protocol):
    """A kind of model with the vocabulary and the configuration of a checkpoint; no weights."""

    max_positions: int
    """Of prompt and reply together."""
    hidden_size: int
    stop_ids: frozenset[int]
    """Tokens that end a reply."""
    reads_trees: bool
    """Whether prompt trees are exact with its model; otherwise each sequence is read alone."""
    position_rows: int
    """Numbers that say where a position is: P, 1 for most."""
    layers: int
    """Blocks of the language model."""
    heads: int
    """Of its attention: queries of a position in a layer."""
    head_size: int
    """Of its attention."""
    active_experts: int
    """Of a block's experts, how many read a token; 0 where there are none."""
    drops_attention: bool
    """Whether its attention drops weights in training."""
    images_both_ways: bool
    """Whether the rows of an image see each other both ways."""
    windows: Sequence[int]
    """By layer, from how many positions, its own included, a position attends to; 0 where to all before it."""
    lora_targets: Sequence[str]
    """Ends of the names of the matrices that get adapters unless others are named."""
    not_adapted: str | None
    """What the names of modules match that get no adapters, though the ends of their names may be such."""
    not_quantized: Sequence[str]
    """Names of modules that stay as they are where the language model's matrices are quantized."""

    def encode(self, messages: Sequence[Message], *, for_training: bool = False) -> Encoded:
        """A chat as the model reads it, up to where the answer to its last turn begins; without a system message the
        family's own comes first.

        Args:
            messages: a chat.
            for_training: it is a sample to learn from, whose last turn has its answer.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a reply's tokens, whatever they are, without white space around it."""
        ...

    def decode_piece(self, token_ids: Sequence[int]) -> bytes:
        """The UTF-8 of some tokens of a reply, perhaps half a character; what is no text is left out."""
        ...

    def share_keys(self, lengths: Sequence[int]) -> list[int]:
        """By the length of a prompt, equal where two prompts may share keys and values."""
        ...

    def positions(self, tree: PromptTree, grids: Mapping[int, tuple[int, int] | None]) -> np.ndarray:
        """The position ids of a tree's nodes, int64 [P, N].

        Text that goes on behind a node has in all P rows the largest of its numbers plus 1, plus 2, and so on.

        Args:
            tree: of encoded messages.
            grids: `EncodedImage.grid` of the images that it shows, by the number in its image keys.
        """
        ...

    def preprocess(self, pictures: Sequence[Image.Image | Path], among_others: int = 0) -> Pixels:
        """Pictures, or those in files, as the model takes them all at once, in the memory of the CPU.

        Args:
            pictures: each with its own rows of features, whichever chats show them.
            among_others: how many of them, the last, are `EncodedImage.among_others`.

        Raises:
            OSError: one cannot be read.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the files of vocabulary and images beside trained weights."""

    def empty_module(self) -> PreTrainedModel:
        """The model on the meta device: names and shapes."""
        ...

    def load_module(self, directory: str | Path, *, for_training: bool = False, **options: Any) -> PreTrainedModel:
        """The model with the weights of a directory.

        Args:
            directory: of the checkpoint.
            for_training: its forward takes `loss_arguments`.
            options: those of transformers' `from_pretrained`.
        """
        ...

    def saved_weights(self, directory: str | Path) -> dict[str, Tensor]:
        """The weights of a checkpoint that training has written, by the names of its module.

        Raises:
            UserError: a file cannot be read.
        """
        ...

    def use_flex_attention(self, module: nn.Module) -> None:
        """Says of a module in training that FlexAttention computes its attention in trees."""

    def freeze(self, module: nn.Module, frozen: Collection[str]) -> None:
        """Sets which parameters are trained: those of `PARTS` that are not named."""

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """The language model's blocks in their order; each can be computed again in the backward pass."""
        ...

    def language_matrices(self, module: nn.Module) -> list[str]:
        """The ends of the names of the language model's matrices, which can have adapters."""
        ...

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
        """Arguments of the module's forward, whose `loss` is then the sum over loss positions, by training's rules.

        Args:
            input_ids: int64 [1, N].
            position_ids: int64 [P, N].
            pixels: of `preprocess`.
            image_positions: int64 [1, N], which row of all images' features a node takes, -1 for text.
            sources: int64 [T], the nodes whose hidden states predict.
            targets: int64 [T], the tokens that they are to predict.
            weights: [T], how often each counts.
            attention: `tree_attention`, a `TreeAttention`, or `attention_mask`; nothing for a sample that is alone.
        """
        ...


class TreeModel(Protocol):
    """A model that reads prompt trees: nodes in one row, attention by what it is handed."""

    @property
    def family(self) -> Family:
        """What its tokens and positions are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Numbers in a row of logits."""
        ...

    @property
    def kv_shapes(self) -> Sequence[KVShape]:
        """Of each layer."""
        ...

    @property
    def attention(self) -> str:
        """How its attention computes: "sdpa" or "eager"."""
        ...

    def image_features(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Images, each of `Family.preprocess` and all of the same shapes → the features of each, [rows, …]."""
        ...

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        share_keys: Tensor,
        attention: TreeAttention,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The last hidden states [N, hidden_size].

        Args:
            input_ids: int64 [N].
            positions: int64 [P, N].
            share_keys: int64 [N], or [1] where it is the same for all.
            attention: keeps keys and values and knows who sees whom.
            images: places int64 [n] that show images, and what `image_features` has for each, [n, …].
        """
        ...

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[n, hidden_size] → [n, vocabulary]."""
        ...


class SequenceModel(TreeModel, Protocol):
    """A model that can read sequences one by one, each with a cache of its own: where it cannot read prompt trees."""

    def new_cache(self) -> Cache:
        """For a sequence of which nothing has been read."""
        ...

    def cache_bytes(self, cache: Cache) -> int:
        """Memory of a cache."""
        ...

    def read_on(
        self, input_ids: Tensor, positions: Tensor, cache: Cache, images: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The last hidden states [n, hidden_size] of what follows in a sequence.

        Args:
            input_ids: int64 [n].
            positions: int64 [P, n].
            cache: holds what comes before, and then these as well.
            images: as in `hidden_states`.
        """
        ...
