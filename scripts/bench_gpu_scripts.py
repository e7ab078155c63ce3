"""Parts of the GPU benchmark: the scripts that people run, once each from end to end on a small random checkpoint."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench_gpu_part import Setting

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("inference.py", "inference.sh", "finetune", "eval/RM_review.py", "eval/RM_review.sh")
WORDS = (
    "a",
    "keeper",
    "of",
    "the",
    "lighthouse",
    "saw",
    "ships",
    "and",
    "gulls",
    "below",
    "his",
    "old",
    "brass",
    "lamp",
)
FILES = ("comment_test.json", "human-role_test.json", "inter-role_test.json")
BUILD = "from deepspeed.ops.op_builder import FusedAdamBuilder; FusedAdamBuilder().load()"
STEP = re.compile(r"step (\d+) of ")


def finetune(setting: Setting) -> None:
    """finetune.py alone, without DeepSpeed."""
    with workspace(setting) as folder:
        flags = ["--gradient_checkpointing", "True", "--per_device_train_batch_size", "16"]
        flags += ["--model_name_or_path", "checkpoint", "--data_path", "train.json", "--output_dir", "trained"]
        flags += ["--use_cpu", "True"] if setting.device_name == "cpu" else ["--bf16", "True"]
        train(setting, folder, [sys.executable, "finetune/finetune.py", *flags])


def finetune_ds(setting: Setting) -> None:
    """The recipe, ZeRO-3, after DeepSpeed has built its optimizer, once on a machine."""
    from mmrole.training import extensions

    extensions.make_architectures_readable(os.environ)
    # As finetune/launch.sh has it: another ninja would have to build it again.
    environment = os.environ | {"PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"DS_ACCELERATOR": "cpu"} if setting.device_name == "cpu" else {}
    start = time.monotonic()
    print("DeepSpeed builds its optimizer", *extensions.locks(), sep="\n", flush=True)
    build = [sys.executable, "-c", BUILD]
    built = subprocess.run(build, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    setting.add("building DeepSpeed's optimizer", "failed" if built.returncode else time.monotonic() - start, "s")
    with workspace(setting) as folder:
        train(setting, folder, ["bash", "finetune/finetune_ds.sh"])


def finetune_lora_ds(setting: Setting) -> None:
    """Adapters, ZeRO-2."""
    with workspace(setting) as folder:
        train(setting, folder, ["bash", "finetune/finetune_lora_ds.sh"], steps=2)


def inference(setting: Setting) -> None:
    """Answers to test samples."""
    with workspace(setting) as folder:
        seconds, _ = run(setting, folder, ["bash", "inference.sh", "--no_random", "--max_new_tokens", "24"])
        outputs = list((folder / "eval/in-test_answers/small").glob("*.json"))
        setting.add("answers of 24 tokens", sum(len(json.loads(path.read_text("utf-8"))) for path in outputs))
        setting.add("the whole call", seconds, "s")


def RM_review(setting: Setting) -> None:
    """Reviews of answers, which stand in for a model's."""
    with workspace(setting) as folder:
        for path in (folder / "data/test/in-distribution").iterdir():
            records = json.loads(path.read_text("utf-8"))
            for record in records:
                record["conversations"][1]["answer"] = text(random.Random(record["id"]), 30)
            place = folder / "eval/in-test_answers/small" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(records), "utf-8")
        command = ["bash", "eval/RM_review.sh", "--no_random", "--max_new_tokens", "24", "--retries", "0"]
        seconds = run(setting, folder, command, allowed=(0, 3))[0]
        replies = sum(
            len(record["rm_review"])
            for path in (folder / "eval/in-test_reviews/small").glob("*.json")
            for record in json.loads(path.read_text("utf-8"))
        )
        setting.add("reviews of 24 tokens", replies)
        setting.add("the whole call", seconds, "s")


def train(setting: Setting, folder: Path, command: list[str], steps: int = 6) -> None:
    """Trains for some steps; the first one compiles."""
    steps = min(2, steps) if setting.tiny else steps
    flags = ["--max_steps", str(steps), "--image_dir", "images", "--save_strategy", "no", "--report_to", "none"]
    flags += ["--model_max_length", "3072", "--logging_steps", "1"]
    seconds, said = run(setting, folder, [*command, *flags])
    loaded = next(when for when, line in said if " parameters are trained" in line)
    setting.add("until the model is loaded", loaded, "s")
    reached = [when for when, line in said if STEP.match(line)]
    if len(reached) != steps:
        raise SystemExit(f"the log names {len(reached)} of {steps} steps")
    setting.add("until the first step is done", reached[0], "s")
    setting.add(f"the other {steps - 1} steps", reached[-1] - reached[0], "s")
    # From the line that says how much is trained, behind which DeepSpeed is made and the first step compiles.
    setting.add(f"{steps} steps, from the start of the first one's work", reached[-1] - loaded, "s")
    setting.add("the whole call", seconds, "s")
    setting.add("last line of the log", [line for _, line in said if STEP.match(line)][-1])


def run(
    setting: Setting, folder: Path, command: list[str], allowed: tuple[int, ...] = (0,)
) -> tuple[float, list[tuple[float, str]]]:
    """Runs a script in a workspace.

    Returns:
        Seconds, and its lines with the seconds when each came.

    Raises:
        SystemExit: it has failed; with its last line.
    """
    with socket.socket() as found:
        found.bind(("", 0))
        port = str(found.getsockname()[1])
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "MODEL": "checkpoint" if "finetune" in command[1] else "small",
        "MODEL_PATH": "checkpoint",
        "DATA": "train.json",
        "OUTPUT_DIR": "trained",
        "MASTER_PORT": port,
        "GLOBAL_BATCH": "16",
        "GPUS_PER_NODE": "1",
        "NPROC": "1",
    }
    if setting.device_name == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    setting.wait_for_turn()
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said: list[tuple[float, str]] = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        said += [(time.monotonic() - start, line.strip())] if line.strip() else []
    if process.wait() not in allowed:
        raise SystemExit(fault([line for _, line in said]) or f"exit status {process.returncode}")
    return time.monotonic() - start, said


def fault(lines: list[str]) -> str:
    """The line that says what went wrong: the last one that names an error, else the last one."""
    named = [line for line in lines if re.match(r"(\[\w+\]: ?)?(error\b|\w*(Error|Exception)\b)", line)]
    return (named or lines or [""])[-1]


@contextmanager
def workspace(setting: Setting) -> Iterator[Path]:
    """A folder like the repository root: links to the scripts, a small random checkpoint, samples about noise."""
    import numpy as np
    from PIL import Image

    from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
    from mmrole.qwen_vl.vocabulary import byte_vocabulary

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for script in SCRIPTS:
            (folder / script).parent.mkdir(parents=True, exist_ok=True)
            (folder / script).symlink_to(ROOT / script)
        sizes = {} if setting.tiny else {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1536}
        config = random_config(256, image_size=224, visual_layers=1, **sizes)
        write_checkpoint(folder / "checkpoint", random_model(config, seed=0), byte_vocabulary())
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(8):
            noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"images/{number}.png")
        samples = [sample(number, 2 if setting.tiny else 20) for number in range(16 if setting.tiny else 96)]
        (folder / "train.json").write_text(json.dumps(samples), "utf-8")
        tests = folder / "data/test/in-distribution"
        tests.mkdir(parents=True)
        for place, file in enumerate(FILES):
            chosen = samples[place :: len(FILES)][: 1 if setting.tiny else 8]
            (tests / file).write_text(json.dumps(chosen), "utf-8")
        yield folder


def sample(number: int, words: int) -> dict[str, object]:
    """A record of the published form; the samples of a dialogue share its beginning, and each has more words of it."""
    shared = text(random.Random(number // 12), words * (3 + number % 12))
    question = f"Please step into the shoes of Keeper. {shared} What do you see?"
    return {
        "id": f"Keeper_comment_{number}",
        "system": "You are a dedicated role-playing assistant.",
        "image": f"{number // 12 % 8}.png",
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": text(random.Random(1000 + number), words + number % words)},
        ],
        "role": "Keeper",
        "script": "Harbour",
        "other_role": "human",
    }


def text(rng: random.Random, words: int) -> str:
    """Words in a random order."""
    return " ".join(rng.choices(WORDS, k=words))
