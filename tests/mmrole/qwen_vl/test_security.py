"""Nothing in a checkpoint directory is ever executed, whatever `trust_remote_code` says."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrole.qwen_vl import CheckpointError, QWenConfig, QWenLMHeadModel

CODE_FILES = (
    "configuration_qwen.py",
    "modeling_qwen.py",
    "tokenization_qwen.py",
    "processing_qwen.py",
    "qwen_generation_utils.py",
    "visual.py",
    "__init__.py",
    "custom_generate/generate.py",
)
EVERY_AUTO_MAP = {
    "AutoConfig": "configuration_qwen.QWenConfig",
    "AutoModel": "modeling_qwen.QWenModel",
    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    "AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None],
}
TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}

# Loads every directory with every auto class and every value of trust_remote_code; notes what became of it.
LOAD_ALL = """
import json, sys
import torch
import mmrole.qwen_vl
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

outcomes = {}
for directory in sys.argv[2:]:
    for auto_class in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM):
        for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
            try:
                loaded = auto_class.from_pretrained(directory, **trust)
                if auto_class is AutoModelForCausalLM:
                    loaded.generate(torch.tensor([[1]]), do_sample=False, top_p=None, top_k=None, max_new_tokens=1)
                outcome = type(loaded).__module__
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            key = f"{directory}|{auto_class.__name__}|{trust.get('trust_remote_code')}"
            outcomes[key] = outcome
with open(sys.argv[1], "w") as file:
    json.dump(outcomes, file)
"""


def plant(directory: Path, marker: Path) -> None:
    """Code files that leave a mark when they are imported."""
    for name in CODE_FILES:
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"with open({str(marker)!r}, 'a') as mark:\n    mark.write({f'{directory.name}/{name}'!r} + chr(10))\n"
            "class QWenConfig: model_type = 'qwen'\nclass QWenTokenizer: pass\nclass QWenModel: pass\n"
            "class QWenLMHeadModel: pass\ndef generate(model, *args, **kwargs): pass\n"
        )
    (directory / "custom_generate" / "requirements.txt").write_text("")


def change(file: Path, **fields: object) -> None:
    """Sets fields of a JSON file; None removes one."""
    content = (json.loads(file.read_text()) if file.exists() else {}) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


VARIANTS: dict[str, dict[str, dict[str, object] | None]] = {
    "as_published": {},
    "every_auto_map": {"config.json": {"auto_map": EVERY_AUTO_MAP}},
    "no_tokenizer_config": {
        "config.json": {"auto_map": EVERY_AUTO_MAP, "tokenizer_class": "QWenTokenizer"},
        "tokenizer_config.json": None,
    },
    "foreign_class_in_config": {
        "config.json": {"auto_map": EVERY_AUTO_MAP, "tokenizer_class": "PlantedTokenizer"},
        "tokenizer_config.json": None,
    },
    "tokenizer_class_missing": {"tokenizer_config.json": {"tokenizer_class": None, "auto_map": TOKENIZER_MAP}},
    "tokenizer_class_foreign": {"tokenizer_config.json": {"tokenizer_class": "Planted", "auto_map": TOKENIZER_MAP}},
    "tokenizer_class_known": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "auto_map": TOKENIZER_MAP}},
    "tokenizer_class_fast": {
        "tokenizer_config.json": {"tokenizer_class": "QWenTokenizerFast", "auto_map": TOKENIZER_MAP}
    },
    "old_auto_map_foreign": {
        "tokenizer_config.json": {"tokenizer_class": "Planted", "auto_map": ["tokenization_qwen.QWenTokenizer", None]}
    },
    "old_auto_map": {"tokenizer_config.json": {"auto_map": ["tokenization_qwen.QWenTokenizer", None]}},
    "fast_in_auto_map": {
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "tokenization_qwen.QWenTokenizer"]}}
    },
    "tokenizer_alone": {"config.json": None},
    "processor": {
        "processor_config.json": {
            "processor_class": "QWenProcessor",
            "auto_map": {"AutoProcessor": "processing_qwen.QWenProcessor"},
        },
        "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "processing_qwen.QWenTokenizer"}},
    },
    "generation": {"generation_config.json": {"custom_generate": "custom_generate", "trust_remote_code": True}},
    "private_fields": {
        "config.json": {
            "_auto_class": "AutoConfig",
            "_name_or_path": ".",
            "custom_pipelines": {"x": {"impl": "visual.P"}},
        }
    },
}


def test_planted_code_never_runs(complete_checkpoint, tmp_path):
    marker, directories = tmp_path / "marker", []
    for name, changes in {**VARIANTS, "control": {"config.json": {"model_type": "planted"}}}.items():
        directory = Path(shutil.copytree(complete_checkpoint, tmp_path / name))
        plant(directory, marker)
        for file, fields in changes.items():
            if fields is None:
                (directory / file).unlink()
            else:
                change(directory / file, **fields)
        directories.append(directory)

    def load(directories: list[Path]) -> dict[str, str]:
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(
            [sys.executable, "-c", LOAD_ALL, str(tmp_path / "outcomes.json"), *map(str, directories)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads((tmp_path / "outcomes.json").read_text())

    outcomes = load(directories[:-1])
    assert not marker.exists(), marker.read_text()
    assert not any("transformers_modules" in outcome for outcome in outcomes.values())
    for key, outcome in outcomes.items():
        directory, auto_class, _ = key.split("|")
        variant = Path(directory).name
        if variant == "tokenizer_alone" and auto_class != "AutoTokenizer":
            assert "Error" in outcome, (key, outcome)
        elif variant == "tokenizer_alone" or not variant.startswith(("tokenizer_", "old_auto_map_foreign")):
            assert outcome.startswith("mmrole.qwen_vl."), (key, outcome)
        else:
            assert outcome.startswith("CheckpointError: "), (key, outcome)
            assert "\n" not in outcome
            assert "which is never run" in outcome
    # Without this package's care the planted files do run: a model type that it does not register.
    load(directories[-1:])
    assert "control/configuration_qwen.py" in marker.read_text()


@pytest.mark.parametrize(
    "key",
    ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"],
)
def test_a_kernel_named_in_the_configuration_is_not_obeyed(checkpoint, key):
    # transformers would fetch it from a hub and run it.
    change(checkpoint / "config.json", **{key: "someone/attention-kernel"})
    model = QWenLMHeadModel.from_pretrained(checkpoint)
    assert model.config._attn_implementation == "sdpa"
    assert "someone" not in json.dumps(model.config.to_dict())
    assert (
        QWenLMHeadModel.from_pretrained(checkpoint, attn_implementation="eager").config._attn_implementation == "eager"
    )


def test_the_directory_in_the_configuration_is_not_the_one_looked_at(checkpoint, tmp_path, monkeypatch):
    # `_name_or_path` is "./" in the published file: the current directory has no say.
    other = tmp_path / "elsewhere"
    other.mkdir()
    change(other / "tokenizer_config.json", tokenizer_class="Planted", auto_map=TOKENIZER_MAP)
    monkeypatch.chdir(other)
    assert QWenConfig.from_pretrained(checkpoint)._name_or_path == str(checkpoint)


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("loading", [{}, {"weights_only": False}, {"trust_remote_code": True}], ids=str)
@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_pickle_with_code_is_refused(checkpoint, tmp_path, form, loading):
    shard, marker = checkpoint / "pytorch_model-00002-of-00002.bin", tmp_path / "marker"
    content = torch.load(shard, weights_only=True) | {"planted": Planted(marker)}
    if form == "zip":
        torch.save(content, shard)
    else:
        shard.write_bytes(pickle.dumps({"planted": Planted(marker)}))
    with pytest.raises(CheckpointError) as error:
        QWenLMHeadModel.from_pretrained(checkpoint, **loading)
    assert not marker.exists()
    assert str(shard) in str(error.value)
    assert "\n" not in str(error.value)
    if form == "zip":
        assert "refused, for it would run posix.system" in str(error.value)
