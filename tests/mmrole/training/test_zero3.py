"""ZeRO-3 on two processes: the gradients of tree batches are those of single samples on one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrole.models.checkpoints import Checkpoint
from mmrole.models.vlm.loading import read_family
from mmrole.qwen_vl.image_processing import preprocess
from mmrole.training.batches import collate
from mmrole.training.encoding import EncodedSample, SampleEncoder

SCRIPT = Path(__file__).with_name("zero3_gradients.py")
IMAGE_SIZE = 224


def single(sample: EncodedSample) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(sample.input_ids).long()[None]
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(~torch.from_numpy(sample.targets), -100),
    }


def pixels(sample: EncodedSample) -> dict[str, torch.Tensor | None]:
    """Qwen-VL's."""
    return {"pixel_values": preprocess([image.file for image in sample.images], IMAGE_SIZE) if sample.images else None}


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.long)])
def test_gradients(make_model, encoded, byte_family, tmp_path, checkpointing):
    """One rank has an image in each micro-batch, the other none in the first and nothing at all in the second."""
    bins = [[encoded[:9], encoded[9:17]], [encoded[17:], []]]
    batches = [[collate(samples, byte_family) for samples in rank] for rank in bins]
    data = {
        "config": make_model().config,
        "family": byte_family,
        "bins": batches,
        "samples": [single(sample) | pixels(sample) for sample in encoded],
        "checkpointing": checkpointing,
    }
    compare(data, tmp_path)


def test_gradients_of_a_model_of_transformers(tiny_vlm, conversations, tmp_path):
    """Qwen3-VL, whose first layers take features as well. One rank has no image at all; the tower is trained."""
    directory = tiny_vlm("qwen3_vl")
    family = read_family(Checkpoint(directory))
    samples = list(SampleEncoder(family, 8000).encode_all(conversations))
    text = [sample for sample in samples if not sample.images]
    bins = [[samples[:9], samples[9:17]], [text, []]]
    singles = []
    for sample in (sample for rank in bins for batch in rank for sample in batch):
        inputs = single(sample)
        shows = torch.zeros_like(inputs["input_ids"])
        for start, stop in (span for image in sample.images for span in image.spans):
            shows[0, start:stop] = 1
        shown = family.preprocess([image.file for image in sample.images]) if sample.images else {}
        singles.append(inputs | {"mm_token_type_ids": shows, **shown})
    data = {
        "directory": directory,
        "family": family,
        "frozen": (),
        "bins": [[collate(batch, family) for batch in rank] for rank in bins],
        "samples": singles,
        "checkpointing": True,
    }
    compare(data, tmp_path)


def compare(data: dict[str, Any], folder: Path) -> None:
    torch.save(data, folder / "batches.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(folder / "batches.pt")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("worst relative difference") == 2
