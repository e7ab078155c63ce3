"""The step that a CUDA graph records: it waits for nobody, takes nothing from the host, and is few operations."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from fixtures.windowed import WindowedModel, WindowedQwen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatRequest, GenerationSettings
from mmrole.engine.decoder import Decoder
from mmrole.engine.decoding import LeafState
from mmrole.engine.paged_kv_cache import PagedKVCache
from mmrole.engine.sampling import Choice, Draws
from mmrole.engine.step_graphs import SWITCH, StepGraphs
from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel
from mmrole.qwen_vl.random_checkpoint import random_config

MOST_OPERATIONS = 40
GREEDY = GenerationSettings(do_sample=False)
SETTINGS = {
    "greedy": [GREEDY],
    "sampled": [GREEDY, GenerationSettings(top_p=0.9, temperature=1.3, top_k=40)],
    "top-k": [GenerationSettings(top_p=1.0, top_k=3)],
    "repetition penalty": [GREEDY, GenerationSettings(do_sample=False, repetition_penalty=1.2)],
}


class OnDevice(TorchDispatchMode):
    """Counts operations, and refuses those that wait for the device or take something from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.counts[name] += 1
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "equal"))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        assert devices <= {"meta"}, f"{name} takes tensors of {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def decoder(tokenizer) -> Callable[..., Decoder]:
    """Makes a decoder for trees without memory or weights, all of whose tensors are on the meta device."""

    def make(
        layers: int = 2, trees: int = 3, settings: list[GenerationSettings] | None = None, windowed: bool = False
    ) -> Decoder:
        config = random_config(256, hidden_size=128, num_hidden_layers=layers, intermediate_size=256, visual_width=32)
        family = WindowedQwen(tokenizer, config) if windowed else QwenVL(tokenizer, config)
        model = (WindowedModel if windowed else QwenVLTreeModel)(family.empty_module(), family)
        cache = PagedKVCache(model, 10_000)
        for tree in range(trees):
            cache.add(torch.ones(1 + tree % 3, 70 + tree, dtype=torch.bool), 64)
        cache.lay_out()
        decoder = Decoder(model, cache)
        kinds = settings or [GREEDY]
        leaves = []
        for number in range(sum(cache.leaves)):
            draws = Draws(ChatRequest(str(number), one_turn("Play.", "Hello")).random_stream())
            leaves.append(LeafState(5, 70, 1, Choice(kinds[number % len(kinds)], draws, 1, [3, 5])))
        decoder.begin(leaves)
        return decoder

    return make


def operations(decoder: Decoder) -> Counter[str]:
    """The operations of a step."""
    with torch.inference_mode(), OnDevice() as mode:
        decoder.run()
    return mode.counts


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_step_waits_for_nobody_and_takes_nothing_from_the_host(decoder, settings):
    assert operations(decoder(settings=settings)).total() > 0


def test_a_layer_is_few_operations_however_many_trees_there_are(decoder):
    counts = [operations(decoder(layers=layers)) for layers in (2, 3)]
    a_layer = counts[1] - counts[0]
    assert 10 < a_layer.total() <= MOST_OPERATIONS, a_layer
    assert operations(decoder(layers=3, trees=40)) == counts[1]


def test_windows_cost_a_step_three_operations_and_a_layer_none(decoder):
    without, within = ([operations(decoder(layers=n, windowed=w)) for n in (2, 4)] for w in (False, True))
    assert [count.total() - plain.total() for count, plain in zip(within, without, strict=True)] == [3, 3]


@pytest.mark.parametrize("value", ["0", "1", None, "off"])
def test_a_switch_turns_graphs_off_and_nothing_else_is_taken_for_one(monkeypatch, value):
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    if value == "off":
        with pytest.raises(UserError, match=SWITCH):
            StepGraphs()
    else:
        assert StepGraphs().wanted == (value != "0")


def test_where_no_graph_can_be_recorded_steps_are_taken_as_they_are(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    graphs, taken = StepGraphs(), []
    graphs.run("a shape", lambda: taken.append(1))  # the first one is none in any case
    if torch.cuda.is_available():
        pytest.skip("here graphs can be recorded")
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        graphs.run("a shape", lambda: taken.append(2))
    graphs.run("a shape", lambda: taken.append(3))
    graphs.run("another", lambda: taken.append(4))
    assert taken == [1, 2, 3, 4]
    assert not graphs.recorded
