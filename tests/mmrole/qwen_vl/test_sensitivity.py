"""Deliberate mistakes, made in this code one at a time, must each be caught by a golden figure (docs/qwen_vl.md).

The mistakes are those of the reference material's SENSITIVITY.md, where the original code makes them.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmrole.qwen_vl import QWenLMHeadModel, blocks, image_processing, modeling, vision
from mmrole.qwen_vl.attention import attend, eager_attention_forward

Patch = pytest.MonkeyPatch
Mistake = Callable[[QWenLMHeadModel, Patch], None]


def no_dynamic_ntk(model: QWenLMHeadModel, patch: Patch) -> None:
    model.config.use_dynamic_ntk = False


def no_logn(model: QWenLMHeadModel, patch: Patch) -> None:
    model.config.use_logn_attn = False


def logn_counts_from_zero(model: QWenLMHeadModel, patch: Patch) -> None:
    right = modeling.logn_factors
    patch.setattr(modeling, "logn_factors", lambda positions, *rest: right((positions - 1).clamp(min=0), *rest))


def logn_on_keys(model: QWenLMHeadModel, patch: Patch) -> None:
    right = modeling.logn_factors
    patch.setattr(modeling, "logn_factors", lambda *_: None)

    def attention(module, query: Tensor, key: Tensor, *rest: Tensor, **kwargs: object) -> tuple[Tensor, Tensor]:
        factors = right(torch.arange(key.shape[2])[None], model.config.seq_length, key.dtype)
        return eager_attention_forward(module, query, key * factors[:, None, :, None], *rest, **kwargs)

    patch.setattr(blocks, "eager_attention_forward", attention)


def ntk_exponent_one(model: QWenLMHeadModel, patch: Patch) -> None:
    right = modeling.rotary_tables

    def tables(positions: Tensor, alpha: Tensor, channels: int, *rest: object) -> tuple[Tensor, Tensor]:
        return right(positions, alpha.double() ** ((channels - 2) / channels), channels, *rest)

    patch.setattr(modeling, "rotary_tables", tables)


def ntk_factor_of_training(model: QWenLMHeadModel, patch: Patch) -> None:
    patch.setattr(
        modeling, "ntk_alpha_of", lambda lengths, seq_length: (lengths / seq_length).ceil().clamp(min=1).long()
    )


def interleaved_rotary(model: QWenLMHeadModel, patch: Patch) -> None:
    def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1] // 2
        cos, sin = (table[:, None, :, half:].repeat_interleave(2, dim=-1) for table in (cos, sin))
        turned = torch.stack((-states[..., 1::2], states[..., ::2]), dim=-1).flatten(-2)
        return states * cos + turned * sin

    patch.setattr(blocks, "rotated", rotate)


def rotary_tables_in_float16(model: QWenLMHeadModel, patch: Patch) -> None:
    right = modeling.rotary_tables
    patch.setattr(modeling, "rotary_tables", lambda *args: tuple(table.half().float() for table in right(*args)))


def mlp_branches_swapped(model: QWenLMHeadModel, patch: Patch) -> None:
    for block in model.transformer.h:
        block.mlp.w1, block.mlp.w2 = block.mlp.w2, block.mlp.w1


def mlp_with_gelu(model: QWenLMHeadModel, patch: Patch) -> None:
    patch.setattr(F, "silu", F.gelu)


def rms_norm_epsilon(model: QWenLMHeadModel, patch: Patch) -> None:
    for module in model.modules():
        if isinstance(module, blocks.RMSNorm):
            module.eps = 1e-5


def no_c_attn_bias(model: QWenLMHeadModel, patch: Patch) -> None:
    for block in model.transformer.h:
        block.attn.c_attn.bias.zero_()


def layer_norm_epsilon(model: QWenLMHeadModel, patch: Patch) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def tanh_gelu(model: QWenLMHeadModel, patch: Patch) -> None:
    right = F.gelu
    patch.setattr(F, "gelu", lambda states: right(states, approximate="tanh"))


def quick_gelu(model: QWenLMHeadModel, patch: Patch) -> None:
    patch.setattr(F, "gelu", lambda states: states * torch.sigmoid(1.702 * states))


def interpolation(**options: object) -> Mistake:
    def mistake(model: QWenLMHeadModel, patch: Patch) -> None:
        right = F.interpolate
        patch.setattr(F, "interpolate", lambda grid, size, **_: right(grid, size=size, **options))

    return mistake


def sines_of_the_larger_grid(model: QWenLMHeadModel, patch: Patch) -> None:
    right, width = vision.resize_positions, model.config.visual["output_dim"]

    def positions(table: Tensor, patches: int) -> Tensor:
        if table.shape[1] != width:
            return right(table, patches)
        patch.setattr(vision, "QUERIES_PER_SIDE", math.isqrt(patches))
        return vision.sine_positions(width)

    patch.setattr(vision, "resize_positions", positions)


def positions_on_values(model: QWenLMHeadModel, patch: Patch) -> None:
    right = vision.ResamplerAttention.forward
    patch.setattr(vision.ResamplerAttention, "forward", lambda self, query, key, value: right(self, query, key, key))


def positions_recomputed(model: QWenLMHeadModel, patch: Patch) -> None:
    table = model.transformer.visual.attn_pool.pos_embed
    table.copy_(vision.sine_positions(table.shape[1]))


def rows_and_columns_swapped(model: QWenLMHeadModel, patch: Patch) -> None:
    table = model.transformer.visual.attn_pool.pos_embed
    table.copy_(table.roll(table.shape[1] // 2, dims=1))


def in_proj_as_three_blocks(model: QWenLMHeadModel, patch: Patch) -> None:
    def forward(self: vision.VisionAttention, states: Tensor) -> Tensor:
        projected = rearrange(self.in_proj(states), "n p (three head d) -> three n head p d", head=self.heads, three=3)
        return self.out_proj(attend(self, *projected))

    patch.setattr(vision.VisionAttention, "forward", forward)


def proj_transposed(model: QWenLMHeadModel, patch: Patch) -> None:
    proj = model.transformer.visual.proj
    proj.copy_(proj.T.clone())


def features_shifted(model: QWenLMHeadModel, patch: Patch) -> None:
    right = modeling.find_image_positions
    patch.setattr(modeling, "find_image_positions", lambda *args: right(*args).roll(1, dims=1))


# Each mistake and a golden case of the mini checkpoint that catches it.
MISTAKES: list[tuple[Mistake, str]] = [
    (no_dynamic_ntk, "length_513"),
    (no_logn, "length_513"),
    (logn_counts_from_zero, "length_513"),
    (logn_on_keys, "length_1025"),
    (ntk_exponent_one, "length_513"),
    (ntk_factor_of_training, "length_1025"),
    (interleaved_rotary, "text_short"),
    (rotary_tables_in_float16, "text_short"),
    (mlp_branches_swapped, "text_short"),
    (mlp_with_gelu, "text_short"),
    (rms_norm_epsilon, "tiny_embeddings"),
    (no_c_attn_bias, "text_short"),
    (layer_norm_epsilon, "image_1"),
    (tanh_gelu, "image_1"),
    (quick_gelu, "image_1"),
    (interpolation(mode="bilinear", align_corners=False), "image_1"),
    (interpolation(mode="bicubic", align_corners=True), "image_1"),
    (interpolation(mode="nearest"), "image_1"),
    (sines_of_the_larger_grid, "image_1"),
    (positions_on_values, "image_1"),
    (positions_recomputed, "image_1"),
    (rows_and_columns_swapped, "image_1"),
    (in_proj_as_three_blocks, "image_1"),
    (proj_transposed, "image_1"),
    (features_shifted, "image_1"),
]


def difference(golden, model: QWenLMHeadModel, case: str) -> float:
    rows = golden.rows(case)
    logits = model(**golden.inputs(case), logits_to_keep=rows, use_cache=False).logits
    return golden.difference(case, logits)


@pytest.mark.parametrize(
    ("mistake", "case"), MISTAKES, ids=[f"{index}-{item[0].__name__}-{item[1]}" for index, item in enumerate(MISTAKES)]
)
def test_a_mistake_is_caught(mini, fresh, monkeypatch, mistake, case):
    model = fresh(attn_implementation="eager").eval()
    assert difference(mini, model, case) < mini.ATOL
    mistake(model, monkeypatch)
    assert difference(mini, model, case) > mini.ATOL


def imagenet_normalisation(patch: Patch) -> None:
    patch.setattr(image_processing, "IMAGE_MEAN", (0.485, 0.456, 0.406))
    patch.setattr(image_processing, "IMAGE_STD", (0.229, 0.224, 0.225))


def bilinear_resize(patch: Patch) -> None:
    right = Image.Image.resize
    patch.setattr(Image.Image, "resize", lambda image, size, _: right(image, size, Image.Resampling.BILINEAR))


def resize_of_floats(patch: Patch) -> None:
    def resize(image: Image.Image, size: tuple[int, int], _: object) -> Image.Image:
        values = rearrange(torch.from_numpy(np.array(image)).float(), "row column d -> 1 d row column")
        values = F.interpolate(values, size=size, mode="bicubic", antialias=True).clamp(0, 255)[0]
        return Image.fromarray(values.permute(1, 2, 0).byte().numpy())

    patch.setattr(Image.Image, "resize", resize)


def aspect_ratio_kept(patch: Patch) -> None:
    right = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) / 2, (height - side) / 2
        return right(image, size, method, box=(left, top, left + side, top + side))

    patch.setattr(Image.Image, "resize", resize)


@pytest.mark.parametrize(
    "mistake", [imagenet_normalisation, bilinear_resize, resize_of_floats, aspect_ratio_kept], ids=lambda m: m.__name__
)
def test_a_mistake_in_the_pixels_is_caught(repository, mini, models, monkeypatch, mistake):
    file, expected = repository / "tests/golden/images/files/rgb_80x60.png", mini.tensors["visual/features"]

    def off() -> float:
        features = models().get_image_features(image_processing.preprocess([file]))[0]
        return float((features - expected).abs().max())

    assert off() < mini.ATOL
    with monkeypatch.context() as patch:
        mistake(patch)
        assert off() > mini.ATOL


def test_an_equal_rearrangement_passes(mini, models, monkeypatch):
    # All rotary positions shifted by one: the same mathematics, so the tolerance must let it pass.
    right = modeling.rotary_tables
    monkeypatch.setattr(modeling, "rotary_tables", lambda positions, *rest: right(positions + 1, *rest))
    for case in ("text_short", "length_513", "length_1500", "image_1"):
        assert difference(mini, models("mini", "eager"), case) < mini.ATOL
