"""Which parameters adapters train."""

import json

from mmrole.models.checkpoints import Checkpoint
from mmrole.models.vlm.loading import read_family
from mmrole.models.vlm.parts import part_of
from mmrole.training.adapters import add_adapters
from mmrole.training.arguments import LoraArguments


def test_all_biases_are_those_of_the_language_model(tiny_vlm):
    family = read_family(Checkpoint(tiny_vlm("qwen2_5_vl")))
    model = add_adapters(family.empty_module(), family, LoraArguments(lora_bias="all"), activation_checkpointing=False)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {part_of(name) for name in trained} == {"language"}
    assert any(name.endswith("k_proj.base_layer.bias") for name in trained)


def test_what_an_adapter_is_known_by_does_not_depend_on_the_order_of_a_set(tiny_vlm, tmp_path):
    family = read_family(Checkpoint(tiny_vlm("qwen2_5_vl")))
    for place, names in enumerate((["q_proj", "k_proj", "up_proj"], ["up_proj", "q_proj", "k_proj"])):
        lora = LoraArguments(lora_target_modules=names)
        model = add_adapters(family.load_module(family.directory), family, lora, activation_checkpointing=False)
        model.save_pretrained(tmp_path / str(place))
    first, second = ((tmp_path / name / "adapter_config.json").read_bytes() for name in "01")
    assert first == second
    assert json.loads(first)["target_modules"] == ["k_proj", "q_proj", "up_proj"]
