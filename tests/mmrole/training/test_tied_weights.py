"""What is tied is saved once, as transformers saves it, and stays one parameter when training goes on."""

import pytest
import torch
from fixtures.vlms.chosen import WITH_TREES
from fixtures.vlms.kinds import KINDS
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmrole.models.checkpoints import Checkpoint
from mmrole.models.vlm.loading import read_family
from mmrole.training.resuming import load_weights
from mmrole.training.tied_weights import tie_again


@pytest.mark.parametrize("kind", WITH_TREES)
def test_copies_are_saved_as_transformers_saves_the_model(kind, tiny_vlm, tmp_path):
    usual = AutoModelForImageTextToText.from_pretrained(tiny_vlm(kind))
    usual.save_pretrained(tmp_path / "usual")
    model = read_family(Checkpoint(tiny_vlm(kind))).load_module(tiny_vlm(kind), for_training=True)
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tie_again(copies, model)
    model.save_pretrained(tmp_path / "copies", state_dict=copies)
    saved, expected = (tmp_path / name / "model.safetensors" for name in ("copies", "usual"))
    assert saved.read_bytes() == expected.read_bytes()
    assert any(name.endswith("lm_head.weight") for name in load_file(saved)) is not KINDS[kind].tied


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_loaded_weights_are_tied_as_before(kind, tiny_vlm, tmp_path):
    family = read_family(Checkpoint(tiny_vlm(kind)))
    model, trained = (family.load_module(tiny_vlm(kind), for_training=True) for _ in range(2))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    trained.save_pretrained(tmp_path)
    load_weights(model, tmp_path, family)
    assert len([*model.parameters()]) == len([*trained.parameters()])
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is KINDS[kind].tied
    for found, expected in zip(model.parameters(), trained.parameters(), strict=True):
        assert found.equal(expected)
