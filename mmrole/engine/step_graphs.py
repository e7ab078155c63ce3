"""CUDA graphs of the steps of decoding: one for each shape, recorded once, then replayed without Python."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch

from mmrole.base.errors import UserError

SWITCH = "MMROLE_CUDA_GRAPHS"


def graphs_wanted() -> bool:
    """Whether graphs are used where they can be: unless `MMROLE_CUDA_GRAPHS` is 0 in the environment.

    Raises:
        UserError: it is neither 0 nor 1.
    """
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise UserError(f"{SWITCH} is {value!r} in the environment; 0 turns CUDA graphs off, 1 is the default")
    return value == "1"


class StepGraphs:
    """Runs steps on a GPU: the first one of a kind as it is, the others as a graph.

    The first one loads and compiles what a recording may not wait for. A graph holds the addresses of the tensors that
    its step reads and writes: they must stay.

    Attributes:
        wanted: whether graphs are used; not after one could not be recorded.
        recorded: graphs that have been recorded so far.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.wanted = graphs_wanted()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None  # a handle of torch's

    def run(self, kind: Hashable, step: Callable[[], None]) -> None:
        """Takes a step; `kind` names what its tensors and operations follow from."""
        if self.wanted and kind in self._graphs:
            graph = self._graphs[kind]
            if graph is None:
                graph = self._record(step)
                self._graphs[kind] = graph
            if graph is not None:
                graph.replay()
                return
        step()
        self._graphs.setdefault(kind, None)

    def clear(self) -> None:
        """Drops all graphs: the tensors that they have recorded are no more."""
        self._graphs.clear()
        self._pool = None

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        try:
            graph = torch.cuda.CUDAGraph()
            # Other threads read images meanwhile; what they ask of CUDA is no part of the graph.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.wanted = False
            reason = str(error).splitlines()[0][:120]
            warnings.warn(f"decoding without CUDA graphs, which is slower: {reason}", stacklevel=2)
            return None
        self._pool = graph.pool()
        self.recorded += 1
        return graph
