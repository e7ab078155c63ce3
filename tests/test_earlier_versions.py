"""What earlier versions left on the disk (earlier_versions/README.md): the same commands go on with it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fixtures.scripts import load_script

QUESTIONS = ("--input_dir", "questions", "--input_file", "comment_test.json", "--max_new_tokens", "10")
ANSWERED = ("--input_dir", "answered", "--input_file", "comment_test.json", "--max_new_tokens", "4")
REVIEWS = ("--no_random", "--swap", "--retries", "2")
ROWS = ("--rm_data", "review_rows/RM-validation.json", "--max_new_tokens", "6")
COMMON = ("--model_path", "model", "--image_dir", "images", "--dtype", "float32", "--device", "cpu")
JOBS = {
    "answers/greedy": ("inference.py", *COMMON, *QUESTIONS, "--no_random", "--output_dir"),
    "answers/sampled": ("inference.py", *COMMON, *QUESTIONS, "--output_dir"),
    "reviews": ("eval/RM_review.py", *COMMON, *ANSWERED, *REVIEWS, "--output_dir"),
    "replies": ("eval/agreement.py", *COMMON, *ROWS, "--replies"),
}
LORA = ("--use_lora", "True", "--lora_r", "1", "--lora_alpha", "4", "--learning_rate", "3e-3", "--use_cpu", "True")
STEPS = ("--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "3")
TRAINING = (
    *("finetune/finetune.py", "--model_name_or_path", "model", "--data_path", "training/samples.json"),
    *("--image_dir", "images", *LORA, *STEPS, "--model_max_length", "512", "--report_to", "none", "--output_dir"),
)


@pytest.fixture
def left(repository: Path, mini_vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the commands run, with the model that they name."""
    folder = Path(shutil.copytree(repository / "tests/earlier_versions/0.1", tmp_path / "left"))
    shutil.copytree(repository / "tests/golden/ckpt_mini", folder / "model")
    shutil.copy(mini_vocabulary, folder / "model/qwen.tiktoken")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(repository: Path) -> Callable[[Sequence[str]], int]:
    """Calls the `main` of a script, whose path comes first."""
    return lambda command: load_script(repository / command[0]).main(list(command[1:]))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the empty files of locks."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def journaled(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for file in folder.rglob("*.jsonl") for line in file.read_bytes().splitlines()[1:]]


@pytest.mark.parametrize(
    ("job", "interrupted", "records_done", "replies_left"),
    [
        ("answers/greedy", "interrupted", "6 records, 3 of them done before", 3),
        ("answers/greedy", "interrupted_of_two", "6 records, 3 of them done before", 3),
        ("answers/sampled", "interrupted", "6 records, 3 of them done before", 3),
        ("reviews", "interrupted", "2 records, 1 of them done before", 11),
    ],
)
def test_an_interrupted_job_goes_on_to_the_same_output(
    left, call, capsys, job, interrupted, records_done, replies_left
):
    assert journaled(left / job / interrupted)
    assert call((*JOBS[job], f"{job}/{interrupted}")) == 0
    said = capsys.readouterr().out
    assert f".json: {records_done}\n" in said
    assert f"\n{replies_left} replies, " in said
    assert contents(left / job / interrupted) == contents(left / job / "finished")


def test_the_interrupted_reviews_are_in_the_midst_of_retries_in_both_orders(left):
    ids = journaled(left / "reviews/interrupted")
    ends = ("/swapped", "/retry-1", "/swapped/retry-1", "/retry-2")
    assert [sum(id_.endswith(end) for id_ in ids) for end in ends] == [8, 16, 8, 5]


def test_interrupted_replies_to_review_prompts_go_on_to_the_same_output(left, call, capsys):
    with pytest.raises(Exception, match=r"share no review with scores \(4 and 4 reviews\)"):  # of a random model
        call((*JOBS["replies"], "replies/interrupted"))
    said = capsys.readouterr().out
    assert ".json: 4 records, 2 of them done before\n" in said
    assert "\n2 replies, " in said
    assert contents(left / "replies/interrupted") == contents(left / "replies/finished")


@pytest.mark.parametrize("job", ["answers/greedy", "answers/sampled", "reviews"])
def test_a_finished_output_is_recognized(left, call, capsys, job):
    before = contents(left / job / "finished")
    assert call((*JOBS[job], f"{job}/finished")) == 0
    assert f"{job}/finished/comment_test.json: finished before, " in capsys.readouterr().out
    assert contents(left / job / "finished") == before


@pytest.mark.parametrize("folder", ["finished", "interrupted"])
def test_other_settings_are_refused_by_name(left, call, folder):
    before = contents(left)
    with pytest.raises(Exception, match="was made with other settings: max_new_tokens was 10, is 9; ") as refused:
        call((*JOBS["answers/sampled"], f"answers/sampled/{folder}", "--max_new_tokens", "9"))
    assert "\n" not in str(refused.value)
    assert contents(left) == before


def test_an_interrupted_training_goes_on_with_the_same_losses(left, call, mini_vocabulary, capsys, same_course):
    checkpoint = left / "training/interrupted/checkpoint-2"
    shutil.copy(mini_vocabulary, checkpoint)
    sizes = json.loads((checkpoint / "complete.json").read_bytes())["files"]
    (checkpoint / "README.md").write_bytes(b" " * sizes["README.md"])
    assert call((*TRAINING, "training/interrupted")) == 0
    said = capsys.readouterr().out
    assert "going on from training/interrupted/checkpoint-2: 2 of 4 steps are done" in said
    assert "step 2 of 4" not in said
    history = json.loads((left / "training/interrupted/trainer_state.json").read_bytes())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    same_course(losses, json.loads((left / "training/losses.json").read_bytes()))
