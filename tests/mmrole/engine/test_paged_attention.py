"""The leaves' attention to a paged KV cache against dense attention; Triton's interpreter runs the kernel."""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED, run_interpreted
from fixtures.paged import CASES, PagedCase, dense_attention, paged_case
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrole.engine.paged_attention import paged_tree_attention


def attend(case: PagedCase, programs_per_sm: int) -> torch.Tensor:
    window = {name: case.tensors[name] for name in ("positions", "slot_positions") if case.window}
    inputs = {name: tensor for name, tensor in case.tensors.items() if name not in window}
    if not INTERPRETED:
        return paged_tree_attention(**inputs, scaling=case.scaling, window=case.window, **window)
    from mmrole.engine.paged_attention_kernel import PagedInputs, Tiling, launch

    tiling = Tiling(slots=32, warps=4, stages=1, programs_per_sm=programs_per_sm)
    return launch(PagedInputs(**inputs), case.scaling, case.window, **window, tiling=tiling)


@settings(max_examples=8 if INTERPRETED else 60)
@given(case=CASES, programs_per_sm=st.sampled_from([1, 40]))
def test_law_every_leaf_gets_what_dense_attention_gives(case, programs_per_sm):
    torch.testing.assert_close(attend(case, programs_per_sm), dense_attention(case), atol=1e-5, rtol=0)


@pytest.mark.parametrize("d", [128, 256])
def test_law_at_large_heads(d):
    case = paged_case(d, [8], d=d, page_size=64, longest=150)
    torch.testing.assert_close(attend(case, 40), dense_attention(case), atol=1e-5, rtol=0)


def test_law_in_half_precision():
    case = paged_case(1, [8, 3], group=7, longest=200, dtype=torch.float16)
    torch.testing.assert_close(attend(case, 40), dense_attention(case), atol=4e-3, rtol=0)


def test_law_a_leaf_that_sees_nothing_gets_zeros():
    case = paged_case(2, [3, 1])
    case.tensors["visible"][0] &= 0b101
    output, row = attend(case, 1), int(case.tensors["first_row"][0]) + 1
    assert output[row].eq(0).all()
    assert output[row + 1].ne(0).all()


@pytest.mark.skipif(INTERPRETED, reason="is what runs them")
def test_the_kernel_keeps_the_laws():
    run_interpreted(os.path.abspath(__file__))


@pytest.mark.parametrize("window", [0, 30])
def test_it_is_a_sound_operator(window):
    case = paged_case(3, [3, 0, 2], window=window)
    torch.library.opcheck(paged_tree_attention, (), {**case.tensors, "scaling": case.scaling, "window": window})


def test_on_meta_it_has_the_shape_of_the_queries():
    tensors = {name: tensor.to("meta") for name, tensor in paged_case(4, [3, 2]).tensors.items()}
    output = paged_tree_attention(**tensors, scaling=1.0)
    assert (output.shape, output.dtype) == (tensors["query"].shape, tensors["query"].dtype)
