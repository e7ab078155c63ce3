"""Parts of the GPU benchmark: from files to the first token, and a card with little memory beside the weights."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from bench_gpu_generation import make_engine, release, review_trees
from bench_machine import peak_bytes, reset_peak, timed
from bench_review import make_requests

if TYPE_CHECKING:
    from bench_gpu_part import Setting

SMALL_CARD = 21 * 2**30
"""Bytes that a card of 24 GB leaves to the engine when its context, libraries and a screen have theirs: 3 GiB more
than the weights."""
ROOM = 4 * 2**30
"""Bytes of the disk that are left beside the checkpoint."""


def loading(setting: Setting) -> None:
    """Writes a random checkpoint of the shape, reads its files, then loads it and answers with it."""
    from mmrole.engine.engine import Engine
    from mmrole.models.loading import ModelOptions, find_model, load

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write(setting, checkpoint)
        release()
        files = sorted(checkpoint.glob("*.safetensors"))
        setting.add("weight files", sum(file.stat().st_size for file in files) / 1e9, "GB")
        setting.add("reading the files alone", timed(lambda: read(files), setting.device), "s")
        chosen = find_model(ModelOptions(checkpoint, device=setting.device_name, no_random=True))
        loaded = []
        setting.add("loading", timed(lambda: loaded.append(load(chosen, progress=False)), setting.device), "s")
        engine = Engine(loaded[0])
        requests = make_requests(review_trees(setting)[0], "first")
        first = timed(lambda: list(engine.generate(requests)), setting.device)
        again = timed(lambda: list(engine.generate(requests)), setting.device)
        setting.add(f"{len(requests)} reviews at once, the first time", first, "s")
        setting.add("the same again", again, "s")


def small_card(setting: Setting) -> None:
    """The engine beside the weights where the process may use what a card of 24 GB has for it."""
    if setting.device.type == "cuda":
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, SMALL_CARD / total), setting.device)
    model = setting.random_model()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    setting.add("limit", SMALL_CARD / 2**30, "GiB")
    setting.add("weights", weights / 2**30, "GiB")
    engine = make_engine(model)
    setting.add("positions in memory at once", engine.max_batch_tokens)
    trees = review_trees(setting)[:4]
    requests = [request for number, tree in enumerate(trees) for request in make_requests(tree, str(number))]
    short = [replace(request, settings=replace(request.settings, max_new_tokens=32)) for request in requests]
    reset_peak(setting.device)
    replies = []
    seconds = timed(lambda: replies.extend(engine.generate(short)), setting.device)
    setting.add(f"{len(replies)} reviews of 32 tokens", seconds, "s")
    setting.add("positions in memory at once, after that", engine.max_batch_tokens)
    setting.add("peak memory", peak_bytes(setting.device) / 2**30, "GiB")


def write(setting: Setting, checkpoint: Path) -> None:
    """Writes a random checkpoint of the shape.

    Raises:
        SystemExit: the disk has no room for it.
    """
    from mmrole.qwen_vl.random_checkpoint import write_checkpoint
    from mmrole.qwen_vl.vocabulary import byte_vocabulary

    model = setting.random_model()
    size = sum(parameter.nbytes for parameter in model.parameters())
    free = shutil.disk_usage(checkpoint.parent).free
    if free < size + ROOM:
        raise SystemExit(f"{checkpoint.parent} has {free / 1e9:.0f} GB left; {(size + ROOM) / 1e9:.0f} are needed")
    seconds = timed(lambda: write_checkpoint(checkpoint, model, byte_vocabulary()), setting.device)
    setting.add("writing the weights", seconds, "s")


def read(files: list[Path]) -> None:
    """Reads files to the end."""
    buffer = bytearray(2**24)
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
