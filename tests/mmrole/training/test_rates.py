"""Figures of speed: operations by shapes, and what is counted between two lines of the log."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mmrole.models.checkpoints import Checkpoint
from mmrole.models.vlm.loading import read_family
from mmrole.prompt_tree.mask import dense_mask
from mmrole.training.batches import collate
from mmrole.training.rates import Operations, TrainingRates, measure_matrix_rate


def test_operations_are_those_of_the_matrices(make_model, byte_family):
    model = make_model()
    found = Operations.of(model, byte_family)
    matrices = [each for each in model.transformer.h.parameters() if each.dim() == 2]
    assert found.node == 3 * 2 * sum(matrix.numel() for matrix in matrices)
    assert found.score == 3 * 4 * 128
    assert found.windows == (0, 0)
    assert found.target == 3 * 2 * model.lm_head.weight.numel()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn", "attn.c_proj", "w1", "w2"]))
    lora = sum(each.numel() for name, each in adapted.named_parameters() if "lora_" in name)
    assert Operations.of(adapted, byte_family).node == 2 * 2 * (sum(each.numel() for each in matrices) + lora)


def test_of_experts_those_count_that_read_a_token(tiny_vlm):
    family = read_family(Checkpoint(tiny_vlm("qwen3_vl_moe")))
    model = family.empty_module()
    text = family.config.text_config
    attention = 2 * 64 * 16 * (text.num_attention_heads + text.num_key_value_heads)
    experts = text.num_experts_per_tok * 3 * 64 * text.moe_intermediate_size
    assert Operations.of(model, family).node == 3 * 2 * text.num_hidden_layers * (attention + experts)


def test_in_a_window_no_more_keys_count(encoded, byte_family):
    batch = collate(encoded, byte_family)
    tree = replace(batch, depths=batch.position_ids[0])
    flops = {}
    for windows in ((0,), (40,), (40, 0)):
        rates = TrainingRates(Operations(node=0.0, score=1.0, target=0.0, windows=windows), 1.0, 1)
        rates.add(tree)
        flops[windows] = rates._flops
    depths = tree.depths
    assert depths is not None
    near = dense_mask(batch.last) & (depths[:, None] - depths < 40)
    assert flops[(40,)] == int(near.sum())
    assert flops[(40, 0)] == flops[(40,)] + flops[(0,)]


def test_figures_are_of_what_came_since_the_last_ones(encoded, byte_family):
    batch = collate(encoded, byte_family)
    rates = TrainingRates(Operations(node=10.0, score=1.0, target=100.0, windows=(0,)), matrix_rate=1e9, world_size=2)
    rates.add(batch)
    figures = rates.take()
    flops = 10 * len(batch.last) + int(dense_mask(batch.last).sum()) + 100 * len(batch.targets)
    seconds = 2 * len(batch.last) / figures["nodes_per_second"]
    assert figures["matrix_rate_share"] * seconds * 1e9 == pytest.approx(flops)
    assert rates.take() == {"nodes_per_second": 0.0, "matrix_rate_share": 0.0}
    assert TrainingRates(rates.operations, None, 1).take() == {"nodes_per_second": 0.0}


def test_the_matrix_rate_is_measured_on_a_gpu_only():
    rate = measure_matrix_rate(torch.device("cpu"), torch.float32)
    assert rate is None
