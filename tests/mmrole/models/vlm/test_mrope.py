"""Positions of M-RoPE along each branch of a tree are those that the model counts for the branch alone."""

from typing import Any

import numpy as np
import pytest
import torch
from fixtures.vlms.chosen import ALL
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from mmrole.data.messages import Message, one_turn
from mmrole.engine.images import ImageTable, ImageView
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import read_family
from mmrole.prompt_tree import TokenSequence, build_tree
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys


@pytest.mark.parametrize("kind", ALL)
def test_positions_of_branches_are_the_models_own(kind, tiny_vlm):
    """Images of several shapes in the trunk and in branches, one after another and between texts."""
    config = AutoConfig.from_pretrained(tiny_vlm(kind))
    family = read_family(find_checkpoint(tiny_vlm(kind), False))
    tall, wide, small = (Image.new("RGB", size) for size in ((60, 130), (150, 60), (64, 64)))
    trunk = (*one_turn("You are Mira.", tall, "What is it?"), Message("assistant", ("A lamp.",)))
    table, grids, sequences, tokens = ImageTable(), {}, [], []
    for content in ((wide, "And?"), (small, wide, "And?"), ("And?", small, "now?", wide), ("And?",)):
        encoded = family.encode((*trunk, Message("user", content)))
        numbers = [table.acquire(ImageView(image.image, image.among_others)) for image in encoded.images]
        grids |= {number: image.grid for number, image in zip(numbers, encoded.images, strict=True)}
        places = [ImagePlace(image.spans, number) for image, number in zip(encoded.images, numbers, strict=True)]
        sequences.append(TokenSequence(encoded.input_ids, image_keys(len(encoded.input_ids), places)))
        tokens.append((encoded.input_ids, [image.grid for image in encoded.images]))
    tree = build_tree(sequences)
    positions = family.positions(tree, grids)
    assert len(tree) < 0.8 * sum(map(len, sequences))
    if family.position_rows == 1:
        assert all(grid is None for grid in grids.values())
        assert (positions == tree.depths[None]).all()
        return
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    for number, (ids, shapes) in enumerate(tokens):
        own = model.model.get_rope_index(
            torch.from_numpy(ids)[None].long(),
            mm_token_type_ids=torch.from_numpy((ids == config.image_token_id).astype(np.int32))[None],
            image_grid_thw=torch.tensor([[1, 2 * height, 2 * width] for height, width in shapes]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        )[0]
        assert positions[:, tree.path(number)].tolist() == own[:, 0].tolist()
