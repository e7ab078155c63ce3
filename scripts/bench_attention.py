"""Checks and times attention of decoding steps and of prefills on a GPU: python scripts/bench_attention.py [--help]

First the Triton kernel of a step against the reference in PyTorch on ragged trees; then the kernel of a prefill, whose
blocks of queries and keys have several sizes, against SDPA; then milliseconds and bytes a second of a step's kernel in
one layer, beside the rate at which this GPU reads memory. A variant of it is slots of a tile, warps, stages, programs
for each multiprocessor, page size, and whether a page holds its slots' heads side by side ("slot") or each head's slots
("head"). Without a GPU, TRITON_INTERPRET=1 and --device cpu --dtype float16 check a small shape (the interpreter
multiplies bfloat16 as if it were integers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from bench_machine import measure, timed
from torch import Tensor

from mmrole.engine.paged_attention import paged_tree_attention
from mmrole.engine.paged_attention_kernel import PagedInputs, Tiling, launch, tiling_for
from mmrole.prompt_tree import TokenSequence, build_tree
from mmrole.prompt_tree.attention import BlockwiseAttention, TreeAttention
from mmrole.prompt_tree.forest_attention import ForestAttention
from mmrole.prompt_tree.mask import dense_mask

ROTATED_BYTES = 600 * 2**20  # of keys and values in one timed graph: many times what caches hold
REPEATS = 10
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Shape(NamedTuple):
    """Trees that are decoded together, and the heads of their model."""

    trees: int
    leaves: int
    slots: int
    heads: int = 32
    kv_heads: int = 32
    d: int = 128
    window: int = 0

    def __str__(self) -> str:
        window = f", window {self.window}" if self.window else ""
        return (
            f"{self.trees} x {self.leaves} leaves, {self.slots} slots, {self.heads}/{self.kv_heads} x {self.d}{window}"
        )


class Variant(NamedTuple):
    """A tiling, and how pages lie in memory."""

    tiling: Tiling
    page_size: int = 64
    layout: str = "slot"

    def __str__(self) -> str:
        return ",".join(str(value) for value in (*self.tiling, self.page_size, self.layout))


CHECKED = [
    Shape(1, 1, 100),
    Shape(1, 8, 2600),
    Shape(4, 16, 700),
    Shape(12, 8, 900),
    Shape(32, 1, 300),
    Shape(3, 64, 500),
    Shape(12, 8, 700, 28, 4),
    Shape(3, 40, 700, 28, 4),
    Shape(4, 8, 900, window=200),
    Shape(3, 8, 700, 28, 4, window=100),
    Shape(3, 5, 300, 6, 2, 80),
    Shape(2, 8, 300, 8, 4, 256),
]
TIMED = [
    Shape(1, 8, 2600),
    Shape(32, 1, 1000),
    Shape(12, 16, 2600),
    Shape(4, 64, 2600),
    Shape(12, 8, 2600, 28, 4),
    Shape(32, 8, 2600, 28, 4),
    Shape(12, 8, 2600, window=512),
]
VARIANTS = [
    *(Variant(Tiling(64, 4, 3, programs)) for programs in (1, 2, 3, 6, 12)),
    *(Variant(Tiling(32, 4, 3, programs)) for programs in (2, 4)),
    Variant(Tiling(64, 4, 3, 4), layout="head"),
]


def random_inputs(
    shape: Shape, variant: Variant, dtype: torch.dtype, device: torch.device, layers: int, *, ragged: bool
) -> tuple[list[PagedInputs], dict[str, Tensor]]:
    """The inputs of each layer, whose pages lie in any order, and the positions where there is a window.

    The first three quarters of a tree are seen by all its leaves, each later slot by one. `ragged`: lengths and numbers
    of leaves differ, the last of several trees is padding, and what no slot holds is NaN.
    """
    generator = torch.Generator().manual_seed(shape.trees * shape.slots + shape.leaves)

    def below(limit: int, *size: int) -> Tensor:
        return torch.randint(limit, size, generator=generator)

    trees, page_size = shape.trees, variant.page_size
    lengths, leaves = torch.full((trees,), shape.slots), torch.full((trees,), shape.leaves)
    if ragged:
        lengths, leaves = lengths - below(shape.slots // 2, trees), leaves - below((shape.leaves + 1) // 2, trees)
        if trees > 1:
            lengths[-1] = leaves[-1] = 0
    max_pages = -(-shape.slots // page_size) + 2
    slots = torch.arange(max_pages * page_size).expand(trees, -1)
    owner = torch.where(leaves > 0, leaves, 1)[:, None]
    shared = (torch.ones(1, dtype=torch.int64) << leaves.clamp(max=63)) - 1
    shared[leaves == 64] = -1
    visible = torch.where(slots < lengths[:, None] * 3 // 4, shared[:, None], 1 << slots % owner)
    visible[slots >= lengths[:, None]] = -1  # is to be ignored
    page_table = torch.randperm(trees * max_pages, generator=generator).view(trees, max_pages)
    pool = (layers, 2, trees * max_pages, page_size, shape.kv_heads, shape.d)
    if variant.layout == "head":
        pool = (*pool[:3], shape.kv_heads, page_size, shape.d)
    pools = torch.randn(pool, device=device, dtype=dtype)
    if variant.layout == "head":
        pools = pools.transpose(3, 4)
    if ragged:
        used = torch.zeros(trees * max_pages, page_size, dtype=torch.bool)
        used[page_table] = (slots < lengths[:, None]).view(trees, max_pages, page_size)
        pools[:, :, ~used.to(device)] = torch.nan
    rows = trees * shape.leaves + 3
    table = {
        "page_table": page_table.int(),
        "lengths": lengths.int(),
        "first_row": (3 + torch.arange(trees) * shape.leaves).int(),
        "leaves": leaves.int(),
        "visible": visible,
    }
    table = {name: tensor.to(device) for name, tensor in table.items()}
    queries = torch.randn(layers, rows, shape.heads, shape.d, device=device, dtype=dtype)
    inputs = [PagedInputs(q, k, v, **table) for q, (k, v) in zip(queries, pools, strict=True)]
    if not shape.window:
        return inputs, {}
    positions = torch.full((rows,), shape.slots * 3 // 4 + 5, dtype=torch.int32, device=device)
    return inputs, {"positions": positions, "slot_positions": slots.int().contiguous().to(device)}


def check(shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
    """Prints how far kernel and reference differ; returns whether that is rounding."""
    ok, error = True, 0.0
    variants = [Variant(tiling_for(shape.d, dtype)), Variant(Tiling(16, 2, 1, 48), 16, "head")]
    for variant in variants if dtype is torch.float32 else variants[:1]:
        (inputs,), window = random_inputs(shape, variant, dtype, device, 1, ragged=True)
        found = launch(inputs, shape.d**-0.5, shape.window, **window, tiling=variant.tiling).cpu().double()
        on_cpu = {name: tensor.cpu() for name, tensor in {**inputs._asdict(), **window}.items()}
        on_cpu |= {name: on_cpu[name].float() for name in ("query", "keys", "values")}
        wanted = paged_tree_attention(**on_cpu, scaling=shape.d**-0.5, window=shape.window).double()
        error = max(error, float((found - wanted).norm() / wanted.norm()))
        no_leaf = wanted.eq(0).all(-1)
        ok &= error < TOLERANCE[dtype] and bool(found[no_leaf].eq(0).all())  # NaN is not less
    print(f"{'ok ' if ok else 'BAD'} {str(dtype).removeprefix('torch.'):9} {shape}: error {error:.1e}", flush=True)
    return ok


def seconds(shape: Shape, variant: Variant, dtype: torch.dtype, device: torch.device) -> tuple[float, int]:
    """Of one layer, the median of replays of a graph over several; and the bytes of keys and values that it reads."""
    nbytes = 2 * shape.trees * shape.slots * shape.kv_heads * shape.d * dtype.itemsize
    layers = max(1, round(ROTATED_BYTES / nbytes))
    inputs, window = random_inputs(shape, variant, dtype, device, layers, ragged=False)

    def run() -> None:
        for layer in inputs:
            launch(layer, shape.d**-0.5, shape.window, **window, tiling=variant.tiling)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPEATS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / layers)
    return statistics.median(times[2:]), nbytes


def prefills(dtype: torch.dtype, device: torch.device, rate: float) -> bool:
    """Prints milliseconds and operations a second of a layer's attention over whole trees, kernel and SDPA in blocks.

    Returns:
        Whether both agree.
    """
    generator = torch.Generator(device).manual_seed(0)
    ok = True
    for heads, kv_heads, d, sizes in (
        (32, 32, 128, ((64, 64), (128, 128), (64, 128), (128, 64))),
        (28, 4, 128, ((128, 64),)),
        (16, 16, 80, ((128, 64),)),
        (8, 4, 256, ((64, 32),)),
    ):
        paths = [[tree] * 2000 + [10 + leaf] * (50 + 3 * leaf) for tree in range(3) for leaf in range(8)]
        last = torch.from_numpy(build_tree([TokenSequence(np.array(path)) for path in paths]).last)
        scores = int(dense_mask(last).sum())
        shape = (1, heads, len(last), d)
        query, key, value = (
            torch.randn((1, n, *shape[2:]), generator=generator, device=device, dtype=dtype)
            for n in (heads, kv_heads, kv_heads)
        )
        wanted = BlockwiseAttention(last, device=device).attend(0, query.float(), key.float(), value.float(), d**-0.5)
        ways: list[tuple[str, TreeAttention]] = [("SDPA in blocks", BlockwiseAttention(last, device=device))]
        ways += [(f"kernel {size}", ForestAttention(last, device, *size)) for size in sizes]
        for name, attention in ways:
            found = attention.attend(0, query, key, value, d**-0.5)
            error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
            ok &= error < TOLERANCE[dtype]
            run = partial(_repeated, attention, query, key, value, d**-0.5)
            took = statistics.median(timed(run, device) for _ in range(7)) / REPEATS
            flops = 4 * heads * d * scores
            print(
                f"prefill of {len(last)} nodes, {heads}/{kv_heads} x {d} | {name}: {took * 1e3:.3f} ms, "
                f"{flops / took / 1e12:.0f} TFLOP/s, {flops / took / rate:.0%}; error {error:.1e}",
                flush=True,
            )
    return ok


def _repeated(attention: TreeAttention, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
    for _ in range(REPEATS):
        attention.attend(0, query, key, value, scaling)


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--trees", type=int, default=12, help="of the shape for which variants are timed")
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--slots", type=int, default=2600)
    parser.add_argument("--variant", nargs="+", metavar="V", help="such as 64,4,3,12,64,slot; default: several")
    parser.add_argument("--seconds", type=float, default=85, help="after which no further variant is begun")
    return parser.parse_args()


def main() -> None:
    """Checks, then times."""
    started = time.monotonic()
    args = parse_arguments()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    shapes = CHECKED if device.type == "cuda" else CHECKED[:1]
    checked = [check(shape, each, device) for shape in shapes for each in dict.fromkeys((torch.float32, dtype))]
    print(f"{sum(checked)} of {len(checked)} checks passed, {time.monotonic() - started:.0f} s", flush=True)
    if device.type == "cuda":
        machine = measure(device, dtype)
        rates = f"{machine.flops / 1e12:.0f} TFLOP/s, reads {machine.bytes / 1e9:.0f} GB/s"
        print(f"{machine.name}: {rates}; torch {torch.__version__}", flush=True)
        if dtype is not torch.float32:
            checked.append(prefills(dtype, device, machine.flops))
        chosen = Variant(tiling_for(128, dtype))
        variants = [_variant(text) for text in args.variant] if args.variant else [chosen, *VARIANTS]
        real = Shape(args.trees, args.leaves, args.slots)
        grouped = real._replace(heads=28, kv_heads=4)
        plan = [(real, variant) for variant in variants] + [(shape, chosen) for shape in TIMED]
        plan += [(shape, v) for shape in (TIMED[0], grouped, TIMED[3]) for v in variants[1:]] + [(real, chosen)]
        for shape, variant in plan:
            if time.monotonic() - started > args.seconds:
                print("out of time", flush=True)
                break
            try:
                took, nbytes = seconds(shape, variant, dtype, device)
            except Exception as error:  # a variant may not fit into a multiprocessor's memory: the others go on
                print(f"{shape} | {variant}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
                continue
            rate = nbytes / took
            share = rate / machine.bytes
            print(
                f"{shape} | {variant}: {took * 1e3:.3f} ms, {nbytes / 1e6:.0f} MB, {rate / 1e9:.0f} GB/s, {share:.0%}",
                flush=True,
            )
    if not all(checked):
        raise SystemExit(1)


def _variant(text: str) -> Variant:
    slots, warps, stages, programs, page_size, layout = text.split(",")
    return Variant(Tiling(int(slots), int(warps), int(stages), int(programs)), int(page_size), layout)


if __name__ == "__main__":
    main()
