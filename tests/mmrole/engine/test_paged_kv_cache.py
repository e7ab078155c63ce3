"""Pages: nobody loses a slot that it sees, no page has two owners, and all of them come back."""

import pytest
import torch
from fixtures.engine import make_engine
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.triton_support import can_compile
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.engine.page_tables import LEAST_ROWS, LEAST_SLOTS, WASTE, StepShape
from mmrole.engine.paged_kv_cache import PagedKVCache, PagedTree, pages_for, suits_pages
from mmrole.models.families import KVShape
from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel
from mmrole.qwen_vl.random_checkpoint import random_config

SIZE = 16


@pytest.fixture(scope="module")
def model(tokenizer) -> QwenVLTreeModel:
    """On the meta device: pages are counted, not filled."""
    config = random_config(256, hidden_size=128, num_hidden_layers=1, intermediate_size=256, visual_width=32)
    family = QwenVL(tokenizer, config)
    return QwenVLTreeModel(family.empty_module(), family)


def places(tree: PagedTree, leaf: int) -> list[tuple[int, int]]:
    """Page and slot of all that a leaf sees, in order, without the steps since the tree was last kept."""
    seen = [slot for slot, bits in enumerate(tree.visible.tolist()) if bits >> leaf & 1]
    return [(tree.pages[slot // SIZE], slot % SIZE) for slot in seen]


@given(st.data())
def test_leaves_that_go_on_see_what_they_saw_where_it_was(model, data):
    leaves = data.draw(st.integers(1, 9))
    nodes = data.draw(st.integers(leaves, 200))
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=nodes, max_size=nodes)) for _ in range(leaves)])
    cache = PagedKVCache(model, 2_000, SIZE)
    remaining = data.draw(st.integers(0, 60))
    cache.add(mask, remaining)
    (tree,), pool = cache.trees, cache.pool
    assert pool is not None
    columns = list(range(leaves))
    while columns:
        steps = data.draw(st.integers(0, remaining))
        before = [places(tree, leaf) for leaf in range(tree.leaves)]
        first = tree.length
        for _ in range(steps):
            cache.count_step()
        stepped = [first + step * tree.leaves for step in range(steps)]
        own = [[divmod(slot + leaf, SIZE) for slot in stepped] for leaf in range(tree.leaves)]
        own = [[(tree.pages[page], slot) for page, slot in each] for each in own]
        columns = data.draw(st.lists(st.sampled_from(range(tree.leaves)), unique=True, max_size=tree.leaves))
        remaining -= steps
        cache.keep([(0, columns, remaining)] if columns else [])
        taken = [page for each in cache.trees for page in each.pages]
        assert sorted(taken + pool.free) == list(range(1, pool.pages + 1))
        assert [places(tree, leaf) for leaf in range(len(columns))] == [before[old] + own[old] for old in columns] or (
            not columns
        )
        if columns:
            assert len(tree.pages) == pages_for(tree.length + tree.leaves * remaining, SIZE)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 40_000), st.lists(st.tuples(*[st.integers(0, 10)] * 3)))
def test_a_step_fits_its_shape_which_is_not_much_larger(rows, trees, slots, known):
    shapes = [StepShape(1 << a, 1 << b, 1024 << c) for a, b, c in known]
    shape = StepShape.of(rows, trees, slots, shapes)
    least = StepShape(rows, trees, slots)
    assert shape.holds(least)
    most = StepShape(
        *(2 * WASTE * max(each, low) for each, low in zip(least, (LEAST_ROWS, 1, LEAST_SLOTS), strict=True))
    )
    assert most.holds(shape)


def test_trees_wait_for_pages_and_one_that_is_too_large_gets_memory_of_its_own(model):
    cache = PagedKVCache(model, 10 * SIZE, SIZE)
    cache.add(torch.ones(2, 3 * SIZE, dtype=torch.bool), SIZE)
    assert cache.has_room(4 * SIZE, 1, SIZE)
    assert not cache.has_room(4 * SIZE + 1, 1, SIZE)
    cache.clear()
    assert cache.has_room(10 * SIZE, 1, 0)
    cache.add(torch.ones(1, 25 * SIZE, dtype=torch.bool), 0)
    assert len(cache.trees[0].pages) == 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pages_are_for_gpus_where_triton_can_attend_to_them(model, dtype):
    class OnGPU:
        """What is asked of a model; there may be no GPU here."""

        device = torch.device("cuda")
        kv_shapes = (KVShape(2, 8, dtype, device),)

    assert not suits_pages(model)
    if can_compile() and dtype == torch.float32:
        assert suits_pages(OnGPU())
    else:
        with pytest.warns(UserWarning, match="without CUDA graphs"):
            assert not suits_pages(OnGPU())


def test_memory_is_taken_once_and_pages_of_finished_trees_come_back(make_model, tokenizer):
    requests = [
        ChatRequest(str(n), one_turn("Play.", f"{n} Hello " * 40), GenerationSettings(8, do_sample=False))
        for n in range(24)
    ]
    engine = make_engine(make_model(torch.float32), tokenizer, max_batch_tokens=2_000, paged=True)
    pool, at_work = None, []
    for reply in engine.generate(requests):
        cache = engine.runner.cache
        assert pool in (None, cache.pool), reply
        pool = cache.pool
        at_work.append(len(cache.trees))
    assert pool is not None
    assert pool.pages == pages_for(2_000, 64)
    assert 3 < max(at_work) < 24
    assert len(pool.free) == pool.pages
