"""Fixtures of the Qwen-VL tests: golden figures, tiny checkpoints in the original layout, models in float32."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrole.qwen_vl import QWenLMHeadModel
from mmrole.qwen_vl.image_processing import preprocess

GOLDEN = Path(__file__).parents[2] / "golden"


class Golden:
    """What the original computes on one of the two tiny checkpoints, `mini` or `full`.

    Attributes:
        ATOL: tolerance of logits and features in float32 on the CPU (spec §10).
        TIGHT: how close this implementation really is, up to a few hundred positions.
    """

    ATOL = 3e-4
    TIGHT = 5e-5

    def __init__(self, name: str, checkpoint: Path) -> None:
        self.name, self.checkpoint = name, checkpoint
        self.folder = GOLDEN / f"model_{name}"
        self.tensors = load_file(self.folder / "tensors.safetensors")
        self.image_start_id = self.config["visual"]["image_start_id"]

    @functools.cached_property
    def config(self) -> dict:
        """The checkpoint's config.json."""
        return json.loads((self.checkpoint / "config.json").read_text())

    def cases(self, file: str) -> dict[str, dict]:
        """The cases of one of the JSON files by name."""
        loaded = json.loads((self.folder / f"{file}.json").read_text())
        return {case["name"]: case for case in (loaded["cases"] if isinstance(loaded, dict) else loaded)}

    def get(self, key: str) -> Tensor | None:
        """A tensor, or None; those that stand for published text come from ../shared."""
        if key.startswith(("train_long/", "eval_long/")):
            return _shared_tensors(self.name)[key]
        return self.tensors.get(key)

    def ids(self, key: str) -> Tensor:
        """Token ids of a case, int64 [batch, positions]."""
        ids = self.get(f"{key}/input_ids")
        return (self.get(f"{key}/prompt")[None] if ids is None else ids).long()

    def read(self, *names: str) -> Tensor:
        """Pixels of images of golden/images by file name: [images, 3, 448, 448]."""
        return torch.stack([read_pixels(name) for name in names])

    def pixels(self, input_ids: Tensor) -> Tensor | None:
        """The pixels of all images in a batch, read from the paths that its ids spell: [images, 3, 448, 448]."""
        spans = [
            row[start + 1 : start + 257].tolist()
            for row in input_ids
            for start in (row == self.image_start_id).nonzero()
        ]
        names = [bytes(span[: span.index(self.image_start_id + 2)]).decode() for span in spans]
        return self.read(*names) if names else None

    def inputs(self, key: str) -> dict[str, Tensor | None]:
        """Arguments of a forward pass."""
        ids = self.ids(key)
        return {"input_ids": ids, "attention_mask": self.get(f"{key}/attention_mask"), "pixel_values": self.pixels(ids)}

    def rows(self, key: str) -> int:
        """How many last positions of a case have golden logits."""
        return next(
            self.tensors[name].shape[1] for name in (f"{key}/logits", f"{key}/logits_cols") if name in self.tensors
        )

    def difference(self, key: str, logits: Tensor, real: Tensor | None = None) -> float:
        """Largest difference of logits [batch, rows, vocabulary] from the golden ones, over rows where `real` is set.

        The full vocabulary is covered by 512 columns, the 32 largest logits and the log of the sum of exponentials.
        """
        if f"{key}/logits" in self.tensors:
            pairs = [(logits, self.tensors[f"{key}/logits"])]
        else:
            pairs = [
                (logits[..., self.tensors["columns"].long()], self.tensors[f"{key}/logits_cols"]),
                (logits.gather(-1, self.tensors[f"{key}/top_ids"].long()), self.tensors[f"{key}/top_values"]),
                (logits.logsumexp(-1, keepdim=True), self.tensors[f"{key}/logsumexp"][..., None]),
            ]
        real = torch.ones(logits.shape[:2], dtype=torch.bool) if real is None else real.bool()
        return max(float((ours - golden)[real].abs().max()) for ours, golden in pairs)


@functools.cache
def _shared_tensors(name: str) -> dict[str, Tensor]:
    file = GOLDEN.parents[2] / "shared" / "golden" / f"model_{name}" / "tensors.safetensors"
    if not file.is_file():
        pytest.skip("../shared is absent; this case holds published text and is not copied")
    return load_file(file)


@functools.cache
def read_pixels(name: str) -> Tensor:
    """An image of golden/images as the figures of the models were computed from it: [3, 448, 448] in float32."""
    images = GOLDEN / "images"
    # Some are kept resized: decoders of JPEG differ, and two were fed in Pillow 13's order of the passes.
    kept = [images / "fed" / f"{name}.448.png", images / "resized" / f"{name}.448.png"]
    return preprocess([next((file for file in kept if file.is_file()), images / "files" / name)])[0]


def full_state_dict() -> dict[str, Tensor]:
    """The weights of ckpt_full: its two tables are sums of rows of two small tables, exact in bfloat16."""
    folder = GOLDEN / "ckpt_full"
    weights, factors = (
        load_file(folder / "weights_without_embeddings.safetensors"),
        load_file(folder / "embedding_factors.safetensors"),
    )
    ids = torch.arange(json.loads((folder / "config.json").read_text())["vocab_size"])
    for name, key, divisor in (("transformer.wte.weight", "wte", 64), ("lm_head.weight", "lm_head", 256)):
        table = factors[f"{key}.u"].float()[ids % 397] + factors[f"{key}.v"].float()[ids // 397]
        if key == "lm_head":
            table[factors["lm_head.override_ids"].long()] = factors["lm_head.override_rows"].float()
        weights[name] = (table / divisor).bfloat16()
    return weights


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """The golden figures of `mini` or `full`."""

    @functools.cache
    def golden(name: str) -> Golden:
        if name == "mini":
            return Golden(name, GOLDEN / "ckpt_mini")
        directory = tmp_path_factory.mktemp("ckpt_full")
        for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "ckpt_full" / file, directory)
        save_file(full_state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
        return Golden(name, directory)

    return golden


@pytest.fixture(scope="session")
def mini(goldens: Callable[[str], Golden]) -> Golden:
    """The golden figures of the mini checkpoint."""
    return goldens("mini")


@pytest.fixture(scope="session")
def models(goldens: Callable[[str], Golden]) -> Callable[..., QWenLMHeadModel]:
    """Models in evaluation mode that all tests share: leave them as they are."""

    @functools.cache
    def model(name: str = "mini", attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> QWenLMHeadModel:
        return QWenLMHeadModel.from_pretrained(
            goldens(name).checkpoint, dtype=dtype, attn_implementation=attention
        ).eval()

    return model


@pytest.fixture
def fresh(goldens: Callable[[str], Golden]) -> Callable[..., QWenLMHeadModel]:
    """A model of one's own in float32."""

    def model(name: str = "mini", **kwargs: object) -> QWenLMHeadModel:
        return QWenLMHeadModel.from_pretrained(goldens(name).checkpoint, **{"dtype": torch.float32} | kwargs)

    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the mini checkpoint's weights and configuration, to be changed at will."""
    return Path(shutil.copytree(GOLDEN / "ckpt_mini", tmp_path / "checkpoint"))


@pytest.fixture
def complete_checkpoint(checkpoint: Path, real_vocabulary: Path) -> Path:
    """The same with its vocabulary, the first 2,000 lines of the real one."""
    lines = real_vocabulary.read_bytes().splitlines(keepends=True)
    (checkpoint / "qwen.tiktoken").write_bytes(b"".join(lines[:2000]))
    return checkpoint


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gradients are off unless a test is marked otherwise by the fixture `gradients`."""
    with torch.set_grad_enabled("gradients" in request.fixturenames):
        yield


@pytest.fixture
def gradients() -> None:
    """Switches gradients on for a test."""
