"""From a judge to a reward model: what docs/data.md shows, whole, with a file of replies in place of a server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrole.data.prompts import METRICS, ROLE_PLAY_SYSTEM
from mmrole.jobs.options import TEST_FILES

MODELS = ("mmrole-agent", "my-agent")


@pytest.fixture
def root(repository: Path, tiny: Path, tmp_path: Path) -> Path:
    """A copy of the scripts with a tiny checkpoint, two models' answers to three prompts, and a judge's replies."""
    for folder in ("eval", "finetune"):
        shutil.copytree(repository / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*_*/"))
    (tmp_path / "model_weights").mkdir()
    (tmp_path / "model_weights/Qwen-VL-Chat").symlink_to(tiny)
    (tmp_path / "images").mkdir()
    replies = []
    for number, name in enumerate(TEST_FILES):
        Image.new("RGB", (64, 48), (80 * number, 90, 200)).save(tmp_path / f"images/{number}.png")
        turns = [{"from": "user", "value": f"What is number {number}?"}, {"from": "assistant", "value": "A ship."}]
        sample = {
            "id": f"Mira_{number}_0",
            "system": ROLE_PLAY_SYSTEM,
            "image": f"{number}.png",
            "conversations": turns,
        }
        sample |= {"role": "Mira", "script": "Harbour", "other_role": "a curious human"}
        write(tmp_path / "data/test/in-distribution" / name, sample)
        for model in MODELS:
            answered = [turns[0], turns[1] | {"answer": f"{model} says ship."}]
            write(tmp_path / "eval/in-test_answers" / model / name, sample | {"conversations": answered})
        replies += [{"id": f"Mira_{number}_0/{metric}", "text": "Well. [Scores]: (7, 8)"} for metric in METRICS]
    (tmp_path / "replies.jsonl").write_text("\n".join(map(json.dumps, replies)))
    return tmp_path


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([record]))


def scripts(repository: Path) -> list[str]:
    """The whole walk, and how a model of transformers is trained in it."""
    section = (repository / "docs/data.md").read_text("utf-8").partition("## From a judge to a reward model\n")[2]
    return re.findall(r"^```bash\n(.*?)^```$", section.partition("\n## ")[0], re.DOTALL | re.MULTILINE)


def test_the_walk_of_the_docs(root: Path, repository: Path):
    walk(root, scripts(repository)[0])


@pytest.mark.long
def test_the_walk_with_a_model_of_transformers(root: Path, repository: Path, tiny_vlm):
    shutil.copytree(tiny_vlm("qwen3_vl"), root / "model_weights/Qwen3-VL-8B-Instruct")
    script, training = scripts(repository)
    (line,) = re.findall(r"^DATA=.* bash finetune/finetune_RM_ds.sh\n", script, re.MULTILINE)
    walk(root, script.replace(line, training), rate="1e-2")


def walk(root: Path, script: str, rate: str = "3e-3") -> None:
    """Runs it with a file of replies for the server, and little training, after which the judge's words are known."""
    (recipe,) = re.findall(r"bash (finetune/finetune_\w+\.sh)", script)
    small = {
        "API_BASE=https://api.openai.com/v1 API_MODEL=gpt-4o MODEL=$model bash eval/RM_review.sh": "MODEL=$model bash "
        "eval/RM_review.sh --replies replies.jsonl",
        f" bash {recipe}": f" bash {recipe} --max_steps 14 --learning_rate {rate} --report_to none",
        "--model_path checkpoints/rm-gpt-4o": "--model_path checkpoints/rm-gpt-4o --max_new_tokens 16",
        "MODEL_PATH=checkpoints/rm-gpt-4o bash eval/RM_review.sh": "MODEL_PATH=checkpoints/rm-gpt-4o bash "
        "eval/RM_review.sh --no_random --max_new_tokens 16",
    }
    for shown, run in small.items():
        assert script.count(shown) == 1
        script = script.replace(shown, run)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "GLOBAL_BATCH": "16", "MASTER_PORT": "29690"}
    command = ["bash", "-c", f"set -euo pipefail\n{script}"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 usable reviews of 6 answers by 2 models; the judge: gpt-4o" in done.stdout
    # It has learned to say what the judge always says, to a prompt that it has not seen as well.
    compared = ["16 reviews compared: the first set", "24 reviews compared: rm-gpt-4o (first) and gpt-4o (second)"]
    for beginning, table in zip(compared, done.stdout.split("reviews compared: ")[1:], strict=True):
        assert beginning in done.stdout
        _, n, *numbers = re.split(r" {2,}", re.search(r"^All reviews .*$", table, re.MULTILINE)[0])
        assert [n, *numbers[:4]] == [beginning[:2], "0.000", "0.000", "0.000", "0.000"]
