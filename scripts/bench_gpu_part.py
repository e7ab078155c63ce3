"""Runs one part of the GPU benchmark in this process: what `bench_gpu.py` starts, and what its parts share.

python scripts/bench_gpu_part.py reviews --shape tiny --device cpu
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from bench_machine import Machine

    from mmrole.qwen_vl import QWenLMHeadModel

MODULES = {
    "bench_gpu_correct": ("correct",),
    "bench_gpu_generation": ("reviews", "answers", "prefill"),
    "bench_gpu_training": ("training",),
    "bench_gpu_loading": ("loading", "small_card"),
    "bench_gpu_scripts": ("finetune_ds", "finetune_lora_ds", "finetune", "inference", "RM_review"),
}
"""Where the parts are: functions of these names that take a `Setting`."""


@dataclass
class Setting:
    """What a part runs on, and where its figures go.

    Attributes:
        shape: `real`, or `tiny` for a look whether it runs.
        device_name: `cuda` or `cpu`.
        figures: a file that gets a line for each figure as soon as it is measured.
        in_turn: wait for a line on standard input before the device is used.
    """

    shape: str
    device_name: str
    figures: Path | None = None
    in_turn: bool = False

    @property
    def tiny(self) -> bool:
        """Whether nothing but running counts."""
        return self.shape == "tiny"

    def wait_for_turn(self) -> None:
        """Waits until nobody else uses the device: before it is used.

        Raises:
            SystemExit: whoever would say so has ended.
        """
        if self.in_turn and not sys.stdin.readline():
            raise SystemExit(1)
        self.in_turn = False

    @cached_property
    def device(self) -> torch.device:
        """Where it runs; waits for the turn."""
        import torch

        self.wait_for_turn()
        if self.device_name == "cuda" and not torch.cuda.is_available():
            raise SystemExit("error: torch finds no GPU; --device cpu --shape tiny shows whether the benchmark runs")
        return torch.device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights: bfloat16 on a GPU."""
        import torch

        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @cached_property
    def machine(self) -> Machine:
        """The measured rates of the device, which become figures."""
        from bench_machine import measure

        found = measure(self.device, self.dtype, roughly=self.tiny)
        self.add("matrix product", found.flops / 1e12, "TFLOP/s")
        self.add("memory read", found.bytes / 1e9, "GB/s")
        return found

    def random_model(self) -> QWenLMHeadModel:
        """A model with random weights of the shape."""
        from bench_machine import random_model

        return random_model(self.shape, self.device, self.dtype)

    def add(self, what: str, value: float | str, unit: str = "") -> None:
        """Prints a figure and writes it down."""
        from bench_gpu import shown

        print(f"{what}: {shown(value)} {unit}", flush=True)
        if self.figures is not None:
            with open(self.figures, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, "value": value, "unit": unit}) + "\n")

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Lets what is measured inside fail alone: what it raised is its figure."""
        try:
            yield
        except Exception as error:
            words = f"{type(error).__name__}: {error}".strip().splitlines()
            self.add(what, f"failed: {words[-1][:200]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, str] = {part: module for module, names in MODULES.items() for part in names}
    parser.add_argument("part", choices=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--figures", type=Path, help="a file to which figures are added, a line of JSON for each")
    parser.add_argument(
        "--shape", choices=("real", "tiny"), default="real", help="Qwen-VL-Chat's, or one that only runs"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    parser.add_argument(
        "--in_turn", action="store_true", help="wait for a line on standard input before the device is used"
    )
    arguments = parser.parse_args(argv)
    run: Callable[[Setting], None] = getattr(import_module(parts[arguments.part]), arguments.part)
    run(Setting(arguments.shape, arguments.device, arguments.figures, arguments.in_turn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
