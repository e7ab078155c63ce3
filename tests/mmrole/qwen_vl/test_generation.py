"""`generate()` against the golden figures: greedy tokens, sampling, streaming; batches, chunks, caches, images."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, StaticCache, StoppingCriteriaList, TextIteratorStreamer

NAMES = ("mini", "full")
MARGIN = 1e-3  # below it, another rounding may turn the choice between two tokens
# They hold published text and stay in ../shared: decoding across seq_length, with and without a cache, and beyond it.
LONG = ("cross_seq_length", "cross_seq_length_no_cache", "beyond_seq_length")
ROOT = Path(__file__).parents[3]


def _cases() -> list[tuple[str, str]]:
    names = []
    for name in NAMES:
        golden = json.loads((ROOT / "tests" / "golden" / f"model_{name}" / "generation.json").read_text())["cases"]
        comparable = [
            case["name"] for case in golden if case.get("min_margin", 0) > MARGIN and "beams" not in case["name"]
        ]
        names += [(name, case) for case in (*comparable, *LONG)]
    return names


def load_case(golden, case: str) -> dict:
    if case not in LONG:
        return golden.cases("generation")[case]
    file = ROOT.parent / "shared" / "golden" / golden.folder.name / "generation.json"
    if not file.is_file():
        pytest.skip("../shared is absent; this case holds published text and is not copied")
    return next(item for item in json.loads(file.read_text())["cases"] if item["name"] == case)


def stop_ids(golden) -> list[int]:
    """`<|endoftext|>`, `<|im_start|>`, `<|im_end|>`."""
    first = 2000 if golden.name == "mini" else 151643
    return [first, first + 1, first + 2]


def ends_with(word: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A stopping criterion: the sequence ends with these ids."""
    return lambda ids, scores: (ids[:, -len(word) :] == word).all(dim=-1)


def prompt_inputs(golden, ids: list[int] | torch.Tensor) -> dict[str, torch.Tensor | None]:
    ids = torch.as_tensor(ids).view(1, -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": golden.pixels(ids)}


def random_ids(*lengths: int, seed: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 2000, (length,), generator=generator) for length in lengths]


def pad_left(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((torch.full((width - len(row),), 2000), row)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("name", "case", "attention"),
    [
        (*case, attention)
        for case in _cases()
        for attention in ("eager", "sdpa")
        if attention == "sdpa" or (case[0] == "mini" and not case[1].startswith("extra_"))
    ],
)
def test_greedy_tokens(goldens, models, name, case, attention):
    golden = goldens(name)
    expected = load_case(golden, case)
    given = dict(expected["kwargs"])
    end_of_text, *others = stop_ids(golden)
    # Stop words are no end-of-text ids: `min_new_tokens` forbids only the latter.
    words = [[word] for word in others] + given.pop("stop_words_ids", [])
    given.pop("max_window_size", None)
    output = models(name, attention).generate(
        **prompt_inputs(golden, expected["prompt_ids"]),
        do_sample=False,
        top_p=None,
        top_k=None,
        max_new_tokens=expected["max_new_tokens"],
        eos_token_id=end_of_text,
        stopping_criteria=StoppingCriteriaList([ends_with(torch.tensor(word)) for word in words]),
        **given,
    )
    new_ids = output[0, len(expected["prompt_ids"]) :].tolist()
    # After a stop word the original takes one more step, to an extra <|endoftext|>; here generation ends at once. An
    # answer cut by max_new_tokens keeps its last token, which the original drops when it decodes.
    *answer, last = expected["new_ids"]
    stopped = any(answer[-len(word) :] == word for word in words)
    assert new_ids == (answer if stopped else [*answer, last])
    assert stopped or last == end_of_text or len(new_ids) == expected["max_new_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_runs(goldens, models, name):
    # Its tokens need not match: transformers has rewritten beam search since.
    golden = goldens(name)
    expected = golden.cases("generation")["num_beams_3"]
    inputs = prompt_inputs(golden, expected["prompt_ids"])
    output = models(name).generate(**inputs, do_sample=False, top_p=None, top_k=None, num_beams=3, max_new_tokens=12)
    assert output.shape[1] - len(expected["prompt_ids"]) in range(1, 13)


@pytest.mark.parametrize("name", NAMES)
def test_a_left_padded_batch_equals_single_runs(goldens, models, name):
    golden = goldens(name)
    expected = golden.cases("generation")["batch_left_padded"]
    ids = torch.tensor(expected["input_ids"])
    output = models(name).generate(
        input_ids=ids,
        attention_mask=torch.tensor(expected["attention_mask"]),
        pixel_values=golden.pixels(ids),
        do_sample=False,
        top_p=None,
        top_k=None,
        max_new_tokens=max(map(len, expected["single_new_ids"])),
        eos_token_id=stop_ids(golden),
    )
    for row, single in zip(output[:, ids.shape[1] :].tolist(), expected["single_new_ids"], strict=True):
        end = next((place for place, token in enumerate(row) if token in stop_ids(golden)), len(row))
        stop = next((place for place, token in enumerate(single) if token in stop_ids(golden)), len(single))
        assert row[: end + 1] == single[: stop + 1]


GREEDY = {"do_sample": False, "top_p": None, "top_k": None, "max_new_tokens": 16, "eos_token_id": 2303}


@pytest.mark.parametrize("extra", [{}, {"prefill_chunk_size": 100}, {"cache_implementation": "static"}], ids=str)
def test_prompts_on_both_sides_of_seq_length_in_one_batch(models, extra):
    # One crosses seq_length while decoding, one is beyond it, one is short: each goes on under its own factor.
    model, rows = models(), random_ids(505, 520, 40)
    batch = model.generate(**pad_left(rows), **GREEDY, **extra)
    for output, row in zip(batch, rows, strict=True):
        single = model.generate(row[None], attention_mask=torch.ones(1, len(row)), **GREEDY)
        assert output[-16:].tolist() == single[0, -16:].tolist()


@pytest.mark.parametrize("given", ["argument", "generation_config", "model", "without_mask", "empty_cache"])
def test_chunked_prefill_changes_nothing(models, fresh, given):
    model, (ids,) = (fresh() if given == "model" else models()).eval(), random_ids(600)
    inputs, options = {"input_ids": ids[None], "attention_mask": torch.ones(1, 600)}, dict(GREEDY)
    expected = model.generate(**inputs, **options)[0, -16:].tolist()
    if given == "generation_config":
        options = {"generation_config": GenerationConfig(**GREEDY, pad_token_id=2000, prefill_chunk_size=77)}
    elif given == "model":
        model.generation_config.prefill_chunk_size = 77
    else:
        options["prefill_chunk_size"] = 77
    if given == "without_mask":
        del inputs["attention_mask"]
    if given == "empty_cache":
        options["past_key_values"] = StaticCache(config=model.config, max_cache_len=620)
    seen = []
    hook = model.transformer.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(out[0].shape[1]), with_kwargs=True
    )
    output = model.generate(**inputs, **options)
    hook.remove()
    assert output[0, -16:].tolist() == expected
    assert max(seen) == 77


def test_generation_goes_on_from_a_cached_prefix(mini, models):
    # A prefix on the same side of seq_length as the whole prompt may be kept.
    model, (ids,) = models(), random_ids(300)
    cache = model(ids[None, :200]).past_key_values
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 300)}
    expected = model.generate(**inputs, **GREEDY)
    assert model.generate(**inputs, **GREEDY, past_key_values=cache).tolist() == expected.tolist()


def test_embeddings_as_the_prompt(mini, models):
    model = models()
    inputs = prompt_inputs(mini, mini.cases("generation")["text"]["prompt_ids"])
    expected = model.generate(**inputs, **GREEDY)[0, -16:].tolist()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    output = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **GREEDY)
    assert output[0].tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
def test_token_type_ids_are_accepted(mini, models, use_cache):
    # The original's tokenizer returns them; `generate(**tokenizer(text))` must work.
    inputs = prompt_inputs(mini, mini.cases("generation")["text"]["prompt_ids"])
    expected = models().generate(**inputs, **GREEDY)
    types = torch.zeros_like(inputs["input_ids"])
    assert (
        models().generate(**inputs, token_type_ids=types, **GREEDY, use_cache=use_cache).tolist() == expected.tolist()
    )
    logits = models()(inputs["input_ids"]).logits
    assert torch.equal(models()(inputs["input_ids"], token_type_ids=types).logits, logits)


@pytest.fixture
def encoded(models) -> Iterator[list[int]]:
    """How many images each call of the vision tower encodes."""
    calls: list[int] = []
    hook = models().transformer.visual.register_forward_hook(lambda _, args, output: calls.append(len(output)))
    yield calls
    hook.remove()


@pytest.mark.parametrize(
    "decoding", [{"do_sample": True, "top_k": 1}, {"do_sample": False, "top_k": None, "num_beams": 2}], ids=str
)
def test_several_sequences_of_prompts_with_different_images(mini, models, encoded, decoding):
    model, ids = models(), mini.ids("batch_two_images")
    options = GREEDY | {"max_new_tokens": 6} | decoding
    pixel_values = mini.pixels(ids)
    single = [
        model.generate(
            ids[row : row + 1],
            attention_mask=torch.ones(1, 294),
            pixel_values=pixel_values[row : row + 1],
            num_return_sequences=2,
            **options,
        )
        for row in (0, 1)
    ]
    encoded.clear()
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), pixel_values=pixel_values, num_return_sequences=2, **options
    )
    assert output.tolist() == [row for rows in single for row in rows.tolist()]
    assert encoded == [2]


def test_an_image_that_occurs_twice_is_encoded_once(mini, models, encoded):
    model, ids = models(), mini.ids("image_same_twice")
    spelled = mini.pixels(ids)
    assert torch.equal(spelled[0], spelled[1])
    starts = (ids[0] == mini.image_start_id).nonzero()[:, 0] + 1
    positions = torch.full_like(ids, -1)
    for start in starts.tolist():
        positions[0, start : start + 256] = torch.arange(256)
    logits = model(ids, pixel_values=spelled[:1], image_positions=positions, logits_to_keep=4).logits
    assert encoded == [1]
    assert mini.difference("image_same_twice", logits) < mini.TIGHT
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    once = model.generate(**inputs, pixel_values=spelled[:1], image_positions=positions, **GREEDY)
    assert encoded == [1, 1]
    assert once.tolist() == model.generate(**inputs, pixel_values=spelled, **GREEDY).tolist()


def test_image_positions_without_a_cache(mini, models):
    model, ids = models(), mini.ids("image_1")
    start = int((ids[0] == mini.image_start_id).nonzero()[0]) + 1
    positions = torch.full_like(ids, -1)
    positions[0, start : start + 256] = torch.arange(256)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": mini.pixels(ids)}
    options = GREEDY | {"max_new_tokens": 5}
    expected = model.generate(**inputs, **options)
    assert model.generate(**inputs, image_positions=positions, use_cache=False, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_first_step_of_sampling(goldens, models, name):
    # The shipped generation_config.json samples with top_p 0.3; its processors are transformers' own.
    golden = goldens(name)
    sampling = json.loads((golden.folder / "sampling.json").read_text())
    inputs = prompt_inputs(golden, sampling["prompt_ids"])
    assert len(sampling["cases"]) >= 5
    for case in sampling["cases"]:
        output = models(name).generate(
            **inputs, **case["kwargs"], max_new_tokens=1, output_scores=True, return_dict_in_generate=True
        )
        probabilities = output.scores[0][0].softmax(-1)
        assert int((probabilities > 0).sum()) == case["kept"], case["kwargs"]
        ours = probabilities[case["ids"]]
        torch.testing.assert_close(ours, torch.tensor(case["probs"]), atol=1e-5, rtol=1e-4)
        assert int(output.sequences[0, -1]) in set((probabilities > 0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("index", [0, 1])
def test_streaming(mini, models, complete_checkpoint, index):
    golden = json.loads((mini.folder / "generation.json").read_text())["streaming"][index]
    case = next(item for item in mini.cases("generation").values() if item.get("query") == golden["query"])
    tokenizer = AutoTokenizer.from_pretrained(complete_checkpoint)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    options = {
        "top_k": 1,
        "max_new_tokens": len(golden["yields"]),
        "eos_token_id": stop_ids(mini),
        "streamer": streamer,
    }
    thread = threading.Thread(target=models().generate, kwargs=prompt_inputs(mini, case["prompt_ids"]) | options)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 3
    # The original leaves out bytes that are not UTF-8; transformers' streamer shows them as U+FFFD.
    assert "".join(pieces).replace("\ufffd", "") == golden["yields"][-1]
