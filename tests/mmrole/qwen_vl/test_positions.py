"""Padding, caches and dynamic NTK, where this implementation differs from the original on purpose (docs/qwen_vl.md).

Positions and the NTK factor are each sequence's own: whatever stands beside it in a batch, a row is what it is alone.
"""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from mmrole.qwen_vl.rotary import ntk_alpha

ATTENTIONS = ("eager", "sdpa")


def pad(rows: list[torch.Tensor], side: str, pad_id: int) -> dict[str, torch.Tensor]:
    """A batch of rows of token ids [positions], padded on one side."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(None, len(row))
        ids[index, place], mask[index, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def random_ids(*lengths: int, seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 2000, (length,), generator=generator) for length in lengths]


def close(ours: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", ["batch_left_padded", "batch_left_padded_ntk", "batch_right_padded"])
def test_each_row_of_a_padded_batch_equals_the_row_alone(mini, models, case, attention):
    # In the original, batch_left_padded_ntk takes its factor and log-n indices from the padded length.
    model, inputs = models("mini", attention), mini.inputs(case)
    batch = model(**inputs, use_cache=False).logits
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        alone = ids[mask.bool()][None]
        expected = model(alone, pixel_values=mini.pixels(alone), use_cache=False).logits[0]
        close(batch[row][mask.bool()], expected, mini.TIGHT)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_on_both_sides_of_seq_length_share_a_batch(mini, models, side, attention):
    model = models("mini", attention)
    rows = random_ids(513, 40, 512, 1025)
    batch = pad(rows, side, 2000)
    logits = model(**batch, use_cache=False).logits
    for row, mask, ids in zip(logits, batch["attention_mask"].bool(), rows, strict=True):
        close(row[mask], model(ids[None], use_cache=False).logits[0], mini.ATOL)


def test_padding_inside_a_sequence_moves_no_position(mini, models):
    ids = random_ids(30)[0]
    mask = torch.ones(1, 35, dtype=torch.bool)
    mask[0, 10:15] = False
    padded = torch.full((1, 35), 2000)
    padded[mask] = ids
    close(models("mini", "sdpa")(padded, attention_mask=mask).logits[mask], models()(ids[None]).logits[0], mini.TIGHT)


def test_fully_padded_rows_stay_finite(models):
    ids = random_ids(12)[0].view(2, 6)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1] = 0
    for attention in ATTENTIONS:
        assert models("mini", attention)(ids, attention_mask=mask).logits.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_one_token_without_mask_equals_one_token_with_it(mini, models, attention):
    # The original fails on a single position without a mask.
    model, inputs = models("mini", attention), mini.inputs("one_token")
    assert inputs.pop("attention_mask") is not None
    output = model(**inputs)
    assert mini.difference("one_token", output.logits) < mini.TIGHT
    token = torch.tensor([[7]])
    after = model(token, past_key_values=output.past_key_values).logits
    close(after[:, -1], model(torch.cat((inputs["input_ids"], token), 1)).logits[:, -1], mini.TIGHT)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prompt", [100, 500, 600])
def test_several_new_positions_with_a_cache(mini, models, prompt, attention):
    # The original fails on them. They equal the uncached run under the factor of the prompt in the cache.
    model, ids = models("mini", attention), random_ids(prompt + 30)[0][None]
    factor = ntk_alpha(torch.tensor([prompt]), 512)
    expected = model(ids, ntk_alpha=factor, use_cache=False).logits[:, prompt:]
    cache = model(ids[:, :prompt]).past_key_values
    first = model(ids[:, prompt : prompt + 17], past_key_values=cache)
    rest = model(ids[:, prompt + 17 :], past_key_values=first.past_key_values)
    assert rest.past_key_values.get_seq_length() == prompt + 30
    close(torch.cat((first.logits, rest.logits), 1), expected, mini.ATOL)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_several_new_positions_in_a_left_padded_batch(mini, models, attention):
    model, rows = models("mini", attention), random_ids(530, 100)
    prompt = pad([row[:-8] for row in rows], "left", 2000)
    cache = model(**prompt).past_key_values
    new = torch.stack([row[-8:] for row in rows])
    mask = torch.cat((prompt["attention_mask"], torch.ones_like(new)), 1)
    logits = model(new, attention_mask=mask, past_key_values=cache).logits
    for row, ids in zip(logits, rows, strict=True):
        factor = ntk_alpha(torch.tensor([len(ids) - 8]), 512)
        close(row, model(ids[None], ntk_alpha=factor).logits[0, -8:], mini.TIGHT)


def test_static_cache_equals_dynamic_cache(mini, models):
    model, (ids,) = models(), random_ids(530)
    logits = {}
    for kind in ("static", "dynamic"):
        cache = StaticCache(config=model.config, max_cache_len=540) if kind == "static" else DynamicCache()
        parts = [ids[:520], ids[520:525], *ids[525:].split(1)]
        logits[kind] = torch.cat([model(part[None], past_key_values=cache).logits for part in parts], 1)
    close(logits["static"], logits["dynamic"], mini.TIGHT)


def test_a_reset_cache_takes_the_factor_of_the_next_prompt(mini, models):
    model, (long, short) = models(), random_ids(600, 50)
    cache = StaticCache(config=model.config, max_cache_len=640)
    model(long[None], past_key_values=cache)
    cache.reset()
    close(model(short[None], past_key_values=cache).logits, model(short[None]).logits, mini.TIGHT)


def test_a_cache_that_was_repeated_goes_on_under_its_factors(mini, models):
    model, rows = models(), random_ids(530, 100)
    cache = model(**pad([row[:-2] for row in rows], "left", 2000)).past_key_values
    cache.batch_repeat_interleave(2)
    mask = pad([rows[0], rows[0], rows[1], rows[1]], "left", 2000)["attention_mask"]
    new = torch.stack([row[-2:] for row in rows]).repeat_interleave(2, dim=0)
    logits = model(new, attention_mask=mask, past_key_values=cache).logits
    for row, ids in zip(logits, (rows[0], rows[0], rows[1], rows[1]), strict=True):
        factor = ntk_alpha(torch.tensor([len(ids) - 2]), 512)
        close(row, model(ids[None], ntk_alpha=factor).logits[0, -2:], mini.TIGHT)


def test_no_state_leaks_between_calls(mini, fresh):
    # train_text_after_long_eval: the original trains under the factor of the last evaluation.
    model, inputs = fresh(), mini.inputs("train_text")
    labels = mini.get("train_text/labels").long()
    long = random_ids(600)[0][None]
    before = model.eval()(**inputs).logits
    model(long)
    assert torch.equal(model(**inputs).logits, before)
    loss = float(model.train()(**inputs, labels=labels).loss)
    golden = mini.cases("training")
    assert abs(loss - golden["train_text"]["loss"]) < 1e-4 * loss
    assert abs(loss - golden["train_text_after_long_eval"]["loss"]) > 0.1


@pytest.mark.parametrize("length", [513, 1025])
def test_training_mode_has_neither_ntk_nor_logn(mini, fresh, length):
    model, ids = fresh(), random_ids(length)[0][None]
    trained = model.train()(ids).logits
    model.eval()
    model.config.use_logn_attn = False
    close(trained, model(ids, ntk_alpha=torch.tensor([1])).logits, mini.ATOL)
    model.config.use_dynamic_ntk = False
    close(trained, model(ids).logits, mini.ATOL)


def test_factors_may_be_given_for_each_row_and_for_each_position(mini, models):
    model, ids = models(), random_ids(520)[0][None]
    default = model(ids).logits
    close(model(ids, ntk_alpha=torch.tensor([3])).logits, default, 0.0)
    close(model(ids, ntk_alpha=torch.full((1, 520), 3)).logits, default, 0.0)
    both = model(ids.expand(2, -1), ntk_alpha=torch.tensor([1, 3])).logits
    close(both[0], model(ids, ntk_alpha=torch.tensor([1])).logits[0], mini.TIGHT)
    close(both[1], default[0], mini.TIGHT)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_position_ids_are_obeyed(mini, models):
    # The original ignores them. Rotary positions are relative, so a shift below seq_length changes nothing ...
    model, ids = models(), random_ids(50)[0][None]
    positions = torch.arange(50)[None]
    expected = model(ids).logits
    close(model(ids, position_ids=positions).logits, expected, 0.0)
    close(model(ids, position_ids=positions + 100).logits, expected, mini.ATOL)
    # ... but stretching does, and beyond seq_length factor and log-n apply.
    assert (model(ids, position_ids=positions * 2).logits - expected).abs().max() > 0.1
    assert (model(ids, position_ids=positions + 500).logits - expected).abs().max() > 0.1


def test_factors_that_do_not_fit_the_batch_are_refused(models):
    model, (ids,) = models(), random_ids(10)
    with pytest.raises(ValueError, match=r"ntk_alpha has shape \[2\]; expected \[1\]"):
        model(ids[None], ntk_alpha=torch.tensor([1, 3]))
    for factors in (torch.tensor([1, 3]), torch.ones(2, 10, dtype=torch.int64)):
        cache = model(ids.expand(2, -1), ntk_alpha=factors).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(ValueError, match="give ntk_alpha for this batch of 1"):
            model(ids[None, :1], past_key_values=cache)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("jump", [5, -10])
def test_positions_that_jump_mask_nothing(models, mini, jump, attention):
    # transformers would take them for packed sequences, and only without a cache.
    model, ids = models("mini", attention), random_ids(20)[0][None]
    positions = torch.cat((torch.arange(10), torch.arange(10, 20) + jump))[None]
    causal = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    expected = model(ids, position_ids=positions, attention_mask=causal).logits
    for use_cache in (True, False):
        close(model(ids, position_ids=positions, use_cache=use_cache).logits, expected, mini.TIGHT)
