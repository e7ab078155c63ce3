"""A tree batch has the loss and the gradients of its samples run one by one, by the model's own forward pass."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.windowed import DenseAttention, WindowedQwen
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrole.models.qwen_vl import QwenVL
from mmrole.prompt_tree import build_tree
from mmrole.qwen_vl import QWenLMHeadModel
from mmrole.qwen_vl.image_processing import preprocess
from mmrole.qwen_vl.lm_head import LossPositions
from mmrole.training.batches import collate
from mmrole.training.encoding import EncodedSample
from mmrole.training.loss import tree_loss

# With AVX2 alone, where processors have no AVX-512, float32 gradients of the image encoder were 1.1e-5 off.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5}
IMAGE_SIZE = 224


def one_by_one(model: nn.Module, samples: list[EncodedSample]) -> float:
    """The summed loss of samples, each on its own; leaves the gradients of the sum in the model."""
    total = 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids).long()[None]
        labels = ids.masked_fill(~torch.from_numpy(sample.targets), -100)
        pixels = preprocess([image.file for image in sample.images], IMAGE_SIZE) if sample.images else None
        loss = model(input_ids=ids, labels=labels, pixel_values=pixels, num_items_in_batch=1).loss
        loss.backward()
        total += float(loss.detach())
    return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients by name; the model is left without."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_equal_to_one_by_one(
    model: nn.Module, samples: list[EncodedSample], family: QwenVL, **collate_options: bool
) -> None:
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    batch = collate(samples, family, **collate_options)
    expected_loss = one_by_one(model, samples)
    expected = gradients(model)
    loss = tree_loss(model, batch, family)
    loss.sum.backward()
    found = gradients(model)
    assert loss.n_targets == sum(int(sample.targets[1:].sum()) for sample in samples)
    assert abs(float(loss.sum.detach()) - expected_loss) <= tolerance * expected_loss
    assert found.keys() == expected.keys()
    assert found, "something is trained"
    for name, wanted in expected.items():
        assert wanted.norm() > 0, name
        assert (found[name] - wanted).norm() <= tolerance * wanted.norm(), name


def test_the_forest_has_what_the_law_is_about(encoded, byte_family):
    tree = build_tree([sample.sequence() for sample in encoded])
    users = np.array([sum(node <= leaf <= tree.last[node] for leaf in tree.leaf) for node in tree.target_nodes])
    assert len(set(tree.leaf)) >= 16
    assert len(tree) < tree.n_tokens / 4
    assert (tree.target_counts > 1).sum() > 20, "targets of several samples"
    assert (tree.target_counts < users).sum() > 20, "targets that are context in other samples"
    assert len(collate(encoded, byte_family).pixels["pixel_values"]) == 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_loss_and_gradients(make_model, encoded, byte_family, attention, dtype):
    assert_equal_to_one_by_one(make_model(dtype, attention), encoded, byte_family)


def test_the_published_trained_parts(make_model, encoded, byte_family):
    model = make_model()
    model.transformer.visual.requires_grad_(False)
    model.transformer.visual.attn_pool.requires_grad_(True)
    assert_equal_to_one_by_one(model, encoded, byte_family)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is not in 5.17
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant: pixels need no gradient
def test_gradient_checkpointing(make_model, encoded, byte_family, use_reentrant):
    model = make_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert_equal_to_one_by_one(model, encoded, byte_family)


def test_lora(make_model, encoded, byte_family):
    targets = ["c_attn", "attn.c_proj", "w1", "w2"]
    model = get_peft_model(make_model(), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_equal_to_one_by_one(model, encoded, byte_family)


def test_without_prompt_tree(make_model, encoded, byte_family):
    assert len(collate(encoded, byte_family, prompt_tree=False).last) == sum(map(len, encoded))
    assert_equal_to_one_by_one(make_model(), encoded, byte_family, prompt_tree=False)


def test_one_sample_is_the_model_s_own_loss(make_model, encoded, byte_family):
    assert_equal_to_one_by_one(make_model(), encoded[:1], byte_family)


@pytest.mark.parametrize("bin_", ["no samples", "no images"])
def test_a_bin_without_images_touches_every_parameter(make_model, encoded, byte_family, bin_):
    model = make_model()
    batch = collate([] if bin_ == "no samples" else encoded[-1:], byte_family)
    loss = tree_loss(model, batch, byte_family)
    loss.sum.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert not any(
        parameter.grad.any() for parameter in model.transformer.visual.parameters() if parameter.requires_grad
    )
    if bin_ == "no samples":
        assert loss.n_targets == 0
        assert float(loss.sum.detach()) == 0
        assert not model.lm_head.weight.grad.any()


def test_evaluation_mode_keeps_the_rules_of_training(make_model, encoded, byte_family):
    """The model's training length is 2,048: what is longer would get other rotary bases and log-n factors."""
    model = make_model()
    model.config.seq_length = 256
    batch = collate(encoded, byte_family)
    with torch.no_grad():
        expected = float(tree_loss(model, batch, byte_family).sum)
        model.eval()
        found = float(tree_loss(model, batch, byte_family).sum)
        without = {key: value for key, value in batch.inputs(byte_family, "sdpa").items() if key != "training_rules"}
        assert abs(float(model(**without).loss) - expected) > 1e-3 * expected
    assert abs(found - expected) <= 1e-12 * expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_windows_and_images_that_see_themselves_both_ways(make_model, encoded, byte_family, attention):
    """Against dense masks of each sample alone."""
    family, model = WindowedQwen(byte_family.tokenizer, byte_family.config), make_model(attention=attention)
    expected_loss = 0.0
    for sample in encoded:
        inputs = collate([sample], family).inputs(family, attention)
        inputs["tree_attention"].attention = DenseAttention(sample.sequence())
        loss = model(**inputs).loss
        loss.backward()
        expected_loss += float(loss.detach())
    expected = gradients(model)
    batch = collate(encoded, family)
    assert len(batch.last) < sum(map(len, encoded)) / 4
    loss = tree_loss(model, batch, family)
    loss.sum.backward()
    found = gradients(model)
    assert abs(float(loss.sum.detach()) - expected_loss) <= 1e-9 * expected_loss
    for name, wanted in expected.items():
        assert (found[name] - wanted).norm() <= 1e-9 * wanted.norm(), name


def test_who_sees_whom_stays_in_the_memory_of_the_cpu(encoded, byte_family):
    family = WindowedQwen(byte_family.tokenizer, byte_family.config)
    moved = collate(encoded, family).to("meta")
    assert all(each is not None and each.device.type == "cpu" for each in (moved.last, moved.first, moved.depths))
    plain = collate(encoded, byte_family)
    assert plain.first is None
    assert plain.depths is None


def test_flash_attention_takes_no_trees(make_model, encoded, byte_family):
    with pytest.raises(ValueError, match="takes no tree's mask"):
        collate(encoded, byte_family).inputs(byte_family, "flash_attention_2")


GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("name", ["train_image", "train_text", "train_two_images", "train_image_fix_vit"])
def test_the_golden_losses_and_gradients(name):
    """What the original code gives on one row, through the loss positions."""
    cases = {case["name"]: case for case in json.loads((GOLDEN / "model_mini/training.json").read_text())}
    tensors, expected = load_file(GOLDEN / "model_mini/tensors.safetensors"), cases[name]
    model = QWenLMHeadModel.from_pretrained(GOLDEN / "ckpt_mini", dtype=torch.float32).train()
    if expected["regime"] == "fix_vit":
        model.transformer.visual.requires_grad_(False)
        model.transformer.visual.attn_pool.requires_grad_(True)
    ids, labels = (tensors[f"{name}/{key}"].long() for key in ("input_ids", "labels"))
    learned = (labels[0, 1:] != -100).nonzero()[:, 0]
    positions = LossPositions(learned, labels[0, learned + 1], torch.ones_like(learned))
    loss = model(input_ids=ids, pixel_values=golden_pixels(model, ids), loss_positions=positions).loss / len(learned)
    loss.backward()
    assert len(learned) == expected["n_targets"]
    assert abs(float(loss.detach()) - expected["loss"]) <= 1e-4 * expected["loss"]
    for key, parameter in model.named_parameters():
        norm = expected["grad_norms"][key]
        assert (parameter.grad is None) == (norm is None), key
        assert norm is None or abs(float(parameter.grad.norm()) - norm) <= 1e-4 * norm, key


def golden_pixels(model: QWenLMHeadModel, ids: Tensor) -> Tensor | None:
    """The images whose names the golden ids spell."""
    start = model.config.image_start_id
    spans = [ids[0, place + 1 : place + 257].tolist() for place in (ids[0] == start).nonzero()[:, 0].tolist()]
    names = [bytes(span[: span.index(start + 2)]).decode() for span in spans]
    files = [_fed(name) for name in names]
    return preprocess(files) if files else None


def _fed(name: str) -> Path:
    """An image as the figures were computed from it: some are kept resized (decoders and orders of passes differ)."""
    images = GOLDEN / "images"
    kept = [images / "fed" / f"{name}.448.png", images / "resized" / f"{name}.448.png"]
    return next((file for file in kept if file.is_file()), images / "files" / name)
