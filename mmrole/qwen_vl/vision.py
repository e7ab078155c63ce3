"""Vision tower of Qwen-VL: a ViT without class token and a resampler to 256 features (spec §3.2)."""

from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from mmrole.qwen_vl.attention import attend
from mmrole.qwen_vl.rotary import at_least_float32

LAYER_NORM_EPSILON = 1e-6
QUERIES_PER_SIDE = 16
FEATURES_PER_IMAGE = QUERIES_PER_SIDE**2


class PositionTables(NamedTuple):
    """The tower's tables of positions at the size of an image.

    Attributes:
        patches: [patches, width], added to the patches.
        keys: [patches, output_dim], added to the resampler's keys.
    """

    patches: Tensor
    keys: Tensor


class VisionAttention(nn.Module):
    """Full self-attention. The projection's rows are ordered per head: [q | k | v] of head 0, then head 1, …"""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.visual["heads"]
        self.is_causal = False
        width = config.visual["width"]
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[images, patches, width] → the same."""
        query, key, value = rearrange(
            self.in_proj(hidden_states), "n p (head three d) -> three n head p d", head=self.heads, three=3
        )
        return self.out_proj(attend(self, query, key, value))


class VisionMLP(nn.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner_width)
        self.c_proj = nn.Linear(inner_width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[images, patches, width] → the same."""
        return self.c_proj(F.gelu(self.c_fc(hidden_states)))


class VisionBlock(GradientCheckpointingLayer):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width = config.visual["width"]
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(width, int(width * config.visual["mlp_ratio"]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[images, patches, width] → the same."""
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states))
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class VisionBlocks(nn.Module):
    """The stack of blocks (a module of its own for the checkpoint's names, `transformer.resblocks.{i}`)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisionBlock(config) for _ in range(config.visual["layers"]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[images, patches, width] → the same."""
        for block in self.resblocks:
            hidden_states = block(hidden_states)
        return hidden_states


class ResamplerAttention(nn.Module):
    """Cross-attention with the parameters of `nn.MultiheadAttention`: rows of in_proj are [Q; K; V]."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        width = config.visual["output_dim"]
        self.heads = width // 128
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries [n, q, width], keys and values [n, p, width] → [n, q, width]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = (
            rearrange(F.linear(states, weight, bias), "n p (head d) -> n head p d", head=self.heads)
            for states, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        return self.out_proj(attend(self, *projected))


class Resampler(nn.Module):
    """256 learned queries attend to the patches. Positions are added to queries and keys, not to values."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width = config.visual["output_dim"]
        # A fixed sine table, but a parameter: checkpoints carry it rounded to bfloat16, and `--fix_vit` trains it.
        self.pos_embed = nn.Parameter(torch.empty(FEATURES_PER_IMAGE, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(FEATURES_PER_IMAGE, width))
        if config.visual["width"] == width:
            self.kv_proj = nn.Identity()
        else:
            self.kv_proj = nn.Linear(config.visual["width"], width, bias=False)
        self.attn = ResamplerAttention(config)
        self.ln_q = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(self, patches: Tensor, positions: Tensor | None = None) -> Tensor:
        """[images, patches, vision width] → [images, 256, output_dim]. Without `PositionTables.keys`, they are made."""
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + (resize_positions(self.pos_embed, patches.shape[1]) if positions is None else positions)
        queries = self.ln_q(self.query) + self.pos_embed
        return self.attn(queries.expand(patches.shape[0], -1, -1), keys, values)


class VisionTransformer(nn.Module):
    """The whole tower: pixels [images, 3, size, size] → features [images, 256, output_dim]."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width, output_dim, patch_size = (config.visual[key] for key in ("width", "output_dim", "patch_size"))
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(FEATURES_PER_IMAGE, width))
        self.ln_pre = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.transformer = VisionBlocks(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(output_dim, eps=LAYER_NORM_EPSILON)
        self.proj = nn.Parameter(torch.empty(output_dim, output_dim))

    def position_tables(self, patches: int) -> PositionTables:
        """The tables for images of so many patches. With fixed weights they can be made once for many images."""
        tables = self.positional_embedding, self.attn_pool.pos_embed
        return PositionTables(*(resize_positions(table, patches) for table in tables))

    def forward(self, pixel_values: Tensor, tables: PositionTables | None = None) -> Tensor:
        """Encodes images; `pixel_values` is cast to the dtype of the weights. Without tables, they are made."""
        patches = rearrange(self.conv1(pixel_values.to(self.conv1.weight.dtype)), "n d row column -> n (row column) d")
        if tables is None:
            patches = patches + resize_positions(self.positional_embedding, patches.shape[1])
            features = self.attn_pool(self.transformer(self.ln_pre(patches)))
        else:
            features = self.attn_pool(self.transformer(self.ln_pre(patches + tables.patches)), tables.keys)
        return self.ln_post(features) @ self.proj


def resize_positions(table: Tensor, patches: int) -> Tensor:
    """A square table of positions [entries, width], resized to [patches, width] by bicubic interpolation.

    Spec §3.2 step 2: align_corners off, no antialiasing, in at least float32, cast back; untouched at equal size.
    """
    entries = table.shape[0]
    if entries == patches:
        return table
    wide = table.to(at_least_float32(table.dtype))
    if not table.is_cuda:
        return interpolated(wide, patches).to(table.dtype)
    # CUDA's interpolation takes 12 ms for a few large channels, and its gradient 10; a product takes microseconds.
    return (resizing_matrix(entries, patches, wide.dtype, table.device) @ wide).to(table.dtype)


def interpolated(table: Tensor, patches: int) -> Tensor:
    """`resize_positions` in the dtype of the table."""
    side, new_side = round(table.shape[0] ** 0.5), round(patches**0.5)
    grid = rearrange(table, "(row column) d -> 1 d row column", row=side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d row column -> (row column) d")


@cache
def resizing_matrix(entries: int, patches: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[patches, entries]: times a table, it is the resized table."""
    with torch.inference_mode(False), torch.no_grad():  # training may use what an engine has made
        return interpolated(torch.eye(entries, dtype=dtype, device="cpu"), patches).to(device)


def sine_positions(width: int) -> Tensor:
    """The resampler's table [256, width] in float32 (spec §3.2): the first half of the channels encodes the column,
    the second the row, each as [sin(t w_k), cos(t w_k)] with w_k = 10000^(-k / (width / 4)).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(QUERIES_PER_SIDE, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # [16, width / 2]
    columns = line[None, :, :].expand(QUERIES_PER_SIDE, -1, -1)
    rows = line[:, None, :].expand(-1, QUERIES_PER_SIDE, -1)
    return rearrange(torch.cat((columns, rows), dim=2), "row column d -> (row column) d").float()


def initial_values(module: nn.Module, std: float) -> dict[str, Tensor | float]:
    """How the tower's own parameters (not those of its Linear and LayerNorm layers) start: name → tensor or std."""
    if isinstance(module, Resampler):
        return {"pos_embed": sine_positions(module.pos_embed.shape[1]), "query": std}
    if isinstance(module, ResamplerAttention):
        return {"in_proj_weight": std}
    if isinstance(module, VisionTransformer):
        width, output_dim = module.positional_embedding.shape[1], module.proj.shape[0]
        return {"positional_embedding": width**-0.5, "proj": output_dim**-0.5}
    return {}
