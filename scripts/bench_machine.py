"""What the benchmarks share: this machine's measured rates, peak memory, random models, and counts of operations.

Not a script of its own; the `bench_*.py` beside it import it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# As `mmrole.models.loading` does.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")

from typing import Any

import torch

from mmrole.qwen_vl import QWenConfig, QWenLMHeadModel

LENGTHS = Path(__file__).with_name("length_profile.json")
SHAPES = ("mid", "real")
WARM_BYTES = 4 * 2**30
IMAGE_IDS = {"image_start_id": 256 + 151857 - 151643}
"""Of a byte vocabulary."""


@dataclass(frozen=True)
class Machine:
    """Measured rates of a device.

    Attributes:
        name: of the processor or GPU.
        flops: floating-point operations a second in a large matrix product.
        bytes: bytes read a second from a large tensor.
    """

    name: str
    flops: float
    bytes: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """The least time for so many operations and bytes: whichever takes longer, if both overlap fully."""
        return max(flops / self.flops, nbytes / self.bytes)


def measure(device: torch.device, dtype: torch.dtype, *, roughly: bool = False) -> Machine:
    """Times a matrix product and a sum that are too large for any cache (best of five).

    Args:
        device: what is measured.
        dtype: of the numbers.
        roughly: with small tensors, in an instant: for a look whether a benchmark runs at all.
    """
    if device.type == "cpu" and not roughly:
        # The first touch of a virtual machine's memory is slow: once, before anything is timed.
        torch.ones(WARM_BYTES, dtype=torch.uint8)
    size = 256 if roughly else 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = min(timed(lambda: a @ b, device) for _ in range(5))
    large = torch.ones((2**24 if roughly else 2**30) // dtype.itemsize, device=device, dtype=dtype)
    # A product with a vector reads the matrix at the full rate in every dtype; sum() does not in bfloat16.
    matrix, vector = large.view(-1, 4096), torch.ones(4096, device=device, dtype=dtype)
    read = min(timed(lambda: matrix @ vector, device) for _ in range(5))
    return Machine(device_name(device), 2 * size**3 / product, large.nbytes / read)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name, with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"


def reset_peak(device: torch.device) -> None:
    """Starts a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`: allocated on the GPU, or resident in the process (model included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> QWenLMHeadModel:
    """A model with random weights: `mid` (hidden 512, 8 layers, vision width 256) or `real` (Qwen-VL-Chat, 9.6B).

    Both have the real vocabulary size and the image ids of a byte vocabulary. A `tiny` one has neither size nor
    vocabulary: on it a benchmark shows that it runs.
    """
    if shape == "real":
        config = QWenConfig(visual=IMAGE_IDS)
    elif shape == "tiny":
        config = QWenConfig(
            vocab_size=512,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            kv_channels=64,
            intermediate_size=256,
            visual=IMAGE_IDS | {"width": 64, "layers": 1, "heads": 2, "output_dim": 128},
        )
    else:
        config = QWenConfig(
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            kv_channels=64,
            intermediate_size=2752,
            visual=IMAGE_IDS | {"width": 256, "layers": 8, "heads": 4, "output_dim": 512},
        )
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    # transformers wraps `to` in a decorator that loses its `self`.
    model = model.to(dtype).to_empty(device=device)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def length_profile(name: str) -> list[Any]:
    """Numbers of positions of published prompts, ascending (`scripts/length_profile.json` says how they were made)."""
    return json.loads(LENGTHS.read_text())[name]


@dataclass(frozen=True)
class Costs:
    """Operations and bytes of a model's parts, counted from its shapes (a multiply-add is two operations)."""

    per_position: float  # all blocks, without attention scores
    per_score: float  # one query and one key in all layers, both products
    head: float  # one position's logits
    image: float  # one image through the vision tower
    weight_bytes: int  # blocks
    head_bytes: int
    position_bytes: int  # keys and values of one position in all layers

    @classmethod
    def of(cls, model: QWenLMHeadModel) -> Costs:
        """Counts the costs of a model."""
        config, visual = model.config, model.config.visual
        blocks = sum(parameter.numel() for parameter in model.transformer.h.parameters())
        patches = (visual["image_size"] // visual["patch_size"]) ** 2
        tower = sum(parameter.numel() for parameter in model.transformer.visual.transformer.parameters())
        width, out, queries = visual["width"], visual["output_dim"], 256
        image = patches * 2 * (tower + 3 * visual["patch_size"] ** 2 * width)
        image += visual["layers"] * 4 * patches**2 * width
        image += 2 * patches * (width * out + 2 * out**2) + 2 * queries * 3 * out**2 + 4 * queries * patches * out
        layers, itemsize = config.num_hidden_layers, model.dtype.itemsize
        return cls(
            per_position=2 * blocks,
            per_score=4 * config.hidden_size * layers,
            head=2 * config.hidden_size * config.vocab_size,
            image=image,
            weight_bytes=blocks * itemsize,
            head_bytes=config.hidden_size * config.vocab_size * itemsize,
            position_bytes=2 * layers * config.hidden_size * itemsize,
        )
