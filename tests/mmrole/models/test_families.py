"""What is Qwen's stays in models/: neither the engine nor training knows it."""

import re
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[3] / "mmrole"
QWENS = re.compile(
    r"mmrole\.(models\.)?qwen_vl|QWen|QwenVL|c_attn|transformer\.h\b|\.h\.|kv_channels|ntk|\bseq_length|\.visual\b|attn_pool\.|qwen\.tiktoken"
    r"|FEATURES_PER_IMAGE|im_(start|end)_id|eod_id|img_\w+_id"
    r"|(?<!MIN_SHARED = )(?<!MOST_CHANNELS = )\b256\b(?! samples)"
)
MODULES = sorted(file for package in ("engine", "training") for file in (PACKAGES / package).glob("*.py"))
# What decides and counts: all that touches a device is elsewhere.
BOOKKEEPING = ("batch", "engine", "images", "planning", "reply_text")


@pytest.mark.parametrize("module", MODULES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_engine_and_training_know_no_attribute_of_qwens(module):
    lines = enumerate(module.read_text().splitlines(), 1)
    assert [f"{number}: {line.strip()}" for number, line in lines if QWENS.search(line)] == []


@pytest.mark.parametrize("name", BOOKKEEPING)
def test_bookkeeping_touches_no_device(name):
    text = (PACKAGES / "engine" / f"{name}.py").read_text()
    assert re.findall(r"^ *(?:from|import) torch.*", text, re.MULTILINE) in (
        [],
        ["from torch import OutOfMemoryError"],
    )
