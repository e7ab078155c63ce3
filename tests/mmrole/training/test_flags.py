"""Every flag of transformers' TrainingArguments is obeyed, refused by name, or ignored with a line; docs say which."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from mmrole.base.errors import UserError
from mmrole.training.arguments import TrainingArguments, parse_arguments
from mmrole.training.deepspeed_config import check_parameters, check_sections
from mmrole.training.flags import IGNORED, OBEYED, REFUSED

OTHER_VALUES = {
    "logging_nan_inf_filter": "True",
    "label_names": "labels",
    "train_sampling_strategy": "sequential",
    "length_column_name": "tokens",
    "accelerator_config": '{"split_batches": true}',
    "include_num_input_tokens_seen": "True",
    "include_for_metrics": "loss",
    "metric_for_best_model": "loss",
    "liger_kernel_config": None,  # no command line can give a dictionary of it
    "parallelism_config": None,
    "hub_strategy": "end",
    "debug": "underflow_overflow",
}
FIELDS = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}


def parse(*flags):
    given = ("--model_name_or_path", "m", "--data_path", "d", "--report_to", "none", "--use_cpu", "True")
    return parse_arguments([*given, *map(str, flags)])


def refused(*flags):
    with pytest.raises(UserError) as error:
        parse(*flags)
    said = str(error.value)
    assert "\n" not in said
    return said


def other_value(name):
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    field = FIELDS[name]
    kind = str(field.type)
    if "bool" in kind:
        return str(not field.default)
    return "1" if "int" in kind or "float" in kind else "anything"


def test_every_flag_of_transformers_is_in_one_list():
    lists = [OBEYED, REFUSED.keys(), IGNORED.keys()]
    for name in FIELDS:
        assert sum(name in names for names in lists) == 1, name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_flag_that_would_do_nothing_is_refused_by_name(name):
    if name not in FIELDS:
        pytest.skip("the installed transformers does not have it")
    value = other_value(name)
    if value is None:
        pytest.skip("cannot be given on a command line")
    assert f"--{name} is not supported; leave it out: {REFUSED[name]}" in refused(f"--{name}", value)


def test_a_flag_of_a_newer_transformers_is_refused():
    @dataclasses.dataclass
    class Newer(TrainingArguments):
        pass

    known = transformers.TrainingArguments.__dataclass_fields__
    field = dataclasses.field(default=0)
    field.name, field._field_type = "flag_of_tomorrow", known["seed"]._field_type
    transformers.TrainingArguments.__dataclass_fields__ = known | {"flag_of_tomorrow": field}
    Newer.__dataclass_fields__ = Newer.__dataclass_fields__ | {"flag_of_tomorrow": field}
    Newer.flag_of_tomorrow = 1
    try:
        with pytest.raises(UserError, match="--flag_of_tomorrow is not supported"):
            Newer(output_dir="o", report_to="none", use_cpu=True)
    finally:
        transformers.TrainingArguments.__dataclass_fields__ = known


def test_the_documented_table_is_the_lists(repository):
    page = (repository / "docs/training.md").read_text(encoding="utf-8")
    section = page.partition("\n## Flags\n")[2].partition("\n## ")[0]
    rows = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("| ")}
    for title, names in {"obeyed": OBEYED, "ignored with a line": IGNORED, "refused": REFUSED}.items():
        assert set(re.findall(r"`(\w+)`", rows[title])) == set(names), title


def test_ignored_flags_are_said(capsys):
    parse("--per_device_eval_batch_size", 1, "--lazy_preprocess", "True", "--cache_dir", "c")
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in said) == sorted(f"--{name}" for name in IGNORED)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("learning_rate", value) for value in ("nan", "inf", "-1")),
        *(("warmup_steps", value) for value in ("nan", "-1", "1.5", "inf")),
        *(("max_steps", value) for value in (0, -2)),
        *(("num_train_epochs", value) for value in (0, "nan")),
        *(("adam_beta2", value) for value in (1, "nan", -0.1)),
        *((name, "nan") for name in ("weight_decay", "max_grad_norm", "adam_epsilon", "lora_dropout")),
        *(
            (name, 0)
            for name in ("lora_r", "lora_alpha", "logging_steps", "save_steps", "save_total_limit", "max_batch_tokens")
        ),
        *(("lora_dropout", 1), ("seed", -1), ("seed", 2**32), ("data_seed", -1), ("per_device_train_batch_size", 0)),
    ],
)
def test_a_number_that_cannot_work_is_refused(flag, value):
    adapters = ("--use_lora", "True") if flag.startswith("lora") else ()
    assert refused(*adapters, f"--{flag}", value).startswith(f"--{flag} ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--save_strategy best", "--save_strategy best is not supported"),
        ("--optim lomo", "--optim lomo is not supported"),
        ("--output_dir \udcff", "--output_dir '\\udcff': the name is not UTF-8"),
        ("--output_dir=", "--output_dir is empty"),
        ("--report_to nobody", "--report_to nobody: "),
        ("--fp16 True", "--fp16 True needs a GPU"),
        ("--ddp_backend nccl", "--ddp_backend nccl needs a GPU"),
        ("--fp16 True --bf16 True", "--fp16"),
        ("--lr_scheduler_kwargs {", "--lr_scheduler_kwargs {: give a JSON object"),
        ("--gradient_checkpointing_kwargs {}x --gradient_checkpointing True", "give a JSON object"),
        ('--gradient_checkpointing_kwargs {"use_reentrant":false}', "add --gradient_checkpointing True"),
        ('--gradient_checkpointing_kwargs {"no":1} --gradient_checkpointing True', "there is no no"),
        ("--dataloader_prefetch_factor 2", "--dataloader_prefetch_factor has no effect"),
        ("--eval_steps 5", "--eval_steps has no effect"),
        ("--eval_on_start True", "--eval_on_start True needs --eval_data_path"),
        ("--do_eval True", "--do_eval has no effect"),
        ("--eval_data_path e", "--eval_data_path has no effect"),
        ("--save_strategy epoch --save_steps 5", "--save_steps has no effect"),
        ("--run_name mine", "--run_name has no effect"),
        ("--project mine", "--project has no effect"),
        ("--trackio_space_id mine", "--trackio_space_id has no effect"),
        ("--lora_r 8", "--lora_r has no effect without adapters"),
        ("--lora_weight_path x --use_lora True", "--lora_weight_path is not supported"),
        ("--use_lora True --fix_vit False", "--fix_vit False has no effect"),
        ("--use_lora True --freeze vision", "--freeze has no effect on --use_lora True"),
        ("--freeze vision --fix_vit True", "says what --freeze vision says; leave out either"),
        ("--freeze visual", "--freeze visual: give vision, projector, language, or some with commas, or none"),
        ("--freeze vision,projector,language", "leaves nothing to train"),
        ("--max_pixels 0", "--max_pixels 0: give at least 1"),
        ("--local_rank 3", "--local_rank 3"),
        ("--deepspeed finetune/ds_config_zero2.json", "torchrun"),
    ],
)
def test_what_has_no_effect_or_cannot_work_is_refused(flags, words):
    assert words in refused(*flags.split())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((f"ACCELERATE_USE_{what}", "true") for what in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")),
        *(("ACCELERATE_MIXED_PRECISION", value) for value in ("bf16", "fp8")),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor"),
    ],
)
def test_the_environment_changes_no_run_without_a_word(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert variable in refused()


def test_what_accelerate_sets_on_its_own_is_sound(monkeypatch):
    for name, value in {"MIXED_PRECISION": "no", "USE_CPU": "true", "DYNAMO_BACKEND": "no"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert parse().training.use_cpu


ADAMW = {"type": "AdamW", "params": {"lr": 0.1}}
DEEPSPEED = {
    "not JSON": ('{"optimizer": ', "is not JSON"),
    "no object": ("[]", "must hold"),
    "other rate": ({"optimizer": ADAMW}, "optimizer.params.lr=0.1, but --learning_rate="),
    "other precision": ({"bf16": {"enabled": True}}, "bf16.enabled=True, but --bf16=False"),
    "fixed batch": ({"train_micro_batch_size_per_gpu": 8}, 'set train_micro_batch_size_per_gpu to "auto"'),
    "list for an object": ({"optimizer": []}, "optimizer must be an object, not []"),
    "null for an object": ({"scheduler": None}, "scheduler must be an object, not None"),
    "number for an object": ({"zero_optimization": 2}, "zero_optimization must be an object, not 2"),
    "text for an object": (
        {"zero_optimization": {"offload_param": "cpu"}},
        "offload_param must be an object",
    ),
    "number for a name": ({"optimizer": {"type": 3}}, "optimizer.type must be a name, not 3"),
    "other stage": ({"zero_optimization": {"stage": "three"}}, "stage must be 0, 1, 2 or 3, not 'three'"),
    "no warm-up": (
        {
            "train_micro_batch_size_per_gpu": "auto",
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        },
        "'params': {'warmup_num_steps': 1}",
    ),
    "own optimizer": ({"optimizer": {"type": "AdamW", "params": {}}}, "--optim has no effect"),
}


def test_a_deepspeed_configuration_is_checked_against_the_flags(repository, tmp_path):
    """One process for all configurations, since DeepSpeed takes its time to be imported."""
    pytest.importorskip("deepspeed")
    script = """
import sys
from mmrole.base.errors import UserError
from mmrole.training.arguments import parse_arguments
from mmrole.training.deepspeed_config import check_config
for file in sys.argv[1:]:
    optim = ["--optim", "adafactor"] if "own" in file else []
    flags = "--model_name_or_path m --data_path d --report_to none --deepspeed".split()
    try:
        training = parse_arguments([*flags, file, *optim]).training
        check_config(training, hidden_size=64, total_steps=9)
        training.hf_deepspeed_config.trainer_config_finalize(training, None, 9)
        print(file, training.hf_deepspeed_config.config["scheduler"], sep="\\t")
    except UserError as error:
        print(file, error, sep="\\t")
"""
    files = []
    for name, (text, _) in DEEPSPEED.items():
        files.append(tmp_path / f"{name}.json")
        stage = {"zero_optimization": {"stage": 2}}
        files[-1].write_text(json.dumps(stage | text) if isinstance(text, dict) else text)
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29688"}
    ran = subprocess.run(
        [sys.executable, "-c", script, *files, tmp_path / "none.json"],
        cwd=repository,
        env=os.environ | given | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = dict(line.split("\t") for line in ran.stdout.splitlines() if "\t" in line)
    assert str(tmp_path / "none.json") in said, ran.stderr
    for name, (_, words) in DEEPSPEED.items():
        assert words in said.get(str(tmp_path / f"{name}.json"), ran.stderr), name


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"beta": 0.9}}}, "AdamW takes no beta"),
        ({"optimizer": {"type": "AdamW", "params": {"beta": 0.9, "torch_adam": True}}}, "'beta'"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup": 3}}}, "'warmup'"),
        ({"scheduler": {"type": "WarmupDecayLR"}}, "'total_num_steps'"),
    ],
)
def test_parameters_that_deepspeed_does_not_take_are_named(section, words):
    pytest.importorskip("deepspeed")
    with pytest.raises((TypeError, ValueError), match=words):
        check_parameters(section)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--checkpoint_layers", 4), "--checkpoint_layers has no effect; add --gradient_checkpointing True"),
        (("--gradient_checkpointing", True, "--checkpoint_layers", 0), "--checkpoint_layers 0: give 1 or more"),
    ],
)
def test_blocks_that_are_computed_again(flags, said):
    assert said in refused(*flags)
    assert parse("--gradient_checkpointing", True, "--checkpoint_layers", 4).training.checkpoint_layers == 4


@pytest.mark.parametrize(
    ("flags", "frozen"),
    [
        ("", ["vision"]),
        ("--fix_vit True", ["vision"]),
        ("--fix_vit False", []),
        ("--freeze none", []),
        ("--freeze language,vision", ["vision", "language"]),
    ],
)
def test_frozen_parts(flags, frozen):
    assert parse(*flags.split()).training.frozen == frozen


@pytest.mark.parametrize(("kind", "lines"), [("cosine", 1), ("constant_with_warmup", 0)])
def test_a_schedule_that_deepspeed_outweighs_is_named_unless_it_is_the_same(repository, kind, lines):
    training = parse("--lr_scheduler_type", kind).training
    training.deepspeed = str(repository / "finetune/ds_config_zero2.json")
    training.hf_deepspeed_config = SimpleNamespace(config=json.loads(Path(training.deepspeed).read_text()))
    said = check_sections(training)
    assert len(said) == lines
    assert all("--lr_scheduler_type cosine is ignored" in line for line in said)
