"""Times reviews one at a time with generate() against the engine's trees, on the same weights and prompts, in one run.

    python scripts/bench_review.py                                       # mid-size model, CPU, float32
    python scripts/bench_review.py --shape real --device cuda            # 9.6B, bfloat16
    python scripts/bench_review.py --shape qwen2_5_vl                    # Qwen2.5-VL beside Qwen-VL, both mid-size
    python scripts/bench_review.py --against ../other_version            # both versions in turn, best of three

Prints reviews and tokens a second, peak memory, the ratio, and the best that counting operations and bytes at this
machine's measured rates allows. The lengths of the published reviews are in length_profile.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench_against import add_against, compare_versions

if TYPE_CHECKING:
    from bench_machine import Costs, Machine

    from mmrole.data.requests import ChatRequest
    from mmrole.qwen_vl import QWenLMHeadModel


class ReviewTree(NamedTuple):
    """Lengths of the reviews of one answer, in positions."""

    shared: int
    """Of the prefix that all prompts have in common."""
    suffixes: list[int]
    """Of each prompt behind it."""
    replies: list[int]
    """Tokens to generate for each."""


def main(argv: list[str] | None = None) -> int:
    """Runs both ways and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--shape",
        choices=("mid", "real", "qwen2_5_vl"),
        default="mid",
        help="mid-size; Qwen-VL-Chat's 9.6B; or Qwen2.5-VL and Qwen-VL, both mid-size: with each, trees against single "
        "prompts and against padded batches",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--dtype", help="a torch dtype; None is float32 on the CPU and bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--answers", type=int, default=6, help="answers, with eight reviews each")
    parser.add_argument("--one_by_one", type=int, default=8, help="reviews of each answer that generate() is timed on")
    parser.add_argument("--max_batch_tokens", type=int, help="the engine's budget; None is by free memory")
    add_against(parser)
    arguments = parser.parse_args(argv)
    if arguments.against is not None:
        if arguments.shape == "qwen2_5_vl":
            parser.error("--against compares one model; leave out --shape qwen2_5_vl")
        return compare_versions(Path(__file__), arguments.against, argv)
    if arguments.shape == "qwen2_5_vl" and arguments.one_by_one != parser.get_default("one_by_one"):
        parser.error("--one_by_one: with --shape qwen2_5_vl nothing is timed one by one")

    import torch
    from bench_machine import Costs, length_profile, measure, random_model

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    machine = measure(device, dtype)
    print(f"{machine.name}: {machine.flops / 1e9:,.0f} GFLOP/s, {machine.bytes / 1e9:,.0f} GB/s, {dtype}", flush=True)
    profile = [ReviewTree(*lengths) for lengths in length_profile("reviews")]
    number = arguments.answers
    trees = [profile[(2 * index + 1) * len(profile) // (2 * number)] for index in range(number)]
    if arguments.shape == "qwen2_5_vl":
        from bench_families import compare_families

        compare_families(
            [make_requests(tree, str(index)) for index, tree in enumerate(trees)],
            device,
            dtype,
            arguments.max_batch_tokens,
        )
        return 0
    model = random_model(arguments.shape, device, dtype)
    compare(model, trees, arguments, Costs.of(model), machine)
    return 0


def make_requests(tree: ReviewTree, name: str) -> list[ChatRequest]:
    """Requests about one image of noise whose prompts have the lengths of a tree, for a vocabulary of bytes."""
    import numpy as np
    from bench_answers import byte_tokenizer
    from PIL import Image

    from mmrole.data.messages import one_turn
    from mmrole.data.requests import ChatRequest, GenerationSettings
    from mmrole.qwen_vl.chat_format import ChatTurn, encode_turns

    system = "You are an evaluator."
    rng = np.random.default_rng(tree.shared)
    image = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    tokenizer = byte_tokenizer()
    frame = encode_turns(tokenizer, [ChatTurn("", [image])], system).input_ids
    behind = len(frame) - 1 - max(place for place, id_ in enumerate(frame) if id_ == tokenizer.im_end_id) + 1

    def text(length: int) -> str:
        return "".join(map(chr, rng.integers(97, 123, length)))

    shared = text(tree.shared - (len(frame) - behind))
    requests = []
    for index, (suffix, reply) in enumerate(zip(tree.suffixes, tree.replies, strict=True)):
        settings = GenerationSettings(max_new_tokens=reply, do_sample=False)
        own = f"{index}{text(suffix - behind - 1)}"
        requests.append(ChatRequest(f"{name}/{index}", one_turn(system, image, shared + own), settings))
    return requests


def compare(
    model: QWenLMHeadModel, trees: list[ReviewTree], arguments: argparse.Namespace, costs: Costs, machine: Machine
) -> None:
    """Times both ways and prints the table."""
    from bench_answers import byte_tokenizer, generate_alone
    from bench_machine import peak_bytes, reset_peak, timed

    from mmrole.engine.engine import Engine
    from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel

    device, tokenizer = model.device, byte_tokenizer()
    family = QwenVL(tokenizer, model.config)
    family.stop_ids = frozenset()  # a fixed number of tokens, whatever they are
    engine = Engine(QwenVLTreeModel(model, family), arguments.max_batch_tokens)
    by_answer = [make_requests(tree, str(number)) for number, tree in enumerate(trees)]
    requests = [request for of_answer in by_answer for request in of_answer]
    step = max(1, 8 // arguments.one_by_one)
    alone = [request for of_answer in by_answer for request in of_answer[::step]]
    lone_trees = [
        ReviewTree(tree.shared + suffix, [0], [reply])
        for tree in trees
        for suffix, reply in list(zip(tree.suffixes, tree.replies, strict=True))[::step]
    ]
    one_by_one: dict[str, list[int]] = {}
    replies = {}
    generate_alone(model, tokenizer, alone[:1], {})  # warm up
    list(engine.generate(requests[:1]))
    reset_peak(device)
    seconds_b = timed(lambda: replies.update((reply.id, reply) for reply in engine.generate(requests)), device)
    peak_b = peak_bytes(device)
    print(f"engine: {len(requests)} reviews in {seconds_b:.1f} s; now one at a time", flush=True)
    reset_peak(device)
    seconds_a = timed(lambda: generate_alone(model, tokenizer, alone, one_by_one), device)
    peak_a = peak_bytes(device)

    for tree, of_answer in zip(trees, by_answer, strict=True):
        found = [replies[request.id].usage.prompt_tokens for request in of_answer]
        assert found == [tree.shared + suffix for suffix in tree.suffixes], "the prompts have not the profile's lengths"
    bound_a = sum(least_seconds([tree], costs, machine) for tree in lone_trees)
    bound_b = least_seconds(trees, costs, machine)
    rows = [
        ("(a) generate(), one at a time", alone, seconds_a, peak_a, bound_a),
        ("(b) engine, eight a tree", requests, seconds_b, peak_b, bound_b),
    ]
    print(f"{'':<30}{'reviews/s':>11}{'tokens/s':>10}{'peak GiB':>10}{'seconds':>9}{'bound':>8}{'reached':>9}")
    for name, asked, seconds, peak, bound in rows:
        tokens = sum(request.complete_settings().max_new_tokens for request in asked)
        print(
            f"{name:<30}{len(asked) / seconds:>11.3f}{tokens / seconds:>10.1f}{peak / 2**30:>10.2f}"
            f"{seconds:>9.1f}{bound:>8.1f}{bound / seconds:>9.0%}"
        )
    per_review = seconds_a / len(alone)
    ratio, best = per_review / (seconds_b / len(requests)), per_review / (bound_b / len(requests))
    same = sum(one_by_one[request.id] == list(replies[request.id].token_ids) for request in alone)
    print(
        f"ratio (b)/(a): {ratio:.2f}; at the bound it would be {best:.2f}; {same} of {len(alone)} reviews are the same"
    )


def least_seconds(trees: list[ReviewTree], costs: Costs, machine: Machine) -> float:
    """The bound: each position of a tree is read once, then all leaves are decoded together, without any overhead."""
    weights = costs.weight_bytes + costs.head_bytes
    seconds = 0.0
    for shared, suffixes, _ in trees:
        scores = shared**2 / 2 + sum(shared * suffix + suffix**2 / 2 for suffix in suffixes)
        flops = costs.image + (shared + sum(suffixes)) * costs.per_position + scores * costs.per_score
        seconds += machine.seconds(flops + len(suffixes) * costs.head, weights)
    for step in range(1, max(max(tree.replies) for tree in trees)):
        leaves = stored = read = 0
        for shared, suffixes, replies in trees:
            own = [suffix + step for suffix, reply in zip(suffixes, replies, strict=True) if step < reply]
            leaves += len(own)
            stored += sum(own) + (shared if own else 0)
            read += sum(own) + shared * len(own)
        flops = leaves * (costs.per_position + costs.head) + read * costs.per_score
        seconds += machine.seconds(flops, weights + stored * costs.position_bytes)
    return seconds


if __name__ == "__main__":
    from mmrole.base.errors import run

    run(main)
