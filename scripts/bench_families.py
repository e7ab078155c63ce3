"""A vision-language model of transformers beside Qwen-VL, both of middle size: what prompt trees gain with each.

Not a script of its own; `bench_review.py` and `bench_training.py` import it for `--shape qwen2_5_vl`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from bench_answers import byte_tokenizer
from bench_machine import random_model, timed

from mmrole.base.files import write_json
from mmrole.data.requests import ChatRequest
from mmrole.engine import planning
from mmrole.engine.engine import Engine
from mmrole.models.qwen_vl import QwenVL, QwenVLTreeModel
from mmrole.models.vlm import parts
from mmrole.models.vlm.attention import NAME
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.processor import image_size
from mmrole.models.vlm.training_module import take_micro_batches
from mmrole.models.vlm.tree_model import VlmTreeModel
from mmrole.qwen_vl.chat_format import ChatTurn
from mmrole.qwen_vl.processing import Chat, QWenProcessor
from mmrole.training.batches import collate
from mmrole.training.encoding import EncodedSample
from mmrole.training.loss import tree_loss
from mmrole.training.packing import group_samples, pack_epoch

if TYPE_CHECKING:
    from mmrole.models.families import TreeModel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCABULARY = 151936
"""Rows of embedding and head, as in both published models; the tokenizers here have bytes."""
TEMPLATE = """\
{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part['text'] }}{%- endif %}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


class Candidate(NamedTuple):
    """A model of middle size, read in two ways.

    Attributes:
        name: of its architecture.
        model: for the engine.
        generate: answers requests with transformers' `generate()`, padded on the left to the longest.
    """

    name: str
    model: TreeModel
    generate: Callable[[Sequence[ChatRequest]], None]


def qwen_vl(device: torch.device, dtype: torch.dtype) -> Candidate:
    """Qwen-VL."""
    module, tokenizer = random_model("mid", device, dtype), byte_tokenizer()
    family = QwenVL(tokenizer, module.config)
    family.stop_ids = frozenset()
    processor = QWenProcessor(tokenizer)

    def generate(requests: Sequence[ChatRequest]) -> None:
        chats = [Chat([ChatTurn(request.text, request.images)], request.system or "") for request in requests]
        inputs = processor(chats).to(device)
        module.generate(**inputs, **_greedy(requests, tokenizer.eod_id))

    return Candidate("Qwen-VL", QwenVLTreeModel(module, family), generate)


def random_qwen2_5_vl(device: torch.device, dtype: torch.dtype) -> tuple[Any, Vlm]:
    """A module with random weights: Qwen-VL's hidden size, layers and head size, and four queries for each key."""
    from transformers import AutoModelForImageTextToText

    with tempfile.TemporaryDirectory() as folder:
        family = Vlm(Path(folder), _write_checkpoint(Path(folder)), {})
    family.stop_ids = frozenset()
    torch.manual_seed(0)
    module: Any = AutoModelForImageTextToText.from_config(family.config, dtype=dtype, attn_implementation="sdpa").to(
        device
    )
    cast("Any", parts.language_model(module)).set_attn_implementation(NAME)
    return module, family


def qwen2_5_vl(device: torch.device, dtype: torch.dtype) -> Candidate:
    """Qwen2.5-VL."""
    module, family = random_qwen2_5_vl(device, dtype)
    language: Any = parts.language_model(module)

    def generate(requests: Sequence[ChatRequest]) -> None:
        encoded = [family.encode(request.messages) for request in requests]
        longest = max(len(each.input_ids) for each in encoded)
        ids = torch.zeros(len(encoded), longest, dtype=torch.int64)
        seen = torch.zeros_like(ids)
        for row, each in enumerate(encoded):
            ids[row, longest - len(each.input_ids) :] = torch.from_numpy(each.input_ids)
            seen[row, longest - len(each.input_ids) :] = 1
        # The requests that are measured hold pictures, or paths of them.
        pixels = [family.preprocess([request.images[0]]) for request in requests]  # pyright: ignore[reportArgumentType]
        images = {name: torch.cat([each[name] for each in pixels]).to(device) for name in pixels[0]}
        language.set_attn_implementation("sdpa")
        try:
            module.generate(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                mm_token_type_ids=(ids == family.config.image_token_id).long().to(device),
                **images,
                **_greedy(requests, 0),
            )
        finally:
            language.set_attn_implementation(NAME)

    return Candidate("Qwen2.5-VL", cast("TreeModel", VlmTreeModel(module, family)), generate)


def compare_families(
    by_answer: Sequence[Sequence[ChatRequest]], device: torch.device, dtype: torch.dtype, max_batch_tokens: int | None
) -> None:
    """Times reviews with both models in three ways, and prints what trees gain with each.

    Args:
        by_answer: requests, those of one answer together.
        device: where.
        dtype: of the weights.
        max_batch_tokens: the engine's budget; None is by free memory.
    """
    requests = [request for of_answer in by_answer for request in of_answer]
    gains = []
    print(f"{'':<48}{'reviews/s':>10}{'seconds':>9}{'trees gain':>12}", flush=True)
    for make in (qwen_vl, qwen2_5_vl):
        name, seconds = "", []
        for name, way, run in _ways(make(device, dtype), by_answer, max_batch_tokens):
            seconds.append(timed(run, device))
            gain = "" if len(seconds) == 1 else f"{seconds[-1] / seconds[0]:>12.2f}"
            print(f"{name + ', ' + way:<48}{len(requests) / seconds[-1]:>10.3f}{seconds[-1]:>9.1f}{gain}", flush=True)
        gains.append([each / seconds[0] for each in seconds[1:]])
    alone, padded = (other / own for own, other in zip(*gains, strict=True))
    print(f"Qwen2.5-VL's gain by Qwen-VL's: {alone:.2f} against single prompts, {padded:.2f} against padded batches")


class Numbers(NamedTuple):
    """How much is trained on.

    Attributes:
        trees: dialogues, or answers with their eight reviews.
        single: samples without trees.
        padded: samples that are padded.
        length: positions to which they are.
    """

    trees: int
    single: int
    padded: int
    length: int


def compare_training(
    data: str, numbers: Numbers, device: torch.device, dtype: torch.dtype, max_batch_tokens: int
) -> None:
    """Times forward and backward passes with both models: on prompt trees, on single samples by length, on padded ones.

    Args:
        data: whose lengths the samples have.
        numbers: of each.
        device: where.
        dtype: of the weights.
        max_batch_tokens: most positions of a micro-batch.
    """
    from bench_training import as_trained, make_trees

    gains = []
    print(f"{'':<48}{'samples/s':>10}{'seconds':>9}{'trees gain':>12}", flush=True)
    for name in ("Qwen-VL", "Qwen2.5-VL"):
        with tempfile.TemporaryDirectory() as folder:
            qwen = as_trained(random_model("mid", device, dtype))
            made = make_trees(data, numbers.trees, qwen.config, Path(folder))
            if name == "Qwen-VL":
                module, family = qwen, QwenVL(byte_tokenizer(), qwen.config)
            else:
                del qwen
                module, family = random_qwen2_5_vl(device, dtype)
                take_micro_batches(module)
                family.freeze(module.train(), ["vision"])
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                made = [[_with_own_image(sample, family) for sample in tree] for tree in made]
            samples = [sample for tree in made for sample in tree]
            singles, padded = (samples[:: max(1, len(samples) // number)] for number in numbers[1:3])
            rates = []
            for way, chosen, prompt_tree, most in (
                ("prompt trees", samples, True, max_batch_tokens),
                ("single samples side by side, by length", singles, False, max_batch_tokens),
                (
                    f"padded to {numbers.length:,}",
                    [_padded(each, numbers.length) for each in padded],
                    False,
                    numbers.length,
                ),
            ):
                seconds = timed(partial(_train, module, family, chosen, prompt_tree, most), device)
                rates.append(len(chosen) / seconds)
                gain = "" if len(rates) == 1 else f"{rates[0] / rates[-1]:>12.2f}"
                print(f"{name + ', ' + way:<48}{rates[-1]:>10.3f}{seconds:>9.1f}{gain}", flush=True)
        gains.append([rates[0] / rate for rate in rates[1:]])
    alone, padded = (other / own for own, other in zip(*gains, strict=True))
    print(f"Qwen2.5-VL's gain by Qwen-VL's: {alone:.2f} against single samples, {padded:.2f} against padded ones")


def _padded(sample: EncodedSample, length: int) -> EncodedSample:
    """A sample with text behind it that is not learned, up to a length; one that is longer is cut."""
    ids, targets = (
        np.concatenate([values[:length], np.zeros(max(0, length - len(values)), values.dtype)])
        for values in (sample.input_ids, sample.targets)
    )
    return EncodedSample(ids, targets, sample.images, False)


def _with_own_image(sample: EncodedSample, family: Vlm) -> EncodedSample:
    """A sample for Qwen-VL with the positions of its image that another family has."""
    (image,) = sample.images
    ((start, stop),) = image.spans
    grid = family.processor.placeholders(image_size(image.file)).grid
    assert grid is not None
    rows = grid[0] * grid[1]
    ids, targets = (
        np.concatenate([values[:start], np.zeros(rows, values.dtype), values[stop:]])
        for values in (sample.input_ids, sample.targets)
    )
    own = image._replace(spans=((start, start + rows),), grid=grid)
    return EncodedSample(ids, targets, (own,), False)


def _train(
    module: Any, family: Any, samples: Sequence[EncodedSample], prompt_tree: bool, max_batch_tokens: int
) -> None:
    """This project's way: packed steps, then micro-batches."""
    module.zero_grad()
    groups = group_samples(samples, prompt_tree)
    steps = pack_epoch(
        groups, samples_per_step=len(samples), world_size=1, max_batch_tokens=max_batch_tokens, seed=0, epoch=0
    )
    for step in steps:
        for bin_ in step.bins[0]:
            batch = collate([samples[i] for i in bin_], family, prompt_tree=prompt_tree, most_nodes=max_batch_tokens)
            tree_loss(module, batch.to(module.device), family).sum.backward()


def _ways(
    candidate: Candidate, by_answer: Sequence[Sequence[ChatRequest]], budget: int | None
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Name, way and run: trees first."""
    name, model, generate = candidate
    requests = [request for of_answer in by_answer for request in of_answer]
    list(Engine(model, budget).generate(requests[:1]))  # warm up
    for way, leaves in (("prompt trees", planning.MAX_LEAVES), ("single prompts side by side, by length", 1)):

        def run(leaves: int = leaves) -> None:
            kept, planning.MAX_LEAVES = planning.MAX_LEAVES, leaves
            try:
                list(Engine(model, budget).generate(requests))
            finally:
                planning.MAX_LEAVES = kept

        yield name, way, run
    yield name, "padded batches of eight, generate()", lambda: [generate(of_answer) for of_answer in by_answer]


def _greedy(requests: Sequence[ChatRequest], pad: int) -> dict[str, Any]:
    """Settings of `generate()` with which the longest reply is complete."""
    longest = max(request.complete_settings().max_new_tokens for request in requests)
    return {"do_sample": False, "max_new_tokens": longest, "eos_token_id": None, "pad_token_id": pad}


def _write_checkpoint(directory: Path) -> Any:
    """Writes tokenizer (a token for each byte), chat template and image processor; returns the configuration."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2_5_VLConfig

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(directory / "tokenizer_config.json", named)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    write_json(directory / "preprocessor_config.json", {**processor, "temporal_patch_size": 2})
    number: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        image_token_id=number["<|image_pad|>"],
        video_token_id=VOCABULARY - 1,
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
        tie_word_embeddings=False,
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
            "bos_token_id": number["<|endoftext|>"],
            "eos_token_id": number["<|im_end|>"],
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 8,
            "hidden_size": 256,
            "intermediate_size": 684,
            "num_heads": 4,
            "out_hidden_size": 512,
            "fullatt_block_indexes": [3, 7],
        },
    )
    config.save_pretrained(directory)
    return config
