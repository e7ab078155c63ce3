"""Fixtures of the tests that answer samples: a tiny checkpoint, drawn images, and calls of inference.py."""

import copy
import functools
import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image, ImageDraw

from mmrole.backends.options import TEST_FILES
from mmrole.data.prompts import HUMAN_PARTNER, ROLE_PLAY_SYSTEM
from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.chat_format import ChatTurn, decode_answer
from mmrole.qwen_vl.processing import Chat, QWenProcessor
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import train_vocabulary

TEXT = """"What do you see in the picture?" asked the captain. "A ship," said the sailor, "and a storm behind it."
The captain looked at the picture for a long time. "That is my ship," he said. "And that storm is why I am here."
船长看着照片，很久没有说话。"这是我的船。"他说。
"""
IMAGES = ("Ships/01.png", "Ships/02.png", "Ships/船.png")


@dataclass
class Alone:
    """A greedy answer by transformers' `generate()`, without tree and batch.

    Attributes:
        margin: the smallest gap between the two largest logits on the way.
    """

    text: str
    margin: float


@dataclass
class Job:
    """Calls of inference.py in a folder of their own, about one input file unless said otherwise."""

    main: Callable[[list[str]], int]
    folder: Path
    model_path: Path
    image_dir: Path
    max_new_tokens: int = 6

    @property
    def input_dir(self) -> Path:
        return self.folder / "test"

    @property
    def output_dir(self) -> Path:
        return self.folder / "answers"

    @property
    def output(self) -> Path:
        return self.output_dir / TEST_FILES[0]

    @property
    def journal(self) -> Path:
        return self.output_dir / f"{TEST_FILES[0]}.journal"

    @staticmethod
    def sample(number: int, **fields: object) -> dict:
        """A record with a question of its own, a field that the project does not know, and text that is not ASCII."""
        words = random.Random(number).choices(TEXT.split(), k=12)
        return {
            "id": f"Captain_comment_{number}",
            "system": ROLE_PLAY_SYSTEM,
            "image": IMAGES[number % len(IMAGES)],
            "conversations": [
                {"from": "user", "value": f"Please step into the shoes of the captain. {' '.join(words)}"},
                {"from": "assistant", "value": "That is my ship. 这是我的船。"},
            ],
            "role": "Captain",
            "script": "Ships",
            "other_role": HUMAN_PARTNER,
            "note": {"number": number},
        } | fields

    def write(self, records: list[dict], name: str = TEST_FILES[0]) -> list[dict]:
        """Writes an input file."""
        self.input_dir.mkdir(exist_ok=True)
        text = json.dumps(records, ensure_ascii=False, indent=4)
        (self.input_dir / name).write_bytes(text.encode("utf-8", "backslashreplace"))
        return records

    def flags(self, *flags: object, one_file: bool = True) -> list[str]:
        """Arguments of a call; `flags` come last, and so win."""
        arguments = [
            *("--model_path", self.model_path, "--image_dir", self.image_dir),
            *("--input_dir", self.input_dir, "--output_dir", self.output_dir),
            *(("--input_file", TEST_FILES[0]) if one_file else ()),
            *("--max_new_tokens", self.max_new_tokens),
        ]
        return [str(argument) for argument in (*arguments, *flags)]

    def run(self, *flags: object, one_file: bool = True) -> int:
        """Calls `main` in this process; raises what it raises."""
        return self.main(self.flags(*flags, one_file=one_file))

    @staticmethod
    def with_answers(records: list[dict], answers: list[str]) -> bytes:
        """What the output file must hold, byte for byte."""
        records = copy.deepcopy(records)
        for record, answer in zip(records, answers, strict=True):
            record["conversations"][1]["answer"] = answer
        return json.dumps(records, ensure_ascii=False, indent=4).encode("utf-8", "backslashreplace")

    def answers(self, name: str = TEST_FILES[0]) -> list[str]:
        """The answers in an output file."""
        records = json.loads((self.output_dir / name).read_bytes())
        return [record["conversations"][1]["answer"] for record in records]

    @functools.cached_property
    def tokenizer(self) -> QWenTokenizer:
        return QWenTokenizer(self.model_path / "qwen.tiktoken")

    def load(self, dtype: torch.dtype = torch.float64) -> QWenLMHeadModel:
        """The model, for `alone`."""
        return QWenLMHeadModel.from_pretrained(self.model_path, dtype=dtype).eval()

    def alone(self, model: QWenLMHeadModel, record: dict) -> Alone:
        """Answers one record with transformers' `generate()`."""
        turn = ChatTurn(record["conversations"][0]["value"], [self.image_dir / record["image"]])
        inputs = QWenProcessor(self.tokenizer)(Chat([turn], record["system"]))
        output = model.generate(
            **inputs,
            do_sample=False,
            top_p=None,
            top_k=None,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=[self.tokenizer.im_end_id, self.tokenizer.im_start_id, self.tokenizer.eod_id],
            pad_token_id=self.tokenizer.eod_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first, second = torch.stack(output.logits).topk(2).values.unbind(-1)
        answer = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return Alone(decode_answer(self.tokenizer, answer), float((first - second).min()))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the original layout."""
    directory = tmp_path_factory.mktemp("model_weights") / "tiny"
    write_checkpoint(directory, random_model(random_config(300), seed=7), train_vocabulary([TEXT], 300))
    return directory


@pytest.fixture
def copy_of_tiny(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed at will."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `IMAGES`."""
    folder = tmp_path_factory.mktemp("pictures") / "images"
    for number, name in enumerate(IMAGES):
        image = Image.new("RGB", (64 + 16 * number, 48), "ivory")
        ImageDraw.Draw(image).ellipse((8 * number, 4, 30 + 8 * number, 40), fill=("firebrick", "teal", "navy")[number])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return folder


@pytest.fixture(scope="session")
def inference(repository: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("inference", repository / "inference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_job(inference: ModuleType) -> Callable[..., Job]:
    """Makes calls of inference.py with a folder, a checkpoint and images of the test's own."""
    return functools.partial(Job, inference.main)


@pytest.fixture
def job(make_job: Callable[..., Job], tiny: Path, image_dir: Path, tmp_path: Path) -> Job:
    """Calls of inference.py with the tiny checkpoint."""
    return make_job(tmp_path, tiny, image_dir)
