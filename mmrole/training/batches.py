"""Micro-batches: samples merged into a forest of prompt trees, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmrole.models.families import Family, Pixels
from mmrole.prompt_tree import TokenSequence, build_tree, concatenate, group_by_prefix
from mmrole.prompt_tree.attention import BlockwiseAttention
from mmrole.prompt_tree.flex import FlexForestAttention
from mmrole.prompt_tree.image_keys import feature_rows
from mmrole.prompt_tree.mask import Visibility, dense_mask
from mmrole.training.encoding import EncodedSample
from mmrole.training.packing import MIN_SHARED


@dataclass(frozen=True, eq=False)
class TreeBatch:
    """One micro-batch: N nodes in one row, I images, T loss positions.

    Attributes:
        input_ids: int64 [1, N].
        position_ids: int64 [P, N], see `Family.positions`.
        last: int64 [N], the last node of each subtree: who sees whom, see `Visibility`. It stays in the memory of the
            CPU, where the blocks of the attention are made without a wait for the device.
        first: like `last`, see `Visibility`; None where no model's images see themselves both ways.
        depths: the same; None where no layer has a window.
        image_positions: int64 [1, N], the row of the features that a node takes, -1 for text.
        pixels: of `Family.preprocess`, each distinct image once; None without images.
        parents: int64 [T], the nodes whose hidden states predict a target.
        targets: int64 [T], token ids.
        weights: int64 [T], in how many samples each is a loss position.
        n_targets: loss positions of all samples one by one, the sum of `weights`.
        n_tokens: positions of all samples one by one.
        n_samples: samples.
        most_nodes: nodes that a micro-batch of the run may have, to which a compiled attention is padded.
    """

    input_ids: Tensor
    position_ids: Tensor
    last: Tensor
    first: Tensor | None
    depths: Tensor | None
    image_positions: Tensor
    pixels: Pixels | None
    parents: Tensor
    targets: Tensor
    weights: Tensor
    n_targets: int
    n_tokens: int
    n_samples: int
    most_nodes: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its tensors on a device, but for what is looked at in the memory of the CPU.

        That is `last`, `first` and `depths`, and `image_positions` where there are no images.
        """
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.pixels is None:
            moved = replace(moved, image_positions=self.image_positions)
        return replace(moved, last=self.last, first=self.first, depths=self.depths)

    def pin_memory(self) -> Self:
        """The batch in pinned memory (what a DataLoader calls)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        if self.pixels is not None:
            changed["pixels"] = {name: function(value) for name, value in self.pixels.items()}
        return replace(self, **changed)

    def inputs(self, family: Family, attn_implementation: str) -> dict[str, Any]:
        """Arguments of a model's forward, whose loss is then the sum over all loss positions.

        Args:
            family: of the model.
            attn_implementation: of the language model: "flex_attention" gets its compiled kernel, "eager" the dense
                mask, or blocks where one mask does not do for all layers, any other blocks of queries with the keys
                that they see.

        Raises:
            ValueError: the implementation takes no masks (FlashAttention).
        """
        if "flash" in attn_implementation:
            raise ValueError(
                f"attn_implementation={attn_implementation!r} takes no tree's mask; use sdpa, flex_attention or eager"
            )
        attention: dict[str, Any]
        device, first, depths = self.input_ids.device, self.first, self.depths
        if not family.reads_trees:
            attention = {}
        elif "flex" in attn_implementation:
            flex = FlexForestAttention(self.last, self.most_nodes, device, first=first, depths=depths)
            attention = {"tree_attention": flex}
        elif attn_implementation != "eager" or first is not None or depths is not None:
            way = "eager" if attn_implementation == "eager" else "sdpa"
            blocks = BlockwiseAttention(self.last, way, device=device, first=first, depths=depths)
            attention = {"tree_attention": blocks}
        else:
            attention = {"attention_mask": dense_mask(self.last.to(device, non_blocking=True))[None, None]}
        return family.loss_arguments(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            pixels=self.pixels,
            image_positions=self.image_positions,
            sources=self.parents,
            targets=self.targets,
            weights=self.weights,
            attention=attention,
        )


def collate(
    samples: Sequence[EncodedSample], family: Family, *, prompt_tree: bool = True, most_nodes: int | None = None
) -> TreeBatch:
    """The micro-batch of a bin of samples. Without samples it is one node without loss.

    Args:
        samples: any number.
        family: of the model.
        prompt_tree: merge shared prefixes; otherwise samples lie side by side.
        most_nodes: of any micro-batch of the run; None where this one is alone.

    Raises:
        OSError: an image that was there has gone or cannot be read.
    """
    sequences = [sample.sequence() for sample in samples] or [TokenSequence(np.zeros(1, dtype=np.int64))]
    groups = group_by_prefix(sequences, MIN_SHARED) if prompt_tree else [[index] for index in range(len(sequences))]
    # What shares no more than a system message is kept apart: attention is cheaper in a forest than in one wide tree.
    tree = concatenate([build_tree([sequences[index] for index in group]) for group in groups])
    images = {image.number: image for sample in samples for image in sample.images}
    numbers = sorted(images, key=lambda number: (images[number].among_others, number))
    image_positions = feature_rows(tree.image_keys, {number: images[number].rows for number in numbers})
    pictures = [images[number].file for number in numbers]
    last, first, depths = Visibility.of(tree, family.images_both_ways, family.windows)
    return TreeBatch(
        input_ids=torch.from_numpy(tree.input_ids)[None],
        position_ids=torch.from_numpy(family.positions(tree, {number: images[number].grid for number in numbers})),
        last=last,
        first=first,
        depths=depths,
        image_positions=torch.from_numpy(image_positions)[None],
        pixels=family.preprocess(pictures, sum(images[number].among_others for number in numbers)) if numbers else None,
        parents=torch.from_numpy(tree.parent[tree.target_nodes]),
        targets=torch.from_numpy(tree.input_ids[tree.target_nodes]),
        weights=torch.from_numpy(tree.target_counts),
        n_targets=int(tree.target_counts.sum()),
        n_tokens=sum(len(sample) for sample in samples),
        n_samples=len(samples),
        most_nodes=len(tree) if most_nodes is None else most_nodes,
    )
