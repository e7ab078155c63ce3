"""Trees are used with a model only where they are found to be exact, and that is found out once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.vlms.chosen import FALLING_BACK, WITH_TREES
from safetensors.torch import load_file, save_file

from mmrole.base.errors import UserError
from mmrole.engine.engine import Engine
from mmrole.engine.sequence_runner import SequenceRunner
from mmrole.models.checkpoints import find_checkpoint
from mmrole.models.loading import ModelOptions, check_checkpoint, find_model, load
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.kept_proof import prove_once
from mmrole.models.vlm.loading import read_family
from mmrole.models.vlm.proof import prove
from mmrole.models.vlm.tree_model import VlmTreeModel

WITHOUT_TREES = [pytest.param(kind, marks=pytest.mark.long) for kind in FALLING_BACK]


@pytest.fixture
def family(tiny_vlm: Callable[[str], Path]) -> Callable[[str], Vlm]:
    return lambda kind: read_family(find_checkpoint(tiny_vlm(kind), False))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which it is kept what was found out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmrole" / "proofs"


@pytest.fixture
def copy(tiny_vlm: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return shutil.copytree(tiny_vlm("qwen2_5_vl"), tmp_path / "model")


@pytest.mark.parametrize("kind", WITH_TREES)
def test_trees_are_exact(kind, family):
    sound = family(kind)
    drawn = torch.get_rng_state()
    assert prove(sound, sound.directory) is None
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("kind", WITHOUT_TREES)
def test_a_recurrent_model_reads_no_trees_but_sequences(kind, family, tiny_vlm, kept, capsys):
    assert prove(family(kind), family(kind).directory) == "logits differ by 1e+00 of the largest"
    model = load(find_model(ModelOptions(tiny_vlm(kind), dtype="float32", device="cpu")), progress=False)
    assert not model.family.reads_trees
    assert isinstance(model, VlmTreeModel)
    assert isinstance(Engine(model, 1000).runner, SequenceRunner)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert line.startswith("note: prompt trees are not exact with this model (logits differ by")
    assert line.endswith("each sequence is read alone: slower, never wrong")


@pytest.mark.parametrize(
    ("kind", "fact", "value"), [("gemma3", "images_both_ways", False), ("qwen2_5_vl", "position_rows", 1)]
)
def test_what_is_not_known_of_a_model_is_found_out(kind, fact, value, family):
    """Neither trees nor single sequences are then those of transformers."""
    wrong = family(kind)
    setattr(wrong, fact, value)
    with pytest.raises(UserError, match=rf"model_type '{kind}' is not read here as transformers does") as raised:
        prove(wrong, wrong.directory)
    assert "\n" not in str(raised.value)


def test_positions_that_depend_on_the_length_are_no_trees(family):
    depends = family("llava")
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 4096}
    depends.config.text_config.rope_parameters |= {"rope_type": "longrope", "factor": 2.0, **factors}
    assert prove(depends, depends.directory) == "its positions depend on the length of the prompt"


def test_it_is_found_out_once_for_a_configuration(copy, kept):
    checkpoint = find_checkpoint(copy, False)
    assert prove_once(read_family(checkpoint), copy) is None
    (file,) = kept.iterdir()
    assert json.loads(file.read_text()) == {"why_no_trees": None}
    (copy / "model.safetensors").unlink()
    assert prove_once(read_family(checkpoint), copy) is None
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "initializer_range": 0.3}))
    with pytest.raises(UserError, match="its weights cannot be loaded"):
        prove_once(read_family(checkpoint), copy)
    assert len(list(kept.iterdir())) == 2


def test_it_is_found_out_again_for_another_image_processor(copy, kept):
    assert prove_once(read_family(find_checkpoint(copy, False)), copy) is None
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 7}))
    with pytest.raises(UserError, match=r"^.*model: transformers' model does not take what its tokenizer and image "):
        prove_once(read_family(find_checkpoint(copy, False)), copy)


@pytest.mark.parametrize("calls", [0, 3])
def test_a_lack_of_memory_says_nothing_about_a_model(copy, kept, monkeypatch, calls):
    """In transformers' own forward or later: it is tried again the next time."""
    attend, called = torch.nn.functional.scaled_dot_product_attention, []

    def attend_at_first(*arguments, **options):
        called.append(arguments)
        if len(called) > calls:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return attend(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend_at_first)
    with pytest.raises(UserError, match=r"^there is not enough memory to try whether prompt trees are exact"):
        prove_once(read_family(find_checkpoint(copy, False)), copy)
    assert [file.read_bytes() for file in kept.iterdir()] == [b""]


def test_weights_that_are_no_numbers_are_named_so(copy):
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][3, 5] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="model: the model computes NaN or infinity; download or copy"):
        prove(read_family(find_checkpoint(copy, False)), copy)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"why": 1}'])
def test_what_is_kept_and_damaged_is_found_out_again(copy, kept, damage):
    family = read_family(find_checkpoint(copy, False))
    prove_once(family, copy)
    (file,) = kept.iterdir()
    whole = file.read_text()
    file.write_text(damage)
    assert prove_once(family, copy) is None
    assert file.read_text() == whole


def test_without_a_place_to_keep_it_it_is_found_out_each_time(family, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prove_once(family("qwen2_5_vl"), family("qwen2_5_vl").directory) is None


def test_a_tokenizer_that_does_more_is_refused(copy):
    file = copy / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    ends = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|endoftext|>")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, ends],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [number], "tokens": ["<|endoftext|>"]},
        },
    }
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="its tokenizer or template does something that is not done here") as raised:
        check_checkpoint(find_checkpoint(copy, False))
    assert "\n" not in str(raised.value)


def test_zero3_divides_no_model_that_is_tried(family):
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    sound = family("llava")
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # in force as long as it is referred to
    assert is_deepspeed_zero3_enabled()
    assert prove(sound, sound.directory) is None
    assert is_deepspeed_zero3_enabled()
    del config
    assert not is_deepspeed_zero3_enabled()
