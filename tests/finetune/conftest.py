"""Fixtures of the tests that train: a tiny checkpoint, published samples with stills, and runs of finetune.py."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from mmrole.data.dataset import as_training, make_sample, read_dataset
from mmrole.qwen_vl.bpe import read_ranks
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint

VOCABULARY_LINES = 4000


@dataclass
class Run:
    """One output directory and the runs that write to it."""

    repository: Path
    output_dir: Path
    flags: list[str]
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 29650
    said: str = ""

    def command(self, *flags: object) -> list[str]:
        """The command line; `flags` come last, and so win."""
        launch = [sys.executable]
        if self.processes > 1 or "DS_ACCELERATOR" in self.environment:
            launch += ["-m", "torch.distributed.run", "--nproc_per_node", str(self.processes)]
            launch += ["--master_port", str(self.port)]
        return [*launch, "finetune/finetune.py", *self.flags, *("--output_dir", str(self.output_dir)), *map(str, flags)]

    def start(self, *flags: object, **options: object) -> subprocess.Popen:
        """Starts it."""
        scripts = str(Path(sys.executable).parent)  # ninja, with which DeepSpeed builds its optimizer
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{scripts}:{os.environ['PATH']}"}
        return subprocess.Popen(
            self.command(*flags),
            cwd=self.repository,
            env=environment | self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    def finish(self, *flags: object, **options: object) -> int:
        """Runs it to the end; returns the exit status."""
        process = self.start(*flags, **options)
        try:
            self.said, _ = process.communicate(timeout=550)
        finally:
            kill(process)
        return process.returncode

    def kill_after_step(self, step: int) -> None:
        """Kills all processes as soon as the log names this step."""
        process = self.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"step {step} of "):
                break
        kill(process)
        self.said = "".join(lines)
        assert f"\nstep {step} of " in self.said, self.said

    def kill_in_save(self, step: int) -> None:
        """Kills all processes while they write a checkpoint."""
        folder = self.output_dir / f"checkpoint-{step}"
        process = self.start()
        try:
            while not any(folder.glob("*")):
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.0005)
        finally:
            kill(process)

    def log(self, name: str = "loss") -> list[float]:
        """A figure of each step, as the finished run has recorded it."""
        state = json.loads((self.output_dir / "trainer_state.json").read_text())
        return [entry[name] for entry in state["log_history"] if name in entry]


def kill(process: subprocess.Popen) -> None:
    """Ends torchrun and its workers, which are no process group, at once, as a fault of the machine does."""
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:], timeout=10)
    process.wait()
    process.stdout.close()


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
