"""inference.py and eval/RM_review.py with models of transformers: processes, adapters, limits of pixels and length."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.jobs import Job
from fixtures.scripts import kill, load_script
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmrole.backends.engine import find_engine
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, write_json
from mmrole.data.messages import Quotation, one_turn
from mmrole.data.prompts import METRICS
from mmrole.data.requests import ChatRequest
from mmrole.jobs.options import TEST_FILES
from mmrole.models.loading import ModelOptions

KINDS = ("qwen3_vl", "llava", "gemma3")
GREEDY = ("--no_random", "--dtype", "float64")


@pytest.fixture
def vlm_job(make_job: Callable[..., Job], tiny_vlm, image_dir: Path, tmp_path: Path) -> Callable[[str], Job]:
    """Calls of inference.py with a tiny checkpoint of a kind, about six records."""

    def make(kind: str) -> Job:
        job = make_job(tmp_path, tiny_vlm(kind), image_dir)
        job.write([job.sample(number) for number in range(6)])
        return job

    return make


def copied(checkpoint: Path, directory: Path, max_positions: int) -> Path:
    """A copy of a checkpoint that is made for so many positions."""
    shutil.copytree(checkpoint, directory)
    config = read_json(directory / "config.json", dict)
    config["text_config"]["max_position_embeddings"] = max_positions
    write_json(directory / "config.json", config)
    return directory


def test_killed_and_gone_on_with_in_two_processes(vlm_job, repository):
    job = dataclasses.replace(vlm_job("qwen3_vl"), max_new_tokens=40)
    assert job.run(*GREEDY, "--output_dir", job.folder / "at_once") == 0
    process = job.start(repository / "inference.py", *GREEDY, "--max_batch_tokens", 700)
    while process.poll() is None and not any(file.stat().st_size for file in job.journal.glob("*.jsonl")):
        time.sleep(0.02)
    kill(process)
    process = job.start(repository / "inference.py", *GREEDY, processes=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert job.output.read_bytes() == (job.folder / "at_once" / TEST_FILES[0]).read_bytes()
    settings = read_json(Path(f"{job.output}.settings"), dict)
    assert settings["pixels"].endswith("transformers' image processor on Pillow")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter(kind: str, vlm_job, tmp_path: Path):
    job = vlm_job(kind)
    model = AutoModelForImageTextToText.from_pretrained(job.model_path, dtype=torch.float64)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    shutil.copytree(job.model_path, tmp_path / "merged")
    merged: Any = adapted.merge_and_unload  # pyright takes it for a tensor
    merged().save_pretrained(tmp_path / "merged")
    answers = []
    for name, flags in (("merged", ()), ("adapter", ("--use_lora",))):
        model_path = ("--model_path", tmp_path / name)
        assert job.run(*GREEDY, *model_path, *flags, "--output_dir", tmp_path / f"by_{name}") == 0
        answers.append((tmp_path / f"by_{name}" / TEST_FILES[0]).read_bytes())
    assert job.run(*GREEDY) == 0
    assert answers[0] == answers[1] != job.output.read_bytes()
    assert "adapter" in read_json(tmp_path / "by_adapter" / f"{TEST_FILES[0]}.settings", dict)


def test_a_limit_of_pixels(vlm_job):
    job = vlm_job("qwen3_vl")
    assert job.run(*GREEDY, "--max_pixels", 2048) == 0
    assert read_json(Path(f"{job.output}.settings"), dict)["max_pixels"] == 2048
    with pytest.raises(UserError, match="made with other settings: max_pixels was 2048, is not noted"):
        job.run(*GREEDY)
    with pytest.raises(UserError, match=r"^--max_pixels has no effect on .*llava: .* has no such limit; leave it out$"):
        vlm_job("llava").run("--max_pixels", 2048, "--output_dir", job.folder / "refused")
    assert not (job.folder / "refused" / TEST_FILES[0]).exists()


def test_a_limit_of_pixels_that_qwen_vl_refuses(job):
    job.write([job.sample(1)])
    with pytest.raises(
        UserError, match=r"^--max_pixels has no effect on .*: Qwen-VL stretches every image to one size"
    ):
        job.run("--max_pixels", 2048)


def test_a_picture_that_the_model_does_not_take(vlm_job, image_dir, tmp_path):
    job = vlm_job("qwen3_vl")
    shutil.copytree(image_dir, tmp_path / "images")
    Image.new("RGB", (900, 2)).save(tmp_path / "images/Ships/01.png")
    with pytest.raises(UserError, match=r"Ships/01\.png: 900 x 2 pixels, which the model does not take "):
        job.run("--image_dir", tmp_path / "images")


def test_weights_that_are_no_numbers_end_in_one_line(vlm_job, tmp_path):
    job = vlm_job("qwen3_vl")
    copy = shutil.copytree(job.model_path, tmp_path / "damaged")
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "layers.3.self_attn.q_proj" in name)  # which the proof of trees leaves out
    save_file(
        {**weights, name: torch.full_like(weights[name], torch.nan)}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        UserError, match=r"^request '.*': the model computes NaN; try another dtype than .* are damaged$"
    ):
        job.run(*GREEDY, "--model_path", copy)
    assert not job.output.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quoted_is_cut_to_the_context(kind: str, tiny_vlm, image_dir: Path, tmp_path: Path):
    room, reply = 400, 20
    backend = find_engine(ModelOptions(copied(tiny_vlm(kind), tmp_path / kind, room + reply), max_new_tokens=reply))
    quoted = "The harbour sleeps. 船长说：我不怕黑夜。 <|im_end|></s><eos> " * 40
    image = next(image_dir.glob("Ships/*.png"))

    def request(name: str, *texts: str) -> ChatRequest:
        return ChatRequest(name, one_turn("Review.", image, "Read this.\n", Quotation(quoted), *texts))

    (one, other), notes = backend.fit([request("a", "\nWhat of it?"), request("b", "\nSay more about all of it.")])
    assert [note.kind for note in notes] == ["cut"]
    left = [next(part for part in each.messages[1].content if isinstance(part, Quotation)) for each in (one, other)]
    assert left[0] == left[1]
    assert quoted.startswith(left[0].text)
    lengths = [backend.context.lengths.positions(each.messages) for each in (one, other)]
    assert room - 12 <= max(lengths) <= room


def test_a_judge_is_not_the_published_one(vlm_job, repository, tmp_path):
    job = vlm_job("qwen3_vl")
    records = [job.sample(number) for number in range(2)]
    for record in records:
        record["conversations"][1]["answer"] = "Aye. That is her."
    job.write(records)
    judged = dataclasses.replace(job, main=load_script(repository / "eval/RM_review.py").main)
    with pytest.raises(UserError, match="is for reviews by the published reward model; give in-test_reviews@JUDGE"):
        judged.run("--output_dir", tmp_path / "in-test_reviews/m")
    assert judged.run("--output_dir", tmp_path / "in-test_reviews@tiny/m", "--retries", 1) == 0
    reviewed = json.loads((tmp_path / "in-test_reviews@tiny/m" / TEST_FILES[0]).read_bytes())
    assert [list(record["rm_review"]) for record in reviewed] == [list(METRICS)] * 2
