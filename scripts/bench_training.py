"""Times training on the published way, on single samples and on prompt trees: the same samples, in one run.

    python scripts/bench_training.py                                      # mid-size model, CPU, float32, agent data
    python scripts/bench_training.py --data reviews
    python scripts/bench_training.py --shape real --device cuda           # 9.6B, bfloat16
    python scripts/bench_training.py --shape qwen2_5_vl                   # Qwen2.5-VL beside Qwen-VL, both mid-size

Forward and backward passes with gradient checkpointing and a frozen image encoder, as in the recipe; no optimizer step,
which is the same for all. Prints samples and useful tokens a second, peak memory, ratios, and which share of this
machine's measured matrix-product rate the model's operations reach.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench_machine import Costs, Machine
    from torch import Tensor

    from mmrole.qwen_vl import QWenConfig, QWenLMHeadModel
    from mmrole.training.batches import TreeBatch
    from mmrole.training.encoding import EncodedSample

PROFILE = Path(__file__).with_name("training_profile.json")
PADDED_LENGTH = {"agent": 3072, "reviews": 4096}
SAMPLES_PER_STEP = 256
"""Of the recipe: how groups are cut into trees depends on it."""


class Row(NamedTuple):
    """One way of training, measured."""

    name: str
    samples: list[EncodedSample]
    seconds: float
    peak: int
    flops: float  # of the model: recomputation in the backward pass does not count


def main(argv: list[str] | None = None) -> int:
    """Runs the three ways and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", choices=tuple(PADDED_LENGTH), default="agent", help="whose lengths the samples have")
    parser.add_argument(
        "--shape",
        choices=("mid", "real", "qwen2_5_vl"),
        default="mid",
        help="mid-size; Qwen-VL-Chat's 9.6B; or Qwen2.5-VL and Qwen-VL, both mid-size: with each, trees against single "
        "samples and padded ones",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--dtype", help="a torch dtype; None is float32 on the CPU and bfloat16 on a GPU")
    parser.add_argument("--attention", help="attention of the trees; None is sdpa on the CPU, flex_attention on a GPU")
    parser.add_argument("--trees", type=int, default=8, help="dialogues, or answers with their eight reviews")
    parser.add_argument("--published", type=int, default=3, help="samples to train on in the published way, or padded")
    parser.add_argument("--single", type=int, default=16, help="samples to train on without trees")
    parser.add_argument("--max_batch_tokens", type=int, default=8192, help="most positions of a micro-batch")
    parser.add_argument("--checkpoint_layers", type=int, help="blocks that are recomputed; None is all")
    arguments = parser.parse_args(argv)
    if arguments.shape == "qwen2_5_vl":
        for flag in ("attention", "checkpoint_layers"):
            if getattr(arguments, flag) != parser.get_default(flag):
                parser.error(f"--{flag} has no part in --shape qwen2_5_vl; leave it out")

    import torch
    from bench_machine import Costs, measure, random_model

    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    machine = measure(device, dtype)
    print(f"{machine.name}: {machine.flops / 1e9:,.0f} GFLOP/s, {dtype}, lengths of {arguments.data}")
    if arguments.shape == "qwen2_5_vl":
        from bench_families import Numbers, compare_training

        numbers = Numbers(arguments.trees, arguments.single, arguments.published, PADDED_LENGTH[arguments.data])
        compare_training(arguments.data, numbers, device, dtype, arguments.max_batch_tokens)
        return 0
    model = as_trained(random_model(arguments.shape, device, dtype), arguments.checkpoint_layers)
    with tempfile.TemporaryDirectory() as folder:
        trees = make_trees(arguments.data, arguments.trees, model.config, Path(folder))
        rows = list(compare(model, trees, arguments, Costs.of(model)))
    report(rows[::-1], machine)
    return 0


def as_trained(model: QWenLMHeadModel, checkpoint_layers: int | None = None) -> QWenLMHeadModel:
    """A model as the recipe trains it: the image encoder frozen but for its resampler, with gradient checkpointing.

    Args:
        model: to train.
        checkpoint_layers: blocks that are computed again in the backward pass; None for all.
    """
    from bench_answers import byte_tokenizer

    from mmrole.models.qwen_vl import QwenVL
    from mmrole.training.recomputation import limit_recomputation

    family = QwenVL(byte_tokenizer(), model.config)
    family.freeze(model.train(), ["vision"])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    limit_recomputation(model, family, checkpoint_layers)
    return model


def make_trees(data: str, number: int, config: QWenConfig, folder: Path) -> list[list[EncodedSample]]:
    """Random samples with the lengths and shared prefixes of published ones, an image to each tree."""
    import numpy as np
    from PIL import Image

    from mmrole.training.encoding import EncodedSample, ImageRows

    profile = json.loads(PROFILE.read_text())[data]
    rng = np.random.default_rng(0)
    low = min(1000, config.vocab_size // 2)  # no special token of a byte vocabulary
    trees = []
    for index in range(number):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(file)
        image = ImageRows(((19, 275),), index, file)  # <|im_start|>system …, <|im_start|>user, Picture 1: <img>
        tree, ids = [], np.zeros(0, dtype=np.int32)
        for shared, length, n_targets in profile[(2 * index + 1) * len(profile) // (2 * number)]:
            ids = np.concatenate([ids[:shared], rng.integers(low, config.vocab_size, length - shared, dtype=np.int32)])
            tree.append(EncodedSample(ids, np.arange(length) >= length - n_targets, (image,), False))
        trees.append(tree)
    return trees


def compare(
    model: QWenLMHeadModel, trees: list[list[EncodedSample]], arguments: argparse.Namespace, costs: Costs
) -> Iterator[Row]:
    """Measures trees, single samples and the published way, in this order."""
    samples = [sample for tree in trees for sample in tree]
    every = max(1, len(samples) // arguments.published)
    on_cpu = model.device.type == "cpu"
    model.set_attn_implementation(arguments.attention or ("sdpa" if on_cpu else "flex_attention"))
    for name, chosen, prompt_tree in (
        ("(c) prompt trees", samples, True),
        ("(b) single samples by length", samples[:: max(1, len(samples) // arguments.single)], False),
    ):
        run, flops = micro_batches(model, chosen, prompt_tree, arguments.max_batch_tokens, costs)
        yield measured(name, chosen, model, run, flops)
    model.set_attn_implementation("sdpa")
    run, flops = published(model, samples[::every][: arguments.published], PADDED_LENGTH[arguments.data], costs)
    with as_the_original_computes():
        yield measured("(a) the published way", samples[::every][: arguments.published], model, run, flops)


@contextmanager
def as_the_original_computes() -> Iterator[None]:
    """Norms, rotations, SwiGLU and tables of positions by the original's operations, none of them fused or compiled."""
    import torch

    from mmrole.qwen_vl import vision
    from mmrole.qwen_vl.blocks import RMSNorm

    def norm(self: RMSNorm, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(
            hidden_states
        ) * self.weight

    def resize(table: Tensor, patches: int) -> Tensor:
        return table if len(table) == patches else vision.interpolated(table.float(), patches).type_as(table)

    kept = RMSNorm.forward, vision.resize_positions
    RMSNorm.forward, vision.resize_positions = norm, resize
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        RMSNorm.forward, vision.resize_positions = kept


def measured(
    name: str, samples: list[EncodedSample], model: QWenLMHeadModel, run: Callable[[], None], flops: float
) -> Row:
    """Times a run over samples."""
    from bench_machine import peak_bytes, reset_peak, timed

    if model.device.type == "cuda":
        run()  # compiles
    model.zero_grad()
    reset_peak(model.device)
    seconds = timed(run, model.device)
    return Row(name, samples, seconds, peak_bytes(model.device), flops)


def micro_batches(
    model: QWenLMHeadModel, samples: list[EncodedSample], prompt_tree: bool, max_batch_tokens: int, costs: Costs
) -> tuple[Callable[[], None], float]:
    """This project's way: packed steps, then micro-batches; and the operations that it takes."""
    from bench_answers import byte_tokenizer

    from mmrole.models.qwen_vl import QwenVL
    from mmrole.training.ahead import one_ahead
    from mmrole.training.batches import collate
    from mmrole.training.loss import tree_loss
    from mmrole.training.packing import group_samples, pack_epoch

    groups = group_samples(samples, prompt_tree)
    steps = pack_epoch(
        groups, samples_per_step=SAMPLES_PER_STEP, world_size=1, max_batch_tokens=max_batch_tokens, seed=0, epoch=0
    )
    bins = [bin_ for step in steps for bin_ in step.bins[0]]
    family = QwenVL(byte_tokenizer(), model.config)

    def batches() -> Iterator[TreeBatch]:
        options = {"prompt_tree": prompt_tree, "most_nodes": max_batch_tokens}
        return (collate([samples[i] for i in bin_], family, **options) for bin_ in bins)

    def run() -> None:
        if model.device.type == "cpu":
            for batch in batches():
                tree_loss(model, batch, family).sum.backward()
        else:  # as the trainer
            for batch in one_ahead((batch.pin_memory() for batch in batches()), model.device):
                tree_loss(model, batch.to(model.device, non_blocking=True), family).sum.backward()

    flops = 0.0
    for batch in batches():
        nodes, scores = len(batch.last), int((batch.position_ids + 1).sum())
        images = 0 if batch.pixels is None else len(batch.pixels["pixel_values"])
        flops += operations(nodes, scores, len(batch.targets), images, costs)
    return run, flops


def published(
    model: QWenLMHeadModel, samples: list[EncodedSample], length: int, costs: Costs
) -> tuple[Callable[[], None], float]:
    """One sample a micro-batch, padded, its image read and encoded each time, logits of all positions."""
    import torch

    from mmrole.qwen_vl.image_processing import preprocess

    size = model.config.visual["image_size"]

    def run() -> None:
        for sample in samples:
            ids = torch.zeros(1, length, dtype=torch.int64)
            ids[0, : len(sample)] = torch.from_numpy(sample.input_ids)
            labels = torch.full_like(ids, -100)
            targets = torch.from_numpy(sample.targets)
            labels[0, : len(sample)][targets] = ids[0, : len(sample)][targets]
            positions = torch.full_like(ids, -1)
            for image in sample.images:
                positions[0, slice(*image.spans[0])] = torch.arange(256)
            inputs = {
                "input_ids": ids,
                "labels": labels,
                "attention_mask": torch.arange(length)[None] < len(sample),
                "image_positions": positions,
                "pixel_values": preprocess([image.file for image in sample.images], size),
            }
            model(**{name: value.to(model.device) for name, value in inputs.items()}).loss.backward()

    return run, len(samples) * operations(length, length * (length + 1) // 2, length, 1, costs)


def operations(positions: int, scores: int, logits: int, images: int, costs: Costs) -> float:
    """Of a forward and a backward pass; the frozen image encoder has no backward pass."""
    forward = positions * costs.per_position + scores * costs.per_score + logits * costs.head
    return 3 * forward + images * costs.image


def report(rows: list[Row], machine: Machine) -> None:
    """Prints the table."""
    head = f"{'':<30}{'samples':>8}{'seconds':>9}{'samples/s':>11}{'tokens/s':>10}{'peak GiB':>10}{'of rate':>9}"
    print(f"{head}{'ratio':>8}")
    slowest = len(rows[0].samples) / rows[0].seconds
    for row in rows:
        rate = len(row.samples) / row.seconds
        tokens = sum(map(len, row.samples)) / row.seconds
        print(
            f"{row.name:<30}{len(row.samples):>8}{row.seconds:>9.1f}{rate:>11.3f}{tokens:>10.0f}"
            f"{row.peak / 2**30:>10.2f}{row.flops / row.seconds / machine.flops:>9.0%}{rate / slowest:>8.2f}"
        )


if __name__ == "__main__":
    from mmrole.base.errors import run

    run(main)
