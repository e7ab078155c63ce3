"""Fixtures of the tests that train: a tiny checkpoint, published samples with stills, and runs of finetune.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.training_runs import Run

from mmrole.data.dataset import as_training, make_sample, read_dataset
from mmrole.qwen_vl.bpe import read_ranks
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint

VOCABULARY_LINES = 4000


@pytest.fixture(scope="session")
def tiny(real_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with the beginning of the real vocabulary."""
    directory = tmp_path_factory.mktemp("model_weights") / "tiny"
    ranks = {token: rank for token, rank in read_ranks(real_vocabulary).items() if rank < VOCABULARY_LINES}
    config = random_config(len(ranks), image_size=224, visual_width=32, visual_layers=1)
    write_checkpoint(directory, random_model(config, seed=3), ranks)
    return directory


@pytest.fixture(scope="session")
def samples(shared: Path) -> list[dict]:
    """Published samples: two dialogues of each kind about stills."""
    dataset = read_dataset(shared / "mmrole")
    rows = []
    for kind in ("comment", "human-role", "inter-role"):
        dialogues = (
            dialogue
            for dialogue in dataset.usable("in-distribution", kind)
            if "COCO" not in dialogue.image and (shared / "mmrole/images" / dialogue.image).is_file()
        )
        for _ in range(2):
            dialogue = next(dialogues)
            rows += [
                as_training(make_sample(dialogue, target, dataset.characters), kind) for target in dialogue.targets
            ][:6]
    return rows


@pytest.fixture(scope="session")
def data_file(samples: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file as published."""
    file = tmp_path_factory.mktemp("train") / "train.json"
    file.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def image_dir(shared: Path) -> Path:
    return shared / "mmrole/images"


@pytest.fixture(scope="session")
def make_run(repository: Path, tiny: Path, data_file: Path, image_dir: Path) -> Callable[..., Run]:
    """Makes runs on one process, on the CPU, with eight samples a step."""

    def make(output_dir: Path, *flags: object, processes: int = 1, **environment: str) -> Run:
        common = {
            "--model_name_or_path": tiny,
            "--data_path": data_file,
            "--image_dir": image_dir,
            "--use_cpu": True,
            "--per_device_train_batch_size": 8 // processes,
            "--learning_rate": 1e-3,
            "--logging_steps": 1,
            "--model_max_length": 4096,
            "--report_to": "none",
        }
        given = [str(item) for pair in common.items() for item in pair]
        return Run(repository, output_dir, [*given, *map(str, flags)], processes, environment)

    return make
