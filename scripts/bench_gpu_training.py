"""Part of the GPU benchmark: training on trees, single samples and the published way; rates, peaks, compilations."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from bench_gpu_generation import release
from bench_machine import Costs, random_model
from bench_training import as_trained, compare, make_trees, measured, micro_batches

if TYPE_CHECKING:
    from bench_gpu_part import Setting
    from bench_training import Row

    from mmrole.qwen_vl import QWenLMHeadModel
    from mmrole.training.encoding import EncodedSample

MAX_BATCH_TOKENS = 8192
"""The default of finetune.py."""


def training(setting: Setting) -> None:
    """Forward and backward passes of agent data at the shape; then whether both kinds of attention agree."""
    rows_of_shape(setting)
    release()
    with setting.alone("FlexAttention against SDPA, in float32"):
        agreement(setting)


def rows_of_shape(setting: Setting) -> None:
    """Prompt trees, single samples and the published way at the shape."""
    model = as_trained(setting.random_model())
    trees, single, published = (1, 2, 1) if setting.tiny else (8, 16, 3)
    arguments = argparse.Namespace(
        data="agent", attention=None, published=published, single=single, max_batch_tokens=MAX_BATCH_TOKENS
    )
    compiled, began = compilations(), time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        samples = make_trees("agent", trees, model.config, Path(folder))
        if setting.tiny:
            samples = [tree[:2] for tree in samples]
        with setting.alone("a way of training"):
            for row in compare(model, samples, arguments, Costs.of(model)):
                if not rows and setting.device.type == "cuda":
                    setting.add("trees, first run with compilation and second run", time.monotonic() - began, "s")
                    setting.add("graphs compiled for the trees", compilations() - compiled)
                add_row(setting, row)
                rows.append(row)
        with setting.alone("prompt trees, half of the blocks recomputed"):
            half_recomputed(setting, model, [sample for tree in samples for sample in tree])
    rates = [len(row.samples) / row.seconds for row in rows]
    for rate, what in zip(rates[1:], ("single samples", "the published way"), strict=False):
        setting.add(f"prompt trees, times {what}", rates[0] / rate)


def add_row(setting: Setting, row: Row) -> None:
    """The figures of a way of training."""
    rate = row.flops / row.seconds
    setting.add(f"{row.name}, samples", len(row.samples))
    setting.add(f"{row.name}, rate", len(row.samples) / row.seconds, "samples/s")
    setting.add(f"{row.name}, of the matrix product (three forward passes)", 100 * rate / setting.machine.flops, "%")
    setting.add(f"{row.name}, peak memory", row.peak / 2**30, "GiB")


def half_recomputed(setting: Setting, model: QWenLMHeadModel, samples: list[EncodedSample]) -> None:
    """Prompt trees with --checkpoint_layers; then, in the log alone, where the time of the GPU goes."""
    on_gpu = setting.device.type == "cuda"
    model.set_attn_implementation("flex_attention" if on_gpu else "sdpa")
    layers = model.config.num_hidden_layers // 2
    as_trained(model, layers)
    run, flops = micro_batches(model, samples, True, MAX_BATCH_TOKENS, Costs.of(model))
    add_row(setting, measured(f"(c) prompt trees, --checkpoint_layers {layers}", samples, model, run, flops))
    if on_gpu:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
        print(profile.key_averages().table(sort_by="device_time_total", row_limit=25, max_name_column_width=70))


def agreement(setting: Setting) -> None:
    """Losses and gradients of two micro-batches with FlexAttention against those with SDPA, on a small model."""
    if setting.device.type == "cpu":
        return  # it computes no gradients there
    model = as_trained(random_model("tiny" if setting.tiny else "mid", setting.device, torch.float32))
    gradients = []
    with tempfile.TemporaryDirectory() as folder:
        trees = make_trees("agent", 2, model.config, Path(folder))
        samples = [sample for tree in trees for sample in tree[:4]]
        for implementation in ("sdpa", "flex_attention"):
            model.set_attn_implementation(implementation)
            model.zero_grad()
            run, _ = micro_batches(model, samples, True, 4096, Costs.of(model))
            run()
            found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            gradients.append(torch.cat(found))
    distance = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    setting.add("gradients of FlexAttention, distance from SDPA's in float32", float(distance))


def compilations() -> int:
    """Graphs that torch.compile has made so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
