"""Which parameters adapters train."""

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
