"""Parts of the GPU benchmark: reviews and answers against generate() and generate_batch(), reading prompts, a step."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from bench_answers import byte_tokenizer, generate_alone
from bench_answers import least_seconds as least_seconds_of_answers
from bench_answers import make_requests as make_answer_requests
from bench_machine import Costs, length_profile, peak_bytes, reset_peak, timed
from bench_review import ReviewTree, least_seconds
from bench_review import make_requests as make_review_requests

if TYPE_CHECKING:
    from bench_gpu_part import Setting
    from transformers import Qwen2Config
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

    from mmrole.data.requests import ChatRequest
    from mmrole.engine.engine import Engine
    from mmrole.qwen_vl import QWenLMHeadModel

AGAIN_BELOW = 15.0
"""Seconds of a first run of the engine that leave time for a second one, in which nothing is recorded or compiled."""
LONGEST_BATCHED = 2048
"""Positions of a prompt that `generate_batch` gets: behind them Qwen-VL computes other rotations than its likes."""


def reviews(setting: Setting) -> None:
    """12 answers with eight reviews each, of the published lengths."""
    trees = review_trees(setting)
    by_answer = [make_review_requests(tree, str(number)) for number, tree in enumerate(trees)]
    requests = [request for of_answer in by_answer for request in of_answer]
    alone = requests[3 :: max(1, len(requests) // (2 if setting.tiny else 4))]
    prompts = [
        (tree.shared + suffix, number, tree.shared) for number, tree in enumerate(trees) for suffix in tree.suffixes
    ]
    replies = [reply for tree in trees for reply in tree.replies]
    compare(
        setting,
        "review",
        requests,
        alone,
        lambda costs: least_seconds(trees, costs, setting.machine),
        prompts,
        round(sum(replies) / len(replies)),
    )


def answers(setting: Setting) -> None:
    """32 prompts of the published lengths, 64 tokens for each."""
    number, new_tokens = (2, 4) if setting.tiny else (32, 64)
    requests = make_answer_requests(number, new_tokens)
    profile = length_profile("answer_prompts")
    lengths = [profile[(2 * index + 1) * len(profile) // (2 * number)] for index in range(number)]
    compare(
        setting,
        "answer",
        requests,
        requests[:: max(1, number // 4)],
        lambda costs: least_seconds_of_answers(lengths, new_tokens, costs, setting.machine),
        [(length, index, 0) for index, length in enumerate(lengths)],
        new_tokens,
    )


def prefill(setting: Setting) -> None:
    """What reading prompts takes: the reviews' trees with a token each; then a step with all leaves at work."""
    trees = review_trees(setting)
    requests = [request for number, tree in enumerate(trees) for request in make_review_requests(tree, str(number))]
    model = setting.random_model()
    costs, engine = Costs.of(model), make_engine(model)
    first = [replace(request, settings=replace(request.settings, max_new_tokens=1)) for request in requests]
    cold = timed(lambda: list(engine.generate(first)), setting.device)
    seconds = timed(lambda: list(engine.generate(first)), setting.device)
    nodes = sum(tree.shared + sum(tree.suffixes) for tree in trees)
    flops = sum(prefill_flops(tree, costs) for tree in trees)
    setting.add("trees read", len(trees))
    setting.add("nodes read", nodes)
    setting.add("reading them, the first time", cold, "s")
    setting.add("reading them", seconds, "s")
    setting.add("rate of reading", flops / seconds / 1e12, "TFLOP/s")
    setting.add("rate of reading, of the matrix product", 100 * flops / seconds / setting.machine.flops, "%")
    steps = 2 if setting.tiny else 24
    setting.add("leaves of a step", len(requests))
    for what, sampling in (("all leaves", {}), ("all leaves, sampling with top-p 0.3", {"do_sample": True})):
        for request in requests:
            settings = replace(request.settings, max_new_tokens=3 * steps + 8, top_p=0.3, **sampling)
            engine.add(replace(request, settings=settings))
        for _ in range(steps):  # reads the prompts; captures and compiles
            engine.step()
        seconds = timed(lambda: [engine.step() for _ in range(steps)], setting.device) / steps
        engine.close()
        setting.add(f"a step of {what}", 1e3 * seconds, "ms")
    least = step_seconds(trees, 2 * steps, costs, setting)
    setting.add("bound of a step", 1e3 * least, "ms")


def compare(
    setting: Setting,
    what: str,
    requests: Sequence[ChatRequest],
    alone: Sequence[ChatRequest],
    bound: Callable[[Costs], float],
    prompts: Sequence[tuple[int, int, int]],
    new_tokens: int,
) -> None:
    """generate() one at a time, warm; the engine; the bound; generate_batch() of a text model.

    Args:
        setting: what it runs on.
        what: word for a reply.
        requests: all of them.
        alone: those that generate() is timed on.
        bound: the least seconds of all of them.
        prompts: of each request its length, the number of its tree, and how many positions that tree shares.
        new_tokens: of each request, on average.
    """
    setting.add(f"{what}s", len(requests))
    seconds = engine_seconds(setting, what, requests, alone, bound)
    release()
    with setting.alone("generate_batch() of a text model"):
        batched = generate_batch_seconds(setting, prompts, new_tokens)
        setting.add("engine, times generate_batch()", batched / seconds)


def engine_seconds(
    setting: Setting,
    what: str,
    requests: Sequence[ChatRequest],
    alone: Sequence[ChatRequest],
    bound: Callable[[Costs], float],
) -> float:
    """Seconds of the engine for all requests, which generate() is compared with; see `compare`."""
    model = setting.random_model()
    tokenizer, engine = byte_tokenizer(), make_engine(model)
    one_by_one: dict[str, list[int]] = {}
    short = [replace(request, settings=replace(request.settings, max_new_tokens=2)) for request in alone]
    generate_alone(model, tokenizer, short, {})  # warms up at each length
    per_reply = timed(lambda: generate_alone(model, tokenizer, list(alone), one_by_one), setting.device) / len(alone)
    setting.add(f"generate(), one at a time, warm, on {len(alone)}", per_reply, f"s for each {what}")
    least = bound(Costs.of(model))
    reset_peak(setting.device)
    replies: dict[str, list[int]] = {}

    def generate() -> None:
        replies.update((reply.id, list(reply.token_ids)) for reply in engine.generate(requests))

    seconds = timed(generate, setting.device)
    setting.add("engine, first run", seconds, "s")
    if seconds < AGAIN_BELOW:
        seconds = timed(generate, setting.device)
        setting.add("engine, second run", seconds, "s")
    setting.add(f"{what}s a second", len(requests) / seconds)
    setting.add("engine, times generate()", per_reply * len(requests) / seconds)
    setting.add("engine, peak memory", peak_bytes(setting.device) / 2**30, "GiB")
    setting.add("bound", least, "s")
    setting.add("engine, of the bound", 100 * least / seconds, "%")
    same = sum(one_by_one[request.id] == replies[request.id] for request in alone)
    setting.add("with the tokens of generate()", f"{same} of {len(alone)}")
    return seconds


def generate_batch_seconds(setting: Setting, prompts: Sequence[tuple[int, int, int]], new_tokens: int) -> float:
    """Seconds of transformers' continuous batching on random text of the same lengths, in a model of the same sizes.

    As `generate_batch()` does it, but with its preparation (memory, CUDA graphs) and a first few prompts apart. That
    model has no images, and prompts end at `LONGEST_BATCHED` positions: its time is compared, not its tokens.
    """
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen2ForCausalLM
    from transformers.generation.continuous_batching.utils import WorkloadHints

    with setting.device:  # where initial values are drawn in seconds
        model = Qwen2ForCausalLM._from_config(
            text_config(setting), attn_implementation="paged|sdpa", dtype=setting.dtype
        ).eval()
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, num_return_sequences=1
    )
    inputs = random_prompts(prompts, model.config.vocab_size)
    batching = model.continuous_batching_context_manager(
        generation_config=settings,
        continuous_batching_config=(
            ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64) if setting.tiny else None
        ),
        timeout=5,
        workload_hints=WorkloadHints(LONGEST_BATCHED, new_tokens, len(inputs)),
    )
    began = time.monotonic()
    with torch.no_grad(), batching as manager:
        ask(manager, random_prompts([(100, 0, 0), (60, 1, 0)], model.config.vocab_size), 4)
        setting.add("generate_batch() of a text model, preparation", time.monotonic() - began, "s")
        seconds = timed(lambda: ask(manager, inputs, new_tokens), setting.device)
    setting.add("generate_batch() of a text model", seconds, "s")
    return seconds


def ask(manager: ContinuousBatchingManager, inputs: list[list[int]], new_tokens: int) -> None:
    """Lets continuous batching answer prompts, as `generate_batch()` does.

    Raises:
        RuntimeError: a reply is missing or short.
    """
    waiting = set(manager.add_requests(inputs=inputs, max_new_tokens=new_tokens))
    while waiting:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("its thread has ended")
        if result is not None and result.is_finished():
            if len(result.generated_tokens) < new_tokens:
                raise RuntimeError(f"a reply of {len(result.generated_tokens)} tokens: {result.error}")
            waiting.remove(result.request_id)


def random_prompts(prompts: Sequence[tuple[int, int, int]], vocabulary: int) -> list[list[int]]:
    """Random ids of these lengths, cut to `LONGEST_BATCHED`; those of a tree share its first positions."""
    rng = np.random.default_rng(0)
    shared: dict[int, list[int]] = {}
    made = []
    for length, tree, common in prompts:
        ids = rng.integers(0, vocabulary, min(length, LONGEST_BATCHED)).tolist()
        common = min(common, LONGEST_BATCHED - 1)
        made.append([*shared.setdefault(tree, ids[:common]), *ids[common:]])
    return made


def text_config(setting: Setting) -> Qwen2Config:
    """A text model of the sizes of the shape's language model."""
    from transformers import Qwen2Config

    vocabulary, width, inner, layers, heads = (512, 128, 128, 2, 2) if setting.tiny else (151936, 4096, 11008, 32, 32)
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
    )


def make_engine(model: QWenLMHeadModel) -> Engine:
    """An engine whose replies have a fixed number of tokens, whatever they are."""
    from mmrole.engine.engine import Engine
    from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel

    family = QwenVL(byte_tokenizer(), model.config)
    family.stop_ids = frozenset()
    return Engine(QwenVLTreeModel(model, family))


def review_trees(setting: Setting) -> list[ReviewTree]:
    """Lengths of the reviews of 12 answers; of one, with replies of three tokens, where nothing but running counts."""
    profile = [ReviewTree(*lengths) for lengths in length_profile("reviews")]
    number = 1 if setting.tiny else 12
    trees = [profile[(2 * index + 1) * len(profile) // (2 * number)] for index in range(number)]
    if setting.tiny:
        return [ReviewTree(tree.shared // 4, tree.suffixes[:4], [3] * 4) for tree in trees]
    return trees


def prefill_flops(tree: ReviewTree, costs: Costs) -> float:
    """Operations that reading a tree takes."""
    scores = tree.shared**2 / 2 + sum(tree.shared * suffix + suffix**2 / 2 for suffix in tree.suffixes)
    nodes = tree.shared + sum(tree.suffixes)
    return costs.image + nodes * costs.per_position + scores * costs.per_score + len(tree.suffixes) * costs.head


def step_seconds(trees: Sequence[ReviewTree], done: int, costs: Costs, setting: Setting) -> float:
    """The bound of a step of all leaves, each with so many tokens behind its prompt."""
    leaves = sum(len(tree.suffixes) for tree in trees)
    own = sum(sum(tree.suffixes) + done * len(tree.suffixes) for tree in trees)
    shared = sum(tree.shared for tree in trees)
    read = own + sum(tree.shared * len(tree.suffixes) for tree in trees)
    flops = leaves * (costs.per_position + costs.head) + read * costs.per_score
    nbytes = costs.weight_bytes + costs.head_bytes + (own + shared) * costs.position_bytes
    return setting.machine.seconds(flops, nbytes)


def release() -> None:
    """Gives the memory of what is no longer used back to the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
