"""Part of the GPU benchmark: greedy tokens in float32 without TF32, against the original's and against generate()."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from bench_answers import byte_tokenizer, generate_alone
from bench_answers import make_requests as make_answer_requests
from bench_gpu_generation import make_engine
from bench_machine import length_profile, random_model
from bench_review import ReviewTree
from bench_review import make_requests as make_review_requests

from mmrole.qwen_vl import QWenLMHeadModel

if TYPE_CHECKING:
    from bench_gpu_part import Setting

    from mmrole.data.requests import ChatRequest
    from mmrole.engine.engine import Engine
    from mmrole.engine.runner import Runner

SAMPLED = {"do_sample": True, "temperature": 1.2, "top_k": 50, "top_p": 0.8, "repetition_penalty": 1.1}

LEAST_MARGIN = 1e-3
"""Between the two largest logits of a golden case; below it, another rounding may turn the choice."""


def correct(setting: Setting) -> None:
    """generate() against tests/golden; the engine against generate() on a small random model."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with setting.alone("golden tokens"):
        golden_tokens(setting)
    model = random_model("tiny" if setting.tiny else "mid", setting.device, torch.float32)
    tokenizer, engine = byte_tokenizer(), make_engine(model)
    for what, requests in small_requests(setting).items():
        with setting.alone(f"{what} with the tokens of generate()"):
            expected: dict[str, list[int]] = {}
            generate_alone(model, tokenizer, requests, expected)
            found = {reply.id: list(reply.token_ids) for reply in engine.generate(requests)}
            same = sum(found[name] == tokens for name, tokens in expected.items())
            setting.add(f"{what} with the tokens of generate()", f"{same} of {len(requests)}")
            if setting.device.type == "cuda":
                without_graphs(setting, engine, requests, what)
                sampled = [replace(each, settings=replace(each.settings, **SAMPLED)) for each in requests]
                without_graphs(setting, engine, sampled, f"sampled {what}")


def without_graphs(setting: Setting, engine: Engine, requests: list[ChatRequest], what: str) -> None:
    """The tokens of CUDA graphs against those of the same steps taken as they are."""
    graphs, tokens = cast("Runner", engine.runner).decoder.graphs, []
    for wanted in (True, False):
        graphs.wanted = wanted
        tokens.append({reply.id: reply.token_ids for reply in engine.generate(requests)})
    graphs.wanted = True
    same = sum(tokens[0][name] == eager for name, eager in tokens[1].items())
    setting.add(f"{what} with the tokens of steps without a graph", f"{same} of {len(requests)}")
    setting.add(f"{what}: graphs recorded so far", graphs.recorded)


def golden_tokens(setting: Setting) -> None:
    """Greedy tokens of the two checkpoints of tests/golden, by generate(), against those of the original code."""
    conftest = golden_module()
    for name in ("mini", "full"):
        folder = conftest.GOLDEN / f"ckpt_{name}"
        options: dict[str, Any] = {"dtype": torch.float32, "device_map": {"": setting.device}}
        if name == "mini":
            model = QWenLMHeadModel.from_pretrained(folder, **options)
        else:
            from mmrole.qwen_vl.checkpoint_files import read_config

            model = QWenLMHeadModel(read_config(folder))
            model.load_state_dict(conftest.full_state_dict(), strict=False)
            # transformers wraps `to` in a decorator that loses its `self`.
            model = model.to(setting.device)  # pyright: ignore[reportArgumentType]
        golden = conftest.Golden(name, folder)
        cases = [case for case in golden.cases("generation").values() if comparable(case)]
        chosen = cases[:2] if setting.tiny else cases
        first = golden.image_start_id - 214
        same = 0
        for case in chosen:
            ids = torch.tensor(case["prompt_ids"])[None]
            pixels = golden.pixels(ids)
            output = model.eval().generate(
                input_ids=ids.to(setting.device),
                attention_mask=torch.ones_like(ids).to(setting.device),
                pixel_values=None if pixels is None else pixels.to(setting.device),
                do_sample=False,
                top_p=None,
                top_k=None,
                max_new_tokens=case["max_new_tokens"],
                eos_token_id=[first, first + 1, first + 2],
                pad_token_id=first,
            )
            tokens = output[0, ids.shape[1] :].tolist()
            # After a stop word the original takes one more step.
            same += tokens == case["new_ids"][: len(tokens)] and len(tokens) >= len(case["new_ids"]) - 1
        setting.add(f"golden answers of ckpt_{name}, the same", f"{same} of {len(chosen)}")


def comparable(case: dict[str, Any]) -> bool:
    """Whether a golden case is one greedy answer of plain settings, with clear margins."""
    return case.get("min_margin", 0) > LEAST_MARGIN and "beams" not in case["name"] and not case["kwargs"]


def golden_module() -> ModuleType:
    """What the tests read the golden figures with."""
    file = Path(__file__).resolve().parents[1] / "tests/mmrole/qwen_vl/conftest.py"
    spec = importlib.util.spec_from_file_location("golden_figures", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_requests(setting: Setting) -> dict[str, list]:
    """Reviews and answers of published lengths, with few tokens to each."""
    profile = [ReviewTree(*lengths) for lengths in length_profile("reviews")]
    tokens, answers = (3, 1) if setting.tiny else (40, 4)
    trees = [profile[(2 * index + 1) * len(profile) // (2 * answers)] for index in range(answers)]
    cut = [tree._replace(replies=[min(tokens, reply) for reply in tree.replies]) for tree in trees]
    if setting.tiny:
        cut = [ReviewTree(tree.shared // 4, tree.suffixes[:3], tree.replies[:3]) for tree in cut]
    reviews = [request for number, tree in enumerate(cut) for request in make_review_requests(tree, f"r{number}")]
    return {"reviews": reviews, "answers": make_answer_requests(2 if setting.tiny else 15, tokens)}
