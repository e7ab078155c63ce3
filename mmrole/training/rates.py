"""How fast a run trains: nodes a second, and on a GPU the share of the rate of its matrix products."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from mmrole.models.families import Family
from mmrole.training.batches import TreeBatch

SIZE = 8192  # of the matrices: as large as those of a model of billions of parameters


class Operations(NamedTuple):
    """Of a forward and a backward pass, a multiply-add counted as two; without vision tower and recomputation.

    Nor do routers of experts count, or keys behind a query (the rows of Gemma 3's images).

    Attributes:
        node: in the matrices of all blocks, of experts those that read a token.
        score: one query and one key, in a block.
        target: in the LM head.
        windows: of the blocks, see `Family.windows`.
    """

    node: float
    score: float
    target: float
    windows: Sequence[int]

    @classmethod
    def of(cls, model: nn.Module, family: Family) -> Operations:
        """Counts them by the shapes of a model's matrices, which ZeRO-3 and quantization leave alone.

        Where blocks are trained, three times a forward pass; where adapters are, twice: frozen matrices have no
        gradient.
        """
        blocks = family.blocks(model)
        inner = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
        experts = [weight for block in blocks for weight in block.parameters() if len(_shape(weight)) == 3]
        of_experts = family.active_experts * sum(math.prod(_shape(weight)[1:]) for weight in experts)
        whole = sum(_multiplications(module) for module in inner) + of_experts
        frozen = sum(_multiplications(module) for module in inner if not module.weight.requires_grad)
        frozen += 0 if any(weight.requires_grad for weight in experts) else of_experts
        passes = 2 if frozen > whole / 2 else 3
        head = next((module for name, module in model.named_modules() if name.endswith("lm_head")), None)
        return cls(
            passes * 2 * whole,
            passes * 4 * family.heads * family.head_size,
            passes * 2 * _multiplications(head) if isinstance(head, nn.Linear) else 0.0,
            family.windows,
        )


class TrainingRates:
    """Counts what this process computes between two lines of the log.

    Args:
        operations: of the model.
        matrix_rate: floating-point operations a second of the device's matrix products; None on a CPU.
        world_size: number of processes, which compute about the same.
    """

    def __init__(self, operations: Operations, matrix_rate: float | None, world_size: int) -> None:
        self.operations, self.matrix_rate, self.world_size = operations, matrix_rate, world_size
        self._nodes, self._flops, self._since = 0, 0.0, time.monotonic()

    def add(self, batch: TreeBatch) -> None:
        """Counts a micro-batch, which is still in the memory of the CPU."""
        nodes = len(batch.last)
        seen = int((batch.last + 1).sum()) - nodes * (nodes - 1) // 2  # each node is seen by its subtree
        scores, depths = 0, batch.depths
        for window, blocks in Counter(self.operations.windows).items():
            near = seen if depths is None or not window else int((depths + 1).clamp(max=window).sum())
            scores += blocks * near
        self._nodes += nodes
        self._flops += nodes * self.operations.node + scores * self.operations.score
        self._flops += len(batch.targets) * self.operations.target

    def take(self) -> dict[str, float]:
        """Figures of the log since the last call: `nodes_per_second` of all processes, `matrix_rate_share` of this."""
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        figures = {"nodes_per_second": self._nodes * self.world_size / seconds}
        if self.matrix_rate is not None:
            figures["matrix_rate_share"] = self._flops / seconds / self.matrix_rate
        self._nodes, self._flops = 0, 0.0
        return figures


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations a second of a large product on a GPU, the best of five; None elsewhere."""
    if device.type != "cuda":
        return None
    left, right = (torch.randn(SIZE, SIZE, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):  # the first one only warms up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.mm(left, right)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * SIZE**3 / min(times[1:])


def _shape(weight: nn.Parameter) -> tuple[int, ...]:
    """Also where ZeRO-3 has divided it."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _multiplications(matrix: nn.Linear) -> int:
    return matrix.in_features * matrix.out_features
