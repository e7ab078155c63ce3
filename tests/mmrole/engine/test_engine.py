"""The law of the engine: a reply is what `generate()` gives for the request alone, whatever runs beside it."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fixtures.engine import make_engine
from PIL import Image

from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings
from mmrole.engine.engine import Engine
from mmrole.engine.kv_cache import Lane, TreeKVCache
from mmrole.engine.paged_kv_cache import STEPS_AHEAD
from mmrole.engine.planning import PlannedTree, in_passes
from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel
from mmrole.prompt_tree import TokenSequence, build_tree
from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer

GREEDY = GenerationSettings(max_new_tokens=64, do_sample=False)
SAMPLED = GenerationSettings(max_new_tokens=64, temperature=1.3, top_k=40, top_p=0.9, seed=5)
PENALISED = GenerationSettings(max_new_tokens=64, do_sample=False, repetition_penalty=1.3)
FRAME = 72  # positions of a prompt without its text
SYSTEM = "You are a dedicated role-playing assistant."


def words(length: int, seed: int) -> str:
    """So many characters of text, and so many tokens."""
    source = random.Random(seed)
    return "".join(source.choice("abcdefghij ,.") for _ in range(length))


def three_levels(pictures: list[Image.Image], settings: GenerationSettings) -> list[ChatRequest]:
    """Eight requests about one picture: a common history, two characters, four questions to each."""
    history = words(120, 1)
    return [
        ChatRequest(
            f"{role}-{ask}",
            one_turn(SYSTEM, pictures[0], history + words(80, 10 + role) + words(25, 100 + ask)),
            settings,
        )
        for role in range(2)
        for ask in range(4)
    ]


def mixed(pictures: list[Image.Image], settings: GenerationSettings) -> list[ChatRequest]:
    """Trees and single prompts, with and without pictures, on both sides of 2,048 and 4,096 positions."""
    long = words(4_200, 2)
    edges = [
        ChatRequest(f"length-{length}", one_turn(SYSTEM, long[: length - FRAME]), settings)
        for length in (300, 2_048, 2_049, 4_096, 4_097)
    ]
    shown = [
        ChatRequest("picture-b", one_turn(SYSTEM, pictures[1], words(90, 3)), settings),
        ChatRequest("picture-c", one_turn(SYSTEM, pictures[2], words(1_900, 4)), settings),
        ChatRequest("picture-b again", one_turn(SYSTEM, pictures[1], words(400, 5)), settings),
    ]
    return three_levels(pictures, settings) + edges + shown


def shorter(requests: list[ChatRequest]) -> list[ChatRequest]:
    """Those of a few hundred positions: the operator behind pages takes its time on a CPU."""
    return [request for request in requests if len(request.text) < 1_000]


def answers(
    model: QWenLMHeadModel, tokenizer: QWenTokenizer, requests: list[ChatRequest], **kwargs
) -> dict[str, ChatReply]:
    replies = list(make_engine(model, tokenizer, **kwargs).generate(iter(requests)))
    assert sorted(reply.id for reply in replies) == sorted(request.id for request in requests)
    return {reply.id: reply for reply in replies}


@pytest.fixture(scope="module")
def exact(make_model: Callable) -> QWenLMHeadModel:
    return make_model(torch.float64)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "repetition penalty"])
def test_float64_replies_are_those_of_generate(exact, tokenizer, pictures, generate_alone, settings):
    requests = mixed(pictures, settings)
    replies = answers(exact, tokenizer, requests)
    of_pages = requests if settings is GREEDY else shorter(requests)
    assert answers(exact, tokenizer, of_pages, paged=True) == {each.id: replies[each.id] for each in of_pages}
    for request in requests:
        alone, reply = generate_alone(exact, request), replies[request.id]
        assert list(reply.token_ids) == alone.tokens, request.id
        assert reply.finish_reason == ("stop" if alone.stopped else "length")
        assert reply.usage.new_tokens == len(alone.tokens) + alone.stopped
    assert {2_048, 2_049, 4_096, 4_097} <= {reply.usage.prompt_tokens for reply in replies.values()}
    assert any(reply.usage.new_tokens == 64 for reply in replies.values())


@pytest.mark.parametrize(
    ("attention", "settings"),
    [("sdpa", GREEDY), ("sdpa", SAMPLED), ("eager", GREEDY)],
    ids=["sdpa greedy", "sdpa sampled", "eager greedy"],
)
def test_float32_replies_agree_up_to_the_first_close_call(
    make_model, tokenizer, pictures, generate_alone, settings, attention
):
    model = make_model(torch.float32)
    model.set_attn_implementation(attention)
    requests = mixed(pictures, settings)
    replies = answers(model, tokenizer, requests)
    of_pages = answers(model, tokenizer, shorter(requests), paged=True)
    compared = 0
    for request in requests:
        alone = generate_alone(model, request)
        sure = next((step for step, margin in enumerate(alone.margins) if margin < 1e-4), len(alone.margins))
        for reply in (replies[request.id], of_pages.get(request.id, replies[request.id])):
            assert list(reply.token_ids[:sure]) == alone.tokens[:sure], request.id
        compared += sure
    assert compared > 32 * len(requests)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_reply_does_not_depend_on_what_runs_beside_it(exact, tokenizer, pictures, settings, paged):
    requests = shorter(mixed(pictures, settings)) if paged else mixed(pictures, settings)
    together = answers(exact, tokenizer, requests, paged=paged)
    shuffled = random.Random(0).sample(requests, len(requests))
    assert answers(exact, tokenizer, shuffled, max_batch_tokens=6_000, window=7, paged=paged) == together
    assert answers(exact, tokenizer, requests, max_batch_tokens=1, paged=paged) == together
    alone = answers(exact, tokenizer, requests[5:6], paged=paged)
    assert alone == {requests[5].id: together[requests[5].id]}


def test_requests_of_different_settings_share_a_batch(exact, tokenizer, pictures, paged):
    requests = [
        ChatRequest(f"{request.id} {number}", request.messages, settings)
        for number, settings in enumerate(
            (GREEDY, SAMPLED, PENALISED, GenerationSettings(max_new_tokens=3, do_sample=False))
        )
        for request in three_levels(pictures, settings)
    ]
    together = answers(exact, tokenizer, requests, paged=paged)
    for number in range(4):
        of_kind = [request for request in requests if request.id.endswith(f" {number}")]
        assert answers(exact, tokenizer, of_kind, paged=paged) == {
            request.id: together[request.id] for request in of_kind
        }


def test_equal_requests_are_drawn_apart(exact, tokenizer, pictures, paged):
    requests = [ChatRequest(f"twin {n}", one_turn(SYSTEM, pictures[0], words(300, 1)), SAMPLED) for n in range(4)]
    replies = answers(exact, tokenizer, requests, paged=paged)
    assert len({reply.token_ids for reply in replies.values()}) == 4
    assert answers(exact, tokenizer, requests[2:3], paged=paged)["twin 2"] == replies["twin 2"]


def test_replies_that_are_longer_than_what_is_laid_out_at_once_go_on(make_model, tokenizer, pictures):
    model, long = make_model(torch.float64), GenerationSettings(max_new_tokens=STEPS_AHEAD + 150, top_p=1.0)
    requests = [
        ChatRequest(f"{name} {n}", one_turn(SYSTEM, text, str(n)), long)
        for name, text in (("tree", words(300, 1)), ("alone", words(30, 2)))
        for n in range(8 if name == "tree" else 1)
    ]
    family = QwenVL(tokenizer, model.config)
    family.stop_ids = frozenset()
    engines = [Engine(QwenVLTreeModel(model, family), 30_000, paged=paged) for paged in (False, True)]
    lanes, pages = ({reply.id: reply for reply in engine.generate(requests)} for engine in engines)
    assert pages == lanes
    assert {len(reply.token_ids) for reply in pages.values()} == {STEPS_AHEAD + 150}


def test_common_prefixes_are_read_once_and_images_encoded_once(exact, tokenizer, pictures, paged):
    encoded, read = [], []
    hooks = [
        exact.transformer.visual.register_forward_hook(lambda module, args, output: encoded.append(len(args[0]))),
        exact.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["position_ids"].shape), with_kwargs=True
        ),
    ]
    try:
        replies = answers(exact, tokenizer, mixed(pictures, GenerationSettings(2, do_sample=False)), paged=paged)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(encoded) == 3
    tree_of_eight = max(shape[1] for shape in read if shape[1] < 2_000)
    assert tree_of_eight < 1.25 * replies["0-0"].usage.prompt_tokens + 8 * 40
    prefilled = sum(length for rows, length in read if length > 64)
    assert prefilled < sum(reply.usage.prompt_tokens for reply in replies.values()) - 6 * 400


def test_small_trees_are_read_together(exact, tokenizer, pictures, paged):
    """A large tree alone, of another NTK factor; small ones as many as have a thousand positions together."""
    settings = GenerationSettings(3, do_sample=False)
    long = ChatRequest("long", one_turn(SYSTEM, words(2_300, 1)), settings)
    short = [ChatRequest(f"{n}", one_turn(SYSTEM, words(100 + 9 * n, 2 + n)), settings) for n in range(6)]
    shown = [ChatRequest(f"p{n}", one_turn(SYSTEM, pictures[n], words(20, n)), settings) for n in range(3)]
    passes = []
    with exact.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["position_ids"].shape[1]), with_kwargs=True
    ):
        together = answers(exact, tokenizer, [*short, long, *shown], paged=paged)
    assert len([nodes for nodes in passes if nodes > 64]) <= 5
    for request in [short[0], short[-1], long, shown[1]]:
        (alone,) = answers(exact, tokenizer, [request]).values()
        assert alone.token_ids == together[request.id].token_ids


def test_passes_keep_the_order_and_their_size():
    def tree(length: int) -> PlannedTree:
        sequence = TokenSequence(np.arange(length))
        return PlannedTree([], build_tree([sequence]), np.zeros((1, length), dtype=np.int64), 1)

    trees = [tree(length) for length in (5, 5, 30, 3, 4, 10, 1)]
    passes = list(in_passes(trees, 10))
    assert [planned for together in passes for planned in together] == trees
    assert [[len(planned.tree) for planned in together] for together in passes] == [[5, 5], [30], [3, 4], [10], [1]]


def test_requests_are_taken_in_as_a_stream(exact, tokenizer, paged):
    taken = []

    def stream():
        for number in range(40):
            taken.append(number)
            yield ChatRequest(str(number), one_turn(SYSTEM, words(50, number)), GenerationSettings(4, do_sample=False))

    replies = make_engine(exact, tokenizer, max_batch_tokens=500, window=5, paged=paged).generate(stream())
    next(replies)
    assert len(taken) <= 10
    assert len(list(replies)) == 39


def test_no_request_no_reply(exact, tokenizer, paged):
    assert list(make_engine(exact, tokenizer, paged=paged).generate([])) == []


def test_out_of_memory_halves_the_budget_and_loses_nothing(exact, tokenizer, pictures, paged):
    requests = shorter(mixed(pictures, GREEDY)) if paged else mixed(pictures, GREEDY)
    expected = answers(exact, tokenizer, requests, paged=paged)
    passes = iter(range(10_000))

    def fail(module, args, kwargs):
        if next(passes) in (3, 30, 31, 77):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    engine = make_engine(exact, tokenizer, max_batch_tokens=50_000, paged=paged)
    hook = exact.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="going on with batches of"):
            replies = list(engine.generate(requests))
    finally:
        hook.remove()
    assert {reply.id: reply for reply in replies} == expected
    assert len(replies) == len(expected)
    assert engine.max_batch_tokens == 50_000 // 2**4
    assert len(engine.images) == 0


def test_out_of_memory_of_a_single_request_is_an_error_that_names_it(exact, tokenizer, pictures, paged):
    def fail(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = exact.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError, match="request '"):
            list(make_engine(exact, tokenizer, paged=paged).generate(three_levels(pictures, GREEDY)))
    finally:
        hook.remove()


def test_memory_of_finished_trees_is_freed(exact, tokenizer):
    requests = [
        ChatRequest(str(n), one_turn(SYSTEM, words(300, n)), GenerationSettings(8, do_sample=False)) for n in range(24)
    ]
    sizes = []

    def note(module, args, kwargs):
        if isinstance(kwargs.get("tree_attention"), TreeKVCache):
            sizes.append(sum(len(lane.visible) * lane.length for lane in kwargs["tree_attention"].lanes))

    hook = exact.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        answers(exact, tokenizer, requests, max_batch_tokens=2_000)
    finally:
        hook.remove()
    assert sizes
    assert max(sizes) <= 2_000


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GenerationSettings(**wrong)


def test_an_answer_with_broken_markup_is_still_a_reply(make_model, tokenizer, paged):
    model = make_model(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.img_start_id] = 0.01
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.lm_head.bias[tokenizer.img_start_id] = 5.0
    (reply,) = make_engine(model, tokenizer, paged=paged).generate(
        [ChatRequest("x", one_turn(SYSTEM, "hello"), GenerationSettings(4, do_sample=False))]
    )
    assert reply.token_ids == (tokenizer.img_start_id,) * 4
    assert reply.text == ""


def test_replies_that_are_finished_come_before_an_error(exact, tokenizer, tmp_path, paged):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    one = GenerationSettings(1, do_sample=False)
    requests = [ChatRequest(str(n), one_turn(SYSTEM, words(300 - n, n)), one) for n in range(9)]
    replies = make_engine(exact, tokenizer, paged=paged).generate(
        [*requests, ChatRequest("bad", one_turn(SYSTEM, bad, "x"), one)]
    )
    assert len([next(replies) for _ in requests]) == 9
    with pytest.raises(OSError, match=r"bad\.png"):
        next(replies)


def test_a_request_may_come_twice(exact, tokenizer, pictures, paged):
    request = ChatRequest("a", one_turn(SYSTEM, pictures[0], "hello"), GREEDY)
    first, second = make_engine(exact, tokenizer, paged=paged).generate([request, request])
    assert first == second


def test_not_a_number_is_an_error_that_names_the_request(make_model, tokenizer, paged):
    model = make_model(torch.float32)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="'sick'"):
        list(
            make_engine(model, tokenizer, paged=paged).generate(
                [ChatRequest("sick", one_turn(SYSTEM, "hello"), GREEDY)]
            )
        )


def test_rebuilding_holds_one_layer_twice_at_the_most(exact, tokenizer):
    memory = TreeKVCache(QwenVLTreeModel(exact, QwenVL(tokenizer, exact.config)))
    masks = [torch.ones(1, 500 + n, dtype=torch.bool) for n in range(12)]
    for mask in masks:
        memory.add(mask, 32)
    memory.lay_out()
    layer = memory.lanes[0].keys[0].nbytes
    most = []
    taken = Lane.take_memory

    def note(lane, shape):
        most.append(sum(each.nbytes for old in (first, lane) for each in (*old.keys, *old.values)))
        return taken(lane, shape)

    first = memory.lanes[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "take_memory", note)
        memory.keep([(row, [0], 32) for row in range(12)])
        memory.lay_out()
    assert max(most) + layer <= (2 * exact.config.num_hidden_layers + 2) * layer
