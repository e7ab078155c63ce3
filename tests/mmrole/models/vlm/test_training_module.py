"""A micro-batch of trees has the loss and the gradients of its samples, by transformers' own forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.vlms.chosen import ALL, FALLING_BACK, WITH_TREES
from PIL import Image
from torch import Tensor, nn

from mmrole.base.errors import Where
from mmrole.data.messages import LabelledImage, Message
from mmrole.models.checkpoints import Checkpoint
from mmrole.models.vlm import parts
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.loading import read_family
from mmrole.training.batches import collate
from mmrole.training.encoding import EncodedSample, SampleEncoder
from mmrole.training.loss import tree_loss
from mmrole.training.samples import TrainingSample

TOLERANCE = 1e-5
"""transformers rounds to float32 in norms and rotary positions, also in float64."""


def conversation(turns: Sequence[tuple[str, str]], *images: Path) -> TrainingSample:
    """A sample of pictures, then (question, answer) …; the last answer is learned, as are those before it."""
    messages = [
        Message(role, (text,)) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    shown = [LabelledImage(file, f"Picture {number}: ") for number, file in enumerate(images, 1)]
    first = Message("user", (*shown, f"\n{turns[0][0]}" if images else turns[0][0]))
    return TrainingSample(Where("train.json", 0, "0"), (first, *messages[1:]))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingSample]:
    """Four of a dialogue about one picture, three that begin alike about two, one without."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (56, 84 - 28 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    pairs = [(f"And then, number {n}? " + "What did you see? " * 20, f"I sailed on, {n} times.") for n in range(4)]
    dialogue = [conversation(pairs[: n + 1], files[0]) for n in range(4)]
    task = "Judge them by their tone. " * 16
    reviews = [conversation([(task + aspect, f"It is {aspect}.")], *files[::-1]) for aspect in ("form", "fact", "wit")]
    return [*dialogue, *reviews, conversation([("Hi", "Hm")])]


def load(directory: Path, **options: Any) -> tuple[Vlm, Any]:
    """The family of a checkpoint, and its model in training mode."""
    family = read_family(Checkpoint(directory))
    dtype = torch.float32 if "moe" in directory.name else torch.float64  # experts' products have no float64
    return family, family.load_module(directory, dtype=dtype, **options).train()


def one_by_one(model: nn.Module, samples: list[EncodedSample], family: Vlm) -> float:
    """The summed loss of samples by transformers' own forward; leaves the gradients of the sum in the model."""
    total = 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids).long()[None]
        labels = ids.masked_fill(~torch.from_numpy(sample.targets), -100)
        shows = torch.zeros_like(ids)
        for start, stop in (span for image in sample.images for span in image.spans):
            shows[0, start:stop] = 1
        several = sum(image.among_others for image in sample.images)
        more = dict(family.preprocess([image.file for image in sample.images], several)) if sample.images else {}
        if family.images_both_ways:
            more["token_type_ids"] = shows
        if family.position_rows == 3:
            more["mm_token_type_ids"] = shows
        loss = model(input_ids=ids, labels=labels, **more).loss * int(sample.targets[1:].sum())
        loss.backward()
        total += float(loss.detach())
    return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, wanted in expected.items():  # some are 0 but for rounding: the biases of keys
        assert (found[name] - wanted).norm() <= tolerance * (wanted.norm() + 1e-3 * largest), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", WITH_TREES)
def test_loss_and_gradients(kind, checkpointing, tiny_vlm, conversations):
    if checkpointing and kind != "qwen3_vl":
        pytest.skip("done with one kind")
    family, model = load(tiny_vlm(kind), for_training=True)
    samples = list(SampleEncoder(family, 8000).encode_all(conversations))
    batch = collate(samples, family)
    assert len(batch.last) < batch.n_tokens / 2
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = tree_loss(model, batch, family)
    loss.sum.backward()

    _, usual = load(tiny_vlm(kind))
    usual.set_attn_implementation("sdpa")
    tolerance = 20 * TOLERANCE if usual.dtype == torch.float32 else TOLERANCE
    expected = one_by_one(usual, samples, family)
    assert abs(float(loss.sum.detach()) - expected) <= tolerance * expected
    assert_equal(gradients(model), gradients(usual), tolerance)


@pytest.mark.long
@pytest.mark.parametrize("kind", FALLING_BACK)
def test_samples_alone_keep_their_own_attention(kind, tiny_vlm, conversations):
    family = read_family(Checkpoint(tiny_vlm(kind)))
    family.reads_trees = False
    model, usual = (
        family.load_module(tiny_vlm(kind), for_training=training, dtype=torch.float32).train()
        for training in (True, False)
    )
    samples = list(SampleEncoder(family, 8000).encode_all(conversations))
    total = 0.0
    for sample in samples:
        loss = tree_loss(model, collate([sample], family), family).sum
        loss.backward()
        total += float(loss.detach())
    expected = one_by_one(usual, samples, family)
    assert abs(total - expected) <= 1e-5 * expected
    assert_equal(gradients(model), gradients(usual), 1e-4)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("frozen", [(), ("vision",), ("language",)], ids=",".join)
def test_a_micro_batch_without_images_reaches_what_is_trained(kind, frozen, tiny_vlm, conversations):
    """ZeRO-3 and DDP wait for its gradient on every process, and for no other."""
    family, model = load(tiny_vlm(kind), for_training=True)
    family.freeze(model, frozen)
    for each in (conversations[-1:], conversations[:1]):
        model.zero_grad(set_to_none=True)
        tree_loss(model, collate(list(SampleEncoder(family, 8000).encode_all(each)), family), family).sum.backward()
        for name, weight in model.named_parameters():
            assert (weight.grad is not None) == weight.requires_grad, name
            assert not (weight.requires_grad and parts.part_of(name) in frozen), name


def test_without_loss_positions_it_is_the_usual_model(tiny_vlm):
    ids = torch.tensor([[5, 6, 7]])
    found, expected = (
        model.set_attn_implementation("sdpa") or model(input_ids=ids).logits
        for _, model in (load(tiny_vlm("llava"), for_training=training) for training in (True, False))
    )
    assert torch.equal(found, expected)
