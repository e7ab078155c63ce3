"""Triton's kernels for chains of small operations, in its interpreter, against the chains."""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED, run_interpreted

from mmrole.qwen_vl.compiled import gated, rotated
from mmrole.qwen_vl.rotary import rotary_tables

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter, see below")


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "heads", "positions", "d", "channels"), [(1, 2, 37, 32, 32), (2, 3, 5, 20, 12)])
def test_law_of_rotations(batch, heads, positions, d, channels, dtype):
    from mmrole.qwen_vl.fused import rotate_fused

    generator = torch.Generator().manual_seed(positions)
    states = torch.randn(batch, positions, heads + 1, d, generator=generator).to(dtype).transpose(1, 2)[:, :heads]
    places = torch.arange(positions)[None] * 7
    tables = rotary_tables(places, torch.ones(1, dtype=torch.int64), channels, 10000.0, torch.float32)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(rotate_fused(states, *tables), rotated(states, *tables), atol=tolerance, rtol=tolerance)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_law_of_gates(dtype):
    from mmrole.qwen_vl.fused import gate_fused

    states, gate = torch.randn(2, 1, 3, 700, generator=torch.Generator().manual_seed(1)).to(dtype).unbind(0)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(gate_fused(states, gate), gated(states, gate), atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(INTERPRETED, reason="is what runs them")
def test_the_kernels_keep_the_laws():
    run_interpreted(os.path.abspath(__file__))
