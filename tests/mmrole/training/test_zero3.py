"""ZeRO-3 on two processes: the gradients of tree batches are those of single samples on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrole.qwen_vl.image_processing import preprocess
from mmrole.training.batches import collate
from mmrole.training.encoding import EncodedSample

SCRIPT = Path(__file__).with_name("zero3_gradients.py")
IMAGE_SIZE = 224


def single(sample: EncodedSample) -> dict[str, torch.Tensor | None]:
    ids = torch.from_numpy(sample.input_ids).long()[None]
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(~torch.from_numpy(sample.targets), -100),
        "pixel_values": preprocess([image.file for image in sample.images], IMAGE_SIZE) if sample.images else None,
    }


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.long)])
def test_gradients(make_model, encoded, byte_family, tmp_path, checkpointing):
    """One rank has an image in each micro-batch, the other none in the first and nothing at all in the second."""
    bins = [[encoded[:9], encoded[9:17]], [encoded[17:], []]]
    batches = [[collate(samples, byte_family) for samples in rank] for rank in bins]
    data = {
        "config": make_model().config,
        "family": byte_family,
        "bins": batches,
        "samples": [single(sample) for sample in encoded],
        "checkpointing": checkpointing,
    }
    torch.save(data, tmp_path / "batches.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(tmp_path / "batches.pt")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("worst relative difference") == 2
