"""Losses, gradients and small training runs against the golden figures; transformers' Trainer."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

RELATIVE = 1e-4
NAMES = ("mini", "full")


def _cases(with_gradients: bool) -> list[tuple[str, str]]:
    folder = Path(__file__).parents[2] / "golden"
    files = {name: json.loads((folder / f"model_{name}" / "training.json").read_text()) for name in NAMES}
    return [
        (name, case["name"])
        for name in NAMES
        for case in files[name]
        if "regime" in case and ("grad_norms" in case) == with_gradients
    ]


def arguments(golden, case: str) -> dict[str, torch.Tensor | None]:
    return golden.inputs(case) | {"labels": golden.get(f"{case}/labels").long()}


def freeze(model, regime: str) -> None:
    """`as_built` trains what the constructor made trainable; `fix_vit` is MMRole's (spec §7)."""
    if regime == "fix_vit":
        model.transformer.visual.requires_grad_(False)
        model.transformer.visual.attn_pool.requires_grad_(True)


@pytest.mark.parametrize(
    ("name", "case", "attention"),
    [
        (*case, attention)
        for case in _cases(with_gradients=True)
        for attention in ("eager", "sdpa")
        if attention == "sdpa" or case[0] == "mini"  # enough to show that both agree
    ],
)
def test_loss_and_the_gradient_of_every_parameter(goldens, fresh, name, case, attention, gradients):
    golden = goldens(name)
    expected = golden.cases("training")[case]
    model = fresh(name, attn_implementation=attention).train(expected["training"])
    freeze(model, expected["regime"])
    inputs = arguments(golden, case)
    assert int((inputs["labels"][:, 1:] != -100).sum()) == expected["n_targets"]
    loss = model(**inputs).loss
    assert abs(float(loss.detach()) - expected["loss"]) <= RELATIVE * expected["loss"]
    loss.backward()
    parameters = dict(model.named_parameters())
    assert {key: parameter.requires_grad for key, parameter in parameters.items()} == expected["requires_grad"]
    assert set(parameters) == set(expected["grad_norms"])
    for key, norm in expected["grad_norms"].items():
        gradient = parameters[key].grad
        if norm is None:
            assert gradient is None, key
        else:
            assert gradient is not None, key
            assert abs(float(gradient.norm()) - norm) <= RELATIVE * norm, key
    rows = int((model.transformer.wte.weight.grad != 0).any(dim=1).sum())
    assert rows == expected["wte_rows_with_gradient"]


@pytest.mark.parametrize(("name", "case"), _cases(with_gradients=False))
def test_loss_in_evaluation_mode(goldens, models, name, case):
    expected = goldens(name).cases("training")[case]["loss"]
    loss = float(models(name)(**arguments(goldens(name), case)).loss)
    assert abs(loss - expected) <= RELATIVE * expected


@pytest.mark.parametrize("case", ["train_image", "train_text", "train_image_fix_vit", "train_text_fix_vit"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant, frozen vision tower
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is not in 5.17
def test_gradient_checkpointing_changes_nothing(mini, fresh, use_reentrant, case, gradients):
    expected = mini.cases("training")[case]
    model = fresh().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    freeze(model, expected["regime"])
    calls = []
    hook = model.transformer.h[0].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    output = model(**arguments(mini, case))
    output.loss.backward()
    hook.remove()
    assert len(calls) == 2, "the block is computed again in the backward pass"
    assert output.past_key_values is None
    assert abs(float(output.loss.detach()) - expected["loss"]) <= RELATIVE * expected["loss"]
    for key, parameter in model.named_parameters():
        norm = expected["grad_norms"][key]
        assert (parameter.grad is None) == (norm is None), key
        assert norm is None or abs(float(parameter.grad.norm()) - norm) <= RELATIVE * norm, key


@pytest.mark.parametrize("run", ["adamw_fix_vit", "adamw_lora_targets"])
def test_a_small_training_run(mini, fresh, run, gradients, same_course):
    model = fresh().train()
    if run == "adamw_fix_vit":
        freeze(model, "fix_vit")
    else:
        for key, parameter in model.named_parameters():
            layer = key.startswith("transformer.h.")
            parameter.requires_grad_(
                layer and key.endswith(("c_attn.weight", "attn.c_proj.weight", "w1.weight", "w2.weight"))
            )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    inputs = arguments(mini, "train_image")
    expected, losses = mini.cases("training")[run]["losses"], []
    for _ in expected:
        loss = model(**inputs).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    same_course(losses, expected)


def test_num_items_in_batch_divides_the_sum(mini, models):
    inputs = arguments(mini, "train_batch")
    targets = int((inputs["labels"][:, 1:] != -100).sum())
    mean = models()(**inputs).loss
    for number in (2 * targets, torch.tensor(2 * targets)):
        torch.testing.assert_close(models()(**inputs, num_items_in_batch=number).loss, mean / 2)


def test_the_loss_of_a_bfloat16_model_is_float32(mini, models):
    loss = models("mini", "sdpa", torch.bfloat16)(**arguments(mini, "train_image")).loss
    assert loss.dtype == torch.float32
    assert abs(float(loss) - mini.cases("training")["train_image"]["loss"]) < 0.1


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("input_ids", "attention_mask", "labels")}
    return batch | {"pixel_values": torch.cat([sample["pixel_values"] for sample in samples])}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_the_trainer_takes_two_steps(mini, fresh, tmp_path, checkpointing, gradients):
    inputs = arguments(mini, "train_two_images")
    image = arguments(mini, "train_image")
    for labels in (inputs["labels"], image["labels"]):
        labels[:, 0] = -100  # the Trainer counts it among the targets, though nothing predicts it
    samples = [
        {key: value if key == "pixel_values" else value[0] for key, value in arguments_.items()}
        for arguments_ in (inputs, inputs, image, image)
    ]
    model = fresh()
    freeze(model, "fix_vit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            gradient_checkpointing=checkpointing,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=samples,
        eval_dataset=samples[2:],
        data_collator=collate,
    )
    trainer.train()
    # The first step: two equal samples in two micro-batches, so its loss is that of the one sample.
    expected = mini.cases("training")["train_two_images"]["loss"]
    assert abs(trainer.state.log_history[0]["loss"] - expected) < 1e-3 * expected
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value.cpu(), before[key])}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == trained
    assert trainer.evaluate()["eval_loss"] < mini.cases("training")["train_image"]["loss"]
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = type(model).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in reloaded.state_dict().items())
