"""Where the README trains and scores a model of transformers, a tiny one in its place does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.jobs import Job

from mmrole.jobs.options import TEST_FILES

MODEL = "Qwen3-VL-8B-Instruct"


@pytest.fixture(scope="module")
def lines(repository: Path) -> list[str]:
    """The commands, in order."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Train and score your own model\n\n```bash\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


@pytest.fixture
def root(repository: Path, tiny: Path, image_dir: Path, tiny_vlm, tmp_path: Path) -> Path:
    """A repository with the scripts, three test samples and four training samples, and a reward model."""
    root = tmp_path / "repository"
    shutil.copytree(repository / "finetune", root / "finetune")
    shutil.copytree(repository / "eval", root / "eval", ignore=lambda folder, names: [n for n in names if "." not in n])
    for name in ("inference.py", "inference.sh"):
        shutil.copy(repository / name, root)
    shutil.copytree(image_dir, root / "images")
    shutil.copytree(tiny, root / "model_weights/MMRole-Eval_RM")
    job = Job(lambda flags: 0, root, tiny, image_dir)
    for number, name in enumerate(TEST_FILES):
        job.write([job.sample(number)], name)
    shutil.move(job.input_dir, root / "data/test/in-distribution")
    samples = [job.sample(number) for number in range(4)]
    (root / "data/train").mkdir()
    (root / "data/train/train_85k.json").write_text(json.dumps(samples, ensure_ascii=False))
    return root


def run(line: str, root: Path, *flags: str) -> None:
    """Runs a line of the README with more flags, on the CPU."""
    variables = {"PYTHON": sys.executable, "NPROC": "1", "OMP_NUM_THREADS": "1"}
    variables |= {"DS_ACCELERATOR": "cpu", "GPUS_PER_NODE": "1", "GLOBAL_BATCH": "2", "MASTER_PORT": "29683"}
    command = " ".join([line.partition("#")[0], *flags])
    done = subprocess.run(["bash", "-c", command], cwd=root, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_downloaded_model_answers_and_its_answers_are_reviewed(lines, root, tiny_vlm):
    download, train, answer, review = lines
    assert download == f"hf download Qwen/{MODEL} --local-dir model_weights/{MODEL}"
    assert f"MODEL=model_weights/{MODEL} OUTPUT_DIR=checkpoints/my-agent " in train
    shutil.copytree(tiny_vlm("qwen3_vl"), root / "checkpoints/my-agent")
    run(answer, root, "--max_new_tokens", "4")
    run(review, root, "--max_new_tokens", "4", "--retries", "0")
    assert {file.name for file in (root / "eval/in-test_reviews/my-agent").glob("*.json")} == {*TEST_FILES}


@pytest.mark.long
def test_a_downloaded_model_is_trained(lines, root, tiny_vlm):
    _, train, answer, _ = lines
    shutil.copytree(tiny_vlm("qwen3_vl"), root / "model_weights" / MODEL)
    run(train, root, "--max_steps", "2", "--image_dir", "images", "--report_to", "none")
    run(answer, root, "--max_new_tokens", "4", "--limit", "1")
    assert (root / f"eval/in-test_answers/my-agent/{TEST_FILES[0]}").is_file()
