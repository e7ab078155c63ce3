"""The next item is made in a thread while this one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items, each taken from `items` in a thread as soon as the one before it is handed out.

    What `items` raises is raised where its item would come.

    Args:
        items: used by the thread alone from here on.
        device: of the caller; on a GPU the thread pins memory for it.
    """
    end: Any = object()
    with ThreadPoolExecutor(1, "ahead", _use, (device,)) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else the first GPU, whichever this process has
