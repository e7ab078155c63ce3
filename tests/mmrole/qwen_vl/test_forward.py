"""The forward pass against the golden figures: logits, hidden states, attention, cache and vision tower."""

import json
from pathlib import Path

import pytest
import torch

from mmrole.qwen_vl.vision import resize_positions, resizing_matrix, sine_positions

NAMES = ("mini", "full")
ATTENTIONS = ("eager", "sdpa")
# Padding moves positions in the original beyond seq_length (test_positions.py has the right behaviour).
DIFFERENT_ON_PURPOSE = {"batch_left_padded_ntk", "one_token_without_mask"}
# The longest inputs: the noise of float32 grows with the angle of the rotation.
LONG = {"length_1500", "length_2049", "length_1300", "image_4"}


def _cases() -> list[tuple[str, str]]:
    golden = Path(__file__).parents[2] / "golden"
    indices = {name: json.loads((golden / f"model_{name}" / "index.json").read_text())["cases"] for name in NAMES}
    names = [(name, case["name"]) for name in NAMES for case in indices[name]]
    return [(name, case) for name, case in names if not case.startswith(("steps_", "bf16/"))]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("name", "case"), [pair for pair in _cases() if pair[1] not in DIFFERENT_ON_PURPOSE])
def test_logits(goldens, models, name, case, attention):
    golden, model = goldens(name), models(name, attention)
    rows, inputs = golden.rows(case), golden.inputs(case)
    mask = inputs["attention_mask"]
    logits = model(**inputs, logits_to_keep=rows, use_cache=False).logits
    real = None if mask is None else mask[:, -rows:]
    assert golden.difference(case, logits, real) < (golden.ATOL if case in LONG else golden.TIGHT)


def test_every_golden_case_is_tested(goldens):
    for name in NAMES:
        listed = {case for owner, case in _cases() if owner == name}
        stored = {
            key.split("/")[0] for key in goldens(name).tensors if key.endswith("/logits") or key.endswith("_cols")
        }
        assert {key for key in stored if not key.startswith(("steps_", "bf16"))} <= listed


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_last_real_row_of_right_padded_batches(goldens, models, name, attention):
    golden = goldens(name)
    inputs = golden.inputs("batch_right_padded")
    last = inputs["attention_mask"].sum(-1) - 1
    logits = models(name, attention)(**inputs, logits_to_keep=torch.unique(last)).logits
    for row, index in enumerate(torch.unique(last, return_inverse=True)[1]):
        difference = golden.difference(f"batch_right_padded/row_{row}_last_real", logits[row, index][None, None])
        assert difference < golden.TIGHT


@pytest.mark.parametrize("name", NAMES)
def test_inside_of_the_language_model(goldens, models, name):
    golden, model = goldens(name), models(name, "eager")
    output = model(**golden.inputs("text_short"), output_hidden_states=True, output_attentions=True)
    expected = golden.tensors
    assert len(output.hidden_states) == len(output.attentions) + 1 == 3
    for layer, states in enumerate(output.hidden_states):
        torch.testing.assert_close(states[0], expected[f"text_short/hidden_{layer}"], atol=golden.TIGHT, rtol=0)
    torch.testing.assert_close(
        output.attentions[0][0, :, -4:], expected["text_short/attention_0"], atol=golden.TIGHT, rtol=0
    )
    # The original keeps [batch, position, head, d], transformers' cache [batch, head, position, d].
    layer = output.past_key_values.layers[0]
    for ours, key in ((layer.keys, "key_cache_0"), (layer.values, "value_cache_0")):
        torch.testing.assert_close(
            ours[0, :, :4].transpose(0, 1), expected[f"text_short/{key}"], atol=golden.TIGHT, rtol=0
        )


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_inside_of_the_vision_tower(goldens, models, name, attention):
    golden, tower = goldens(name), models(name, attention).transformer.visual
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, key=key: seen.update({key: output[0]}))
        for key, module in {
            "ln_pre": tower.ln_pre,
            "block_0": tower.transformer.resblocks[0],
            "block_1": tower.transformer.resblocks[1],
            "conv1_first_row": tower.conv1,
            "attn_pool": tower.attn_pool,
        }.items()
    ]
    seen["features"] = tower(golden.read("rgb_80x60.png"))[0]
    for hook in hooks:
        hook.remove()
    seen["conv1_first_row"] = seen["conv1_first_row"][:, 0]
    for key in ("ln_pre", "block_0", "block_1"):
        seen[key] = seen[key][::8]
    for key, ours in seen.items():
        torch.testing.assert_close(ours, golden.tensors[f"visual/{key}"], atol=golden.TIGHT, rtol=0, msg=key)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_other_image_features(goldens, models, name, attention):
    golden, model = goldens(name), models(name, attention)
    two = model.get_image_features(golden.read("rgb_300x500.jpg", "gray_64x48.png"))
    small = model.get_image_features(torch.zeros(1, 3, 224, 224))
    for ours, key in ((two[:, ::8], "two_features"), (small[0, ::16], "zeros_224_features")):
        torch.testing.assert_close(ours, golden.tensors[f"visual/{key}"], atol=golden.TIGHT, rtol=0, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_tables_made_before_change_no_bit(goldens, models, name):
    golden, tower = goldens(name), models(name).transformer.visual
    for pixels in (golden.read("rgb_300x500.jpg"), torch.zeros(1, 3, 224, 224)):
        tables = tower.position_tables((pixels.shape[-1] // 14) ** 2)
        assert torch.equal(tower(pixels, tables), tower(pixels))


@pytest.mark.parametrize("name", NAMES)
def test_position_tables(goldens, models, name):
    golden, tower = goldens(name), models(name).transformer.visual
    tables = {
        "positional_embedding_32x32": resize_positions(tower.positional_embedding, 1024)[::8],
        "resampler_pos_embed_32x32": resize_positions(tower.attn_pool.pos_embed, 1024)[::8],
        "resampler_pos_embed_exact": sine_positions(tower.attn_pool.pos_embed.shape[1])[::4],
    }
    for key, ours in tables.items():
        torch.testing.assert_close(ours, golden.tensors[f"visual/{key}"], atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tables_are_resized_by_a_product_on_a_gpu(dtype):
    table = torch.randn(256, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    matrix = resizing_matrix(256, 1024, dtype, torch.device("cpu"))
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(matrix @ table, resize_positions(table, 1024), atol=tolerance, rtol=0)
    assert not matrix.is_inference()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("name", "case"),
    [(name, f"steps_{case}") for name in NAMES for case in ("short", "cross_512", "long")]
    + [("mini", "steps_image"), ("mini", "steps_rotary_regrow")],
)
def test_cached_steps(goldens, models, name, case, attention):
    golden, model = goldens(name), models(name, attention)
    prompt, forced = golden.ids(case), golden.get(f"{case}/forced").long()
    output = model(prompt, pixel_values=golden.pixels(prompt), logits_to_keep=1)
    rows = [output.logits]
    for token in forced:
        output = model(token.view(1, 1), past_key_values=output.past_key_values)
        rows.append(output.logits)
    assert golden.difference(f"{case}/cached", torch.cat(rows, dim=1)) < golden.TIGHT


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, f"steps_{case}") for name in NAMES for case in ("short", "cross_512", "long")] + [("mini", "steps_image")],
)
def test_uncached_steps(goldens, models, name, case):
    golden, model = goldens(name), models(name)
    prompt, forced = golden.ids(case), golden.get(f"{case}/forced").long()
    pixel_values = golden.pixels(prompt)
    rows = [
        model(torch.cat((prompt, forced[None, :step]), dim=1), pixel_values=pixel_values, logits_to_keep=1).logits
        for step in range(len(forced) + 1)
    ]
    assert golden.difference(f"{case}/uncached", torch.cat(rows, dim=1)) < golden.TIGHT


@pytest.mark.parametrize("case", ["text_short", "image_1"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_differs_as_much_as_the_original(goldens, models, name, case):
    golden = goldens(name)
    rows, inputs = golden.rows(f"bf16/{case}") if name == "mini" else 8, golden.inputs(case)
    logits = models(name, "eager", torch.bfloat16)(**inputs, logits_to_keep=rows).logits
    float32 = models(name, "eager")(**inputs, logits_to_keep=rows).logits
    assert logits.dtype == torch.bfloat16
    noted = golden.cases("index")[f"bf16/{case}"]["max_abs_difference"]
    assert (logits - float32).abs().max() < 1.5 * noted
    assert (logits.argmax(-1) == float32.argmax(-1)).all()
