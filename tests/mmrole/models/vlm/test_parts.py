"""Tower, projector and language model are found in every kind, and each parameter belongs to one of them."""

import pytest
import torch
from fixtures.vlms.chosen import ALL
from transformers import AutoConfig, AutoModelForImageTextToText

from mmrole.models.vlm.parts import language_model, part_of


@pytest.mark.parametrize("kind", ALL)
def test_parts_are_those_of_the_modules(kind, tiny_vlm):
    config = AutoConfig.from_pretrained(tiny_vlm(kind))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    assert {part_of(name) for name in names} == {"vision", "projector", "language"}
    language = {id(weight) for weight in (*language_model(model).parameters(), model.get_output_embeddings().weight)}
    for name, weight in model.named_parameters():
        assert (part_of(name) == "language") == (id(weight) in language), name
