"""The recipes' shell scripts, end to end on the CPU: the loss falls, and the other scripts use what comes out."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmrole.base.files import read_records
from mmrole.data.records import Review
from mmrole.data.review_data import ReviewedAnswer, make_rows

TEST_FILE = "comment_test.json"


def recipe(repository: Path, script: str, *flags: object, **variables: object) -> subprocess.CompletedProcess:
    """Runs a recipe on two CPU processes, with ZeRO, unless `variables` say otherwise."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu"}
    environment |= {"GPUS_PER_NODE": "2", "GLOBAL_BATCH": "4", "MASTER_PORT": "29670"}
    environment |= {name: str(value) for name, value in variables.items()}
    command = ["bash", str(repository / "finetune" / script), *map(str, flags)]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=550)


def losses(output_dir: Path) -> list[float]:
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def falls(values: list[float]) -> bool:
    return sum(values[-5:]) < 0.9 * sum(values[:5])


@pytest.fixture
def flags(image_dir):
    return ("--image_dir", image_dir, "--max_steps", 14, "--learning_rate", 1e-3, "--report_to", "none")


@pytest.fixture
def answers(shared, image_dir, tmp_path) -> Path:
    """A folder with one published answer about a still."""
    records = json.loads((shared / "mmrole/eval/in-test_answers/mmrole-agent" / TEST_FILE).read_text())
    record = next(record for record in records if (image_dir / record["image"]).is_file())
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / TEST_FILE).write_text(json.dumps([record], ensure_ascii=False))
    return folder


def use(repository: Path, script: str, model: Path, image_dir: Path, folder: Path, *flags: str) -> dict:
    """Runs a script that generates on one record; returns its output."""
    output = model.parent / "used"
    command = [sys.executable, script, "--model_path", str(model), "--image_dir", str(image_dir), *flags]
    command += ["--input_dir", str(folder), "--input_file", TEST_FILE, "--output_dir", str(output)]
    done = subprocess.run(
        [*command, "--max_new_tokens", "4", "--no_random"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((output / TEST_FILE).read_text())
    return record


def test_agent(repository, tiny, data_file, image_dir, flags, answers, tmp_path):
    output = tmp_path / "agent"
    done = recipe(repository, "finetune_ds.sh", *flags, MODEL=tiny, DATA=data_file, OUTPUT_DIR=output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(output)) == 14
    assert falls(losses(output))
    # What the published configuration does: two steps at rate 0, then the logarithm of the step, here of a single one.
    state = json.loads((output / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]
    assert rates == [0, 0, *[1e-3] * 12]
    assert "answer" in use(repository, "inference.py", output, image_dir, answers)["conversations"][1]


@pytest.mark.long
def test_reward_model(repository, tiny, image_dir, flags, answers, shared, tmp_path):
    reviews = read_records(shared / "mmrole/eval/in-test_reviews/mmrole-agent" / TEST_FILE, Review)
    rows = make_rows(ReviewedAnswer("mmrole-agent", review) for review in reviews).usable
    data = [row.to_json() for row in rows if (image_dir / row.review.image).is_file()][:16]
    (tmp_path / "rm.json").write_text(json.dumps(data, ensure_ascii=False))
    output = tmp_path / "rm"
    done = recipe(repository, "finetune_RM_ds.sh", *flags, MODEL=tiny, DATA=tmp_path / "rm.json", OUTPUT_DIR=output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert falls(losses(output))
    reviewed = use(repository, "eval/RM_review.py", output, image_dir, answers)
    assert len(reviewed["rm_review"]) == 8


@pytest.mark.long
def test_adapters(repository, tiny, data_file, image_dir, flags, answers, tmp_path):
    output = tmp_path / "lora"
    done = recipe(
        repository,
        "finetune_lora_ds.sh",
        *flags,
        "--learning_rate",
        1e-2,
        MODEL=tiny,
        DATA=data_file,
        OUTPUT_DIR=output,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(output)[-1] < losses(output)[0]
    adapted = use(repository, "inference.py", output, image_dir, answers, "--use_lora")
    merge = [sys.executable, "scripts/merge_lora.py", "--adapter", output, "--output_dir", tmp_path / "merged/model"]
    subprocess.run([*map(str, merge), "--dtype", "float32"], cwd=repository, check=True)
    assert use(repository, "inference.py", tmp_path / "merged/model", image_dir, answers) == adapted


@pytest.mark.long
@pytest.mark.parametrize("script", ["finetune_vlm_ds.sh", "finetune_vlm_lora_ds.sh"])
def test_models_of_transformers(repository, tiny_vlm, data_file, image_dir, flags, answers, tmp_path, script):
    model = tmp_path / "base"
    shutil.copytree(tiny_vlm("qwen3_vl"), model)
    output = tmp_path / "vlm"
    rate = ("--learning_rate", 1e-2)
    done = recipe(repository, script, *flags, *rate, MODEL=model, DATA=data_file, OUTPUT_DIR=output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert falls(losses(output))
    adapter = ["--use_lora"] if "lora" in script else []
    assert "answer" in use(repository, "inference.py", output, image_dir, answers, *adapter)["conversations"][1]


@pytest.mark.parametrize("script", ["finetune_vlm_ds.sh", "finetune_vlm_lora_ds.sh"])
def test_a_model_must_be_named(repository, script):
    done = recipe(repository, script, MODEL="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: MODEL is not set; give the directory of a checkpoint")
    assert done.stderr.count("\n") == 1


def test_the_recipes_leave_what_is_frozen_to_the_person(repository):
    """--freeze and --fix_vit are refused together, so that one of them in a recipe would forbid the other."""
    recipes = [file.read_text() for file in repository.glob("finetune/finetune_*.sh")]
    assert len(recipes) == 5
    for recipe in recipes:
        given = [line for line in recipe.splitlines() if not line.startswith("#")]
        assert not [line for line in given if "--freeze" in line or "--fix_vit" in line]


@pytest.mark.long
def test_two_nodes(repository, tiny, data_file, flags, tmp_path, same_course):
    def node(rank: int) -> None:
        variables = {"MODEL": tiny, "DATA": data_file, "OUTPUT_DIR": tmp_path / "nodes", "GPUS_PER_NODE": 1}
        variables |= {"NNODES": 2, "NODE_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        done[rank] = recipe(repository, "finetune_ds.sh", *flags, "--max_steps", 4, **variables)

    done: dict[int, subprocess.CompletedProcess] = {}
    nodes = [threading.Thread(target=node, args=(rank,)) for rank in range(2)]
    for thread in nodes:
        thread.start()
    for thread in nodes:
        thread.join()
    assert [done[rank].returncode for rank in range(2)] == [0, 0], done
    together = recipe(
        repository, "finetune_ds.sh", *flags, "--max_steps", 4, MODEL=tiny, DATA=data_file, OUTPUT_DIR=tmp_path / "one"
    )
    assert together.returncode == 0
    same_course(losses(tmp_path / "nodes"), losses(tmp_path / "one"))


def test_mistakes_of_the_environment(repository):
    done = recipe(repository, "finetune_ds.sh", GLOBAL_BATCH=5)
    assert done.returncode == 2
    assert done.stderr.startswith("error: GLOBAL_BATCH=5 cannot be shared out evenly by 2 processes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("GPUS_PER_NODE", value) for value in ("x", "0", "-1", "1.5", "08")),
        *(("NNODES", value) for value in ("0", "1:2", "a[0]")),
        *(("GLOBAL_BATCH", value) for value in ("0", "1e3", "8\n9", "99999999999999999999")),
        *(("NODE_RANK", "1"), ("MASTER_PORT", "65536"), ("MASTER_PORT", "http")),
    ],
)
def test_numbers_that_are_none(repository, name, value):
    done = recipe(repository, "finetune_ds.sh", **{name: value})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {name}=" if value != "0" or name != "GPUS_PER_NODE" else "error: no GPU")
    assert done.stderr.count("\n") == 1
