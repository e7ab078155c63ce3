"""FlexAttention on forests of any length: what the dense mask gives, from one compiled kernel."""

import os
import shutil

import numpy as np
import pytest
import torch
from fixtures.pictured_trees import pictured_sequences
from torch._dynamo.utils import counters
from torch.nn import functional as F

from mmrole.base.triton_support import can_compile
from mmrole.prompt_tree import TokenSequence, build_tree, concatenate
from mmrole.prompt_tree.flex import BLOCK, FlexForestAttention, flex_is_usable
from mmrole.prompt_tree.mask import Visibility, dense_mask

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own compiler

MOST = 3 * BLOCK


def forest(seed: int, nodes: int) -> torch.Tensor:
    """`last` of two trees, of so many nodes together."""
    random = np.random.default_rng(seed)
    whole = concatenate([build_tree([TokenSequence(random.integers(0, 2, 12)) for _ in range(40)]) for _ in range(2)])
    return torch.from_numpy(whole.last[:nodes]).clamp(max=nodes - 1)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler")
def test_one_compiled_kernel_serves_all_lengths():
    before = counters["stats"]["unique_graphs"]
    for seed, nodes in enumerate((300, 1, BLOCK, BLOCK + 1, 257, MOST)):
        last = forest(seed, nodes)
        generator = torch.Generator().manual_seed(seed)
        query, key, value = torch.randn(3, 1, len(last), 2, 16, generator=generator).transpose(2, 3).unbind(0)
        with torch.no_grad():
            found = FlexForestAttention(last, MOST).attend(0, query, key, value, 0.3)
        expected = F.scaled_dot_product_attention(query, key, value, dense_mask(last)[None], scale=0.3).transpose(1, 2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] - before == 1


@pytest.mark.long
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler")
def test_windows_and_images_that_see_themselves_both_ways():
    windows = (0, 5, 40)
    before = counters["stats"]["unique_graphs"]
    for seed in range(3):
        visibility = Visibility.of(build_tree(pictured_sequences(seed, 12)), True, windows)
        last, first, depths = visibility
        attention = FlexForestAttention(last, MOST, first=first, depths=depths)
        generator = torch.Generator().manual_seed(seed)
        query, key, value = torch.randn(3, 1, 2, len(last), 16, generator=generator).unbind(0)
        for window in windows:
            with torch.no_grad():
                found = attention.attend(0, query, key, value, 0.3, window=window)
            mask = dense_mask(*visibility, window)[None]
            expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3).transpose(1, 2)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] - before <= len(windows)


def test_what_it_cannot_do_is_said():
    last = forest(0, 100)
    with pytest.raises(ValueError, match="a row of 100 nodes is longer than the 99"):
        FlexForestAttention(last, 99)
    states = torch.zeros(1, 2, 100, 16)
    with pytest.raises(ValueError, match="drops no weights"):
        FlexForestAttention(last, MOST).attend(0, states, states, states, 1.0, dropout=0.1)
    with pytest.raises(ValueError, match="a window needs depths"):
        FlexForestAttention(last, MOST).attend(0, states, states, states, 1.0, window=4)


def test_it_is_used_where_it_can_be_compiled(monkeypatch, tmp_path):
    assert not flex_is_usable(8)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    can_compile.cache_clear()
    assert not flex_is_usable(128)
    can_compile.cache_clear()
