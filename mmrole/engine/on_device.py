"""How what a runner computes is run: without gradients, on the model's own device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from mmrole.models.families import TreeModel


class _HasModel(Protocol):
    @property
    def model(self) -> TreeModel: ...


S = TypeVar("S", bound=_HasModel)
P = ParamSpec("P")
T = TypeVar("T")


def on_device(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Without gradients, and with the model's GPU as the current one: CUDA graphs and Triton know no other."""

    @wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        device = self.model.device
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return method(self, *args, **kwargs)

    return run
