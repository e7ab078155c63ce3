"""Compiled chains of operations give what they give uncompiled, and are compiled once for all lengths."""

import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from mmrole.qwen_vl.compiled import compiled_once, gated, rotated
from mmrole.qwen_vl.rotary import rotary_tables, rotate

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own compiler


def with_gradients(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return output, *torch.autograd.grad(output.square().sum(), leaves)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler")
def test_one_compilation_serves_all_lengths(gradients):
    compiled = compiled_once(lambda states, gate: states * torch.nn.functional.silu(gate), (1, 1))
    before = counters["stats"]["unique_graphs"]
    for length in (40, 7, 128, 33):
        inputs = torch.randn(2, 1, length, 24, generator=torch.Generator().manual_seed(length)).unbind(0)
        for found, expected in zip(with_gradients(compiled, inputs), with_gradients(gated, inputs), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] - before == 1


def test_nothing_is_compiled_on_the_cpu(gradients):
    before = counters["stats"]["unique_graphs"]
    states = torch.randn(1, 2, 5, 8, requires_grad=True)
    tables = rotary_tables(torch.arange(5)[None], torch.ones(1, dtype=torch.int64), 8, 10000.0, torch.float32)
    assert torch.equal(rotated(states, *tables), rotate(states, *tables))
    assert counters["stats"]["unique_graphs"] == before
