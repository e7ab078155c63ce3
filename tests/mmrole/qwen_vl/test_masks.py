"""Attention masks: one bit for each query and key with explicit positions, as prompt trees need them; dtypes."""

import os
import shutil

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own compiler

ATTENTIONS = ("eager", "sdpa")
PREFIX, LEFT, RIGHT = 30, 12, 9


@pytest.fixture(scope="module")
def tree() -> dict[str, torch.Tensor]:
    """A prefix with two branches, in depth-first order: ids, depths, and who may attend to whom."""
    ids = torch.randint(0, 2000, (1, PREFIX + LEFT + RIGHT), generator=torch.Generator().manual_seed(3))
    depths = torch.cat((torch.arange(PREFIX + LEFT), PREFIX + torch.arange(RIGHT)))[None]
    allowed = torch.ones(len(ids[0]), len(ids[0]), dtype=torch.bool).tril()
    allowed[PREFIX + LEFT :, PREFIX : PREFIX + LEFT] = False
    return {"input_ids": ids, "position_ids": depths, "attention_mask": allowed[None, None]}


def sequences(tree: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The indices of the tree's two sequences."""
    prefix = torch.arange(PREFIX)
    return [torch.cat((prefix, PREFIX + torch.arange(LEFT))), torch.cat((prefix, PREFIX + LEFT + torch.arange(RIGHT)))]


def close(ours: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 5e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("offset", [0, 500], ids=["short", "across_seq_length"])
def test_a_tree_equals_its_sequences(models, tree, attention, dtype, atol, offset):
    model = models("mini", attention, dtype)
    moved = tree | {"position_ids": tree["position_ids"] + offset, "ntk_alpha": torch.tensor([3])}
    logits = model(**moved).logits
    for index in sequences(tree):
        alone = model(
            tree["input_ids"][:, index], position_ids=moved["position_ids"][:, index], ntk_alpha=torch.tensor([3])
        )
        close(logits[:, index], alone.logits, atol)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_of_a_tree_are_those_of_its_sequences(fresh, tree, attention, gradients):
    model = fresh(attn_implementation=attention, dtype=torch.float64)
    parameter = model.transformer.h[0].attn.c_attn.weight
    weight = torch.randn(2304, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((logits @ weight).sum(), parameter)[0]

    whole = model(**tree).logits
    summed = sum(
        gradient(model(tree["input_ids"][:, index]).logits[:, start:])
        for index, start in zip(sequences(tree), (0, PREFIX), strict=True)
    )
    torch.testing.assert_close(gradient(whole), summed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_factors_of_each_position_put_both_sides_of_seq_length_into_one_call(mini, models, attention):
    # Two sequences side by side without a shared prefix, one short, one beyond seq_length, each under its own factor.
    model, ids = models("mini", attention), torch.randint(0, 2000, (1, 640), generator=torch.Generator().manual_seed(8))
    owner = torch.arange(640) >= 100
    mask = torch.ones(640, 640, dtype=torch.bool).tril() & (owner[:, None] == owner)
    positions = torch.cat((torch.arange(100), torch.arange(540)))[None]
    factors = torch.where(owner, 3, 1)[None]
    logits = model(ids, attention_mask=mask[None, None], position_ids=positions, ntk_alpha=factors).logits
    close(logits[:, :100], model(ids[:, :100]).logits, mini.TIGHT)
    close(logits[:, 100:], model(ids[:, 100:]).logits, mini.TIGHT)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_image_in_a_shared_prefix(mini, models, attention):
    model, prompt = models("mini", attention), mini.ids("image_1")
    start = int((prompt[0] == mini.image_start_id + 1).nonzero()[0]) + 1  # behind the image
    length = prompt.shape[1]
    ids = torch.cat((prompt, prompt[:, start:].flip(1)), 1)
    tail = length - start
    mask = torch.ones(length + tail, length + tail, dtype=torch.bool).tril()
    mask[length:, start:length] = False
    positions = torch.cat((torch.arange(length), start + torch.arange(tail)))[None]
    pixel_values = mini.pixels(prompt)
    logits = model(ids, attention_mask=mask[None, None], position_ids=positions, pixel_values=pixel_values).logits
    assert mini.difference("image_1", logits[:, length - 8 : length]) < mini.TIGHT
    other = torch.cat((prompt[:, :start], prompt[:, start:].flip(1)), 1)
    close(logits[:, length:], model(other, pixel_values=pixel_values).logits[:, start:], mini.TIGHT)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_leaves_grow_behind_a_cached_tree(mini, models, tree, attention):
    model = models("mini", attention)
    first, second = sequences(tree)
    cache = model(**tree).past_key_values
    new = torch.tensor([[5, 6]])
    allowed = torch.zeros(1, 1, 2, PREFIX + LEFT + RIGHT + 2, dtype=torch.bool)
    for row, index in enumerate((first, second)):
        allowed[0, 0, row, index] = True
        allowed[0, 0, row, PREFIX + LEFT + RIGHT + row] = True
    positions = torch.tensor([[len(first), len(second)]])
    logits = model(new, attention_mask=allowed, position_ids=positions, past_key_values=cache).logits
    for row, index in enumerate((first, second)):
        alone = torch.cat((tree["input_ids"][:, index], new[:, row : row + 1]), 1)
        close(logits[:, row], model(alone).logits[:, -1], mini.TIGHT)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("form", ["additive", "minus_infinity", "integer", "for_each_row"])
def test_other_forms_of_the_same_mask(mini, models, tree, attention, form):
    model, allowed = models("mini", attention), tree["attention_mask"]
    expected = model(**tree).logits
    mask = {
        "additive": torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min),
        "minus_infinity": torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf),
        "integer": allowed.long(),
        "for_each_row": allowed.expand(2, -1, -1, -1),
    }[form]
    ids = tree["input_ids"].expand(len(mask), -1)
    logits = model(ids, attention_mask=mask, position_ids=tree["position_ids"].expand(len(mask), -1)).logits
    close(logits, expected.expand_as(logits), mini.TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("additive", [False, True])
def test_a_query_that_may_attend_to_nothing_spoils_no_other(mini, models, tree, attention, dtype, additive):
    model, allowed = models("mini", attention, dtype), tree["attention_mask"].clone()
    allowed[..., 3, :] = False
    allowed[..., 4:, 3] = False
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min) if additive else allowed
    logits = model(**tree | {"attention_mask": mask}).logits
    others = torch.arange(logits.shape[1]) != 3
    assert logits[:, others].isfinite().all()
    left_out = {key: value[..., others] for key, value in tree.items() if key != "attention_mask"}
    expected = model(**left_out, attention_mask=allowed[..., others, :][..., others]).logits
    close(logits[:, others], expected, mini.TIGHT if dtype == torch.float32 else 0.2)


@pytest.fixture
def compiler() -> None:
    """FlexAttention is compiled, on the CPU with a C++ compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler: torch cannot compile FlexAttention for the CPU")


@pytest.mark.long
@pytest.mark.parametrize("case", ["text_short", "length_513", "image_1", "batch_left_padded"])
def test_flex_attention_agrees_with_the_golden_figures(mini, models, compiler, case):
    model, rows = models("mini", "flex_attention"), mini.rows(case)
    logits = model(**mini.inputs(case), use_cache=False, logits_to_keep=rows).logits
    assert mini.difference(case, logits) < mini.ATOL


@pytest.mark.parametrize("as_block_mask", [False, pytest.param(True, marks=pytest.mark.long)])
def test_flex_attention_takes_a_tree(mini, models, tree, compiler, as_block_mask):
    mask = tree["attention_mask"]
    if as_block_mask:
        length = mask.shape[-1]
        mask = create_block_mask(
            lambda b, h, q, k: tree["attention_mask"][0, 0, q, k], 1, None, length, length, device="cpu"
        )
    logits = models("mini", "flex_attention")(**tree | {"attention_mask": mask}, use_cache=False).logits
    close(logits, models()(**tree).logits, mini.ATOL)


def test_masks_that_cannot_be_taken_are_refused(models, tree):
    model, ids = models(), tree["input_ids"]
    with pytest.raises(ValueError, match=r"expected \[batch, keys\] or \[batch, 1, queries, keys\]"):
        model(ids, attention_mask=tree["attention_mask"][0])
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, ids.shape[1], ids.shape[1], device="cpu")
    with pytest.raises(ValueError, match="needs attn_implementation='flex_attention'"):
        model(ids, attention_mask=block_mask)
