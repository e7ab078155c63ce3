"""`--checkpoint_layers`: which blocks a backward pass computes again, with the same gradients."""

import pytest
import torch

from mmrole.base.errors import UserError
from mmrole.qwen_vl.blocks import QWenBlock
from mmrole.qwen_vl.vision import VisionBlock
from mmrole.training.batches import collate
from mmrole.training.loss import tree_loss
from mmrole.training.recomputation import check_checkpoint_layers, limit_recomputation

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is not in 5.17


def passes(model, encoded, family) -> tuple[list[int], list[int]]:
    """How often the blocks of language model and vision tower are computed in a forward and a backward pass."""
    counts = {module: 0 for module in model.modules() if isinstance(module, QWenBlock | VisionBlock)}

    def count(norm, inputs):
        counts[owner[norm]] += 1

    owner = {module.ln_1: module for module in counts}
    hooks = [norm.register_forward_pre_hook(count) for norm in owner]
    tree_loss(model, collate(encoded, family), family).sum.backward()
    for hook in hooks:
        hook.remove()
    return tuple([n for module, n in counts.items() if isinstance(module, kind)] for kind in (QWenBlock, VisionBlock))


@pytest.mark.parametrize(("layers", "expected"), [(None, [2, 2]), (1, [2, 1])])
def test_the_first_blocks_are_computed_again(make_model, encoded, byte_family, layers, expected):
    plain, model = make_model(), make_model()
    for each in (plain, model):
        byte_family.freeze(each, ["vision"])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    limit_recomputation(model, byte_family, layers)
    language, vision = passes(model, encoded, byte_family)
    assert language == expected
    assert set(vision) == {1}
    assert not any(block.gradient_checkpointing for block in model.modules() if isinstance(block, VisionBlock))
    passes(plain, encoded, byte_family)
    for (name, wanted), found in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (wanted.grad is None) == (found.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=0, rtol=1e-12, msg=name)


def test_a_trained_vision_tower_is_computed_again(make_model, encoded, byte_family):
    model = make_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    limit_recomputation(model, byte_family, 1)
    assert passes(model, encoded, byte_family) == ([2, 1], [2, 2])


def test_more_blocks_than_there_are_are_refused(byte_family):
    check_checkpoint_layers(None, byte_family)
    check_checkpoint_layers(2, byte_family)
    with pytest.raises(UserError, match="--checkpoint_layers 3: the model has 2 blocks"):
        check_checkpoint_layers(3, byte_family)


@pytest.mark.parametrize(("frozen", "trained"), [([], False), (["language"], False), (["vision"], True)])
def test_the_table_of_positions_is_trained_only_beside_a_frozen_tower(make_model, byte_family, frozen, trained):
    model = make_model()
    byte_family.freeze(model, frozen)
    assert model.transformer.visual.attn_pool.pos_embed.requires_grad == trained
    assert model.transformer.visual.attn_pool.kv_proj.weight.requires_grad
