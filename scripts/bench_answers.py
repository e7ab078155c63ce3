"""Times answers one at a time with generate() against the engine, on the same weights and prompts, in one run.

    python scripts/bench_answers.py                                       # mid-size model, CPU, float32
    python scripts/bench_answers.py --shape real --device cuda            # 9.6B, bfloat16
    python scripts/bench_answers.py --against ../other_version            # both versions in turn, best of three

Prints requests and tokens a second, peak memory, the ratio, and the best that counting operations and bytes at this
machine's measured rates allows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench_against import add_against, compare_versions

if TYPE_CHECKING:
    from bench_machine import Costs, Machine

    from mmrole.data.requests import ChatRequest
    from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer


def main(argv: list[str] | None = None) -> int:
    """Runs both ways and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=("mid", "real"), default="mid", help="mid-size, or Qwen-VL-Chat's 9.6B")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--dtype", help="a torch dtype; None is float32 on the CPU and bfloat16 on a GPU")
    parser.add_argument("--requests", type=int, default=32, help="number of independent requests")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens to generate for each")
    parser.add_argument("--one_by_one", type=int, help="time generate() on so many of them only; None is all")
    parser.add_argument("--max_batch_tokens", type=int, help="the engine's budget; None is by free memory")
    add_against(parser)
    arguments = parser.parse_args(argv)
    if arguments.against is not None:
        return compare_versions(Path(__file__), arguments.against, argv)

    import torch
    from bench_machine import Costs, measure, random_model

    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    machine = measure(device, dtype)
    print(f"{machine.name}: {machine.flops / 1e9:,.0f} GFLOP/s, {machine.bytes / 1e9:,.0f} GB/s, {dtype}")
    model = random_model(arguments.shape, device, dtype)
    requests = make_requests(arguments.requests, arguments.new_tokens)
    costs = Costs.of(model)
    compare(model, requests, arguments, costs, machine)
    return 0


def make_requests(number: int, new_tokens: int) -> list[ChatRequest]:
    """Independent requests, each about an image of its own, with lengths spread over the published ones."""
    import numpy as np
    from bench_machine import length_profile
    from PIL import Image

    from mmrole.data.messages import one_turn
    from mmrole.data.requests import ChatRequest, GenerationSettings

    profile = length_profile("answer_prompts")
    rng = np.random.default_rng(0)
    settings = GenerationSettings(max_new_tokens=new_tokens, do_sample=False)
    requests = []
    for index in range(number):
        positions = profile[(2 * index + 1) * len(profile) // (2 * number)]
        image = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        # A byte vocabulary: a character is a position. The frame with its image takes 297.
        text = "".join(map(chr, rng.integers(97, 123, positions - 297)))
        requests.append(ChatRequest(str(index), one_turn("You are a role-playing assistant.", image, text), settings))
    return requests


def compare(
    model: QWenLMHeadModel, requests: list[ChatRequest], arguments: argparse.Namespace, costs: Costs, machine: Machine
) -> None:
    """Times both ways and prints the table."""
    from bench_machine import peak_bytes, reset_peak, timed

    from mmrole.engine.engine import Engine
    from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel

    device, new_tokens = model.device, arguments.new_tokens
    tokenizer = byte_tokenizer()
    family = QwenVL(tokenizer, model.config)
    family.stop_ids = frozenset()  # a fixed number of tokens, whatever they are
    engine = Engine(QwenVLTreeModel(model, family), arguments.max_batch_tokens)
    alone = requests[:: max(1, len(requests) // (arguments.one_by_one or len(requests)))]

    one_by_one, replies = {}, {}
    generate_alone(model, tokenizer, alone[:1], {})  # warm up
    list(engine.generate(requests[:1]))
    reset_peak(device)
    seconds_a = timed(lambda: generate_alone(model, tokenizer, alone, one_by_one), device)
    peak_a = peak_bytes(device)
    reset_peak(device)
    seconds_b = timed(lambda: replies.update((reply.id, reply) for reply in engine.generate(requests)), device)
    peak_b = peak_bytes(device)

    lengths = {reply.id: reply.usage.prompt_tokens for reply in replies.values()}
    bound_a = sum(least_seconds([lengths[request.id]], new_tokens, costs, machine) for request in alone)
    bound_b = least_seconds(list(lengths.values()), new_tokens, costs, machine)
    rows = [
        ("(a) generate(), one at a time", len(alone), seconds_a, peak_a, bound_a),
        ("(b) engine", len(requests), seconds_b, peak_b, bound_b),
    ]
    print(f"{'':<30}{'requests/s':>11}{'tokens/s':>10}{'peak GiB':>10}{'seconds':>9}{'bound':>8}{'reached':>9}")
    for name, number, seconds, peak, bound in rows:
        print(
            f"{name:<30}{number / seconds:>11.3f}{number * new_tokens / seconds:>10.1f}{peak / 2**30:>10.2f}"
            f"{seconds:>9.1f}{bound:>8.1f}{bound / seconds:>9.0%}"
        )
    per_request_a = seconds_a / len(alone)
    ratio, best = per_request_a / (seconds_b / len(requests)), per_request_a / (bound_b / len(requests))
    same = sum(one_by_one[request.id] == list(replies[request.id].token_ids) for request in alone)
    print(
        f"ratio (b)/(a): {ratio:.2f}; at the bound it would be {best:.2f}; {same} of {len(alone)} answers are the same"
    )


def least_seconds(prompts: list[int], new_tokens: int, costs: Costs, machine: Machine) -> float:
    """The bound: each prompt is read once, then all are decoded together, without padding or overhead."""
    seconds = 0.0
    for positions in prompts:
        flops = costs.image + positions * costs.per_position + positions**2 / 2 * costs.per_score + costs.head
        seconds += machine.seconds(flops, costs.weight_bytes + costs.head_bytes)
    for step in range(1, new_tokens):
        keys = sum(prompts) + step * len(prompts)
        flops = len(prompts) * (costs.per_position + costs.head) + keys * costs.per_score
        seconds += machine.seconds(flops, costs.weight_bytes + costs.head_bytes + keys * costs.position_bytes)
    return seconds


def generate_alone(
    model: QWenLMHeadModel, tokenizer: QWenTokenizer, requests: list[ChatRequest], tokens: dict[str, list[int]]
) -> None:
    """Answers each request with transformers' generate(), which computes the last position's logits only."""
    from mmrole.qwen_vl.chat_format import ChatTurn
    from mmrole.qwen_vl.processing import Chat, QWenProcessor

    processor = QWenProcessor(tokenizer)
    for request in requests:
        inputs = processor(Chat([ChatTurn(request.text, request.images)], request.system or "")).to(model.device)
        generated = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=request.complete_settings().max_new_tokens,
            eos_token_id=None,
            pad_token_id=tokenizer.eod_id,
        )
        tokens[request.id] = generated[0, inputs["input_ids"].shape[1] :].tolist()


def byte_tokenizer() -> QWenTokenizer:
    """A tokenizer with one token for each byte."""
    import tempfile

    from mmrole.qwen_vl import QWenTokenizer
    from mmrole.qwen_vl.bpe import write_ranks
    from mmrole.qwen_vl.vocabulary import byte_vocabulary

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "qwen.tiktoken"
        write_ranks(file, byte_vocabulary())
        return QWenTokenizer(file)


if __name__ == "__main__":
    from mmrole.base.errors import run

    run(main)
