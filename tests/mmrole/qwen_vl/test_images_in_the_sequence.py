"""How images enter a sequence: spans of ids, given positions, and the errors where they do not match."""

import pytest
import torch

from mmrole.qwen_vl.image_positions import find_image_positions, has_image_span

IMG, END, PAD = 2214, 2215, 2216


def span(*path: int) -> list[int]:
    return [IMG, *path, *[PAD] * (256 - len(path)), END]


def close(ours: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def test_spans_take_the_images_in_row_major_order():
    ids = torch.tensor([[7, *span(1), 8, *span(2)], [*[9] * 260, *span(3)]])
    positions = find_image_positions(ids, IMG, 3)
    assert positions.dtype == torch.int64
    assert positions[0, 2:258].tolist() == list(range(256))
    assert positions[0, 261:517].tolist() == list(range(256, 512))
    assert positions[1, 261:517].tolist() == list(range(512, 768))
    assert int((positions >= 0).sum()) == 3 * 256


@pytest.mark.parametrize("path", [[], [3] * 254, [3] * 255, [3] * 256], ids=len)
def test_paths_of_any_length_that_fits(path):
    # In the original a path of 255 or 256 bytes fails in the model.
    positions = find_image_positions(torch.tensor([span(*path)]), IMG, 1)
    assert positions[0].tolist() == [-1, *range(256), -1]


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, 2, 3], 1, "hold 0 image spans .* but 1 images were given"),
        (span() + span(), 1, "hold 2 image spans .* but 1 images were given"),
        (span()[:-1], 1, "was the sample cut inside an image"),
        (span()[:100], 1, "was the sample cut inside an image"),
        ([IMG, *[PAD] * 255, END, 5, 5], 1, "does not hold 256 positions"),
        ([IMG, *[PAD] * 257, END], 1, "does not hold 256 positions"),
    ],
)
def test_spans_that_do_not_match_are_one_clear_line(models, ids, images, message):
    with pytest.raises(ValueError, match=message) as error:
        models()(torch.tensor([ids]), pixel_values=torch.zeros(images, 3, 448, 448))
    assert "\n" not in str(error.value)


def test_a_stray_closing_tag_is_text():
    ids = torch.tensor([[END, 4, *span(1), END, 5, END]])
    assert (find_image_positions(ids, IMG, 1) >= 0).sum() == 256
    assert find_image_positions(ids, IMG, 1)[0, 3] == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_stray_closing_tag_beside_an_image(mini, models, attention):
    # stray_close_tag_with_image: the original fails. Here the tag is a token like any other.
    model, prompt = models("mini", attention), mini.ids("image_1")
    pixel_values = mini.pixels(prompt)
    cut = prompt.shape[1] - 8
    ids = torch.cat((prompt[:, :cut], torch.tensor([[END]]), prompt[:, cut:]), 1)
    logits = model(ids, pixel_values=pixel_values).logits
    before = model(prompt, pixel_values=pixel_values).logits
    close(logits[:, :cut], before[:, :cut], mini.TIGHT)
    positions = find_image_positions(prompt, IMG, 1)
    embeddings = model.get_input_embeddings()(ids)
    given = torch.cat((positions[:, :cut], torch.tensor([[-1]]), positions[:, cut:]), 1)
    same = model(inputs_embeds=embeddings, pixel_values=pixel_values, image_positions=given).logits
    close(logits, same, mini.TIGHT)
    options = {"do_sample": False, "top_p": None, "top_k": None, "max_new_tokens": 4}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pixel_values=pixel_values, **options)
    assert int(output[0, ids.shape[1]]) == int(logits[0, -1].argmax())


def test_an_image_span_without_pixels_is_refused(models):
    ids = torch.tensor([[5, *span(1), 6]])
    for given in (None, torch.zeros(0, 3, 448, 448)):
        with pytest.raises(ValueError, match=r"hold an image span .* but there are no pixel_values"):
            models()(ids, pixel_values=given)
    with pytest.raises(ValueError, match="image_positions name image features, but there are no pixel_values"):
        models()(ids, image_positions=find_image_positions(ids, IMG, 1))
    assert not has_image_span(ids[:, :257], IMG)
    assert not has_image_span(torch.tensor([[IMG, 5, END]]), IMG)
    text = torch.tensor([[IMG, 5, END]])
    assert models()(text, image_positions=torch.full_like(text, -1)).logits.isfinite().all()


def test_embeddings_with_pixels_need_positions(models):
    with pytest.raises(ValueError, match="inputs_embeds with pixel_values need image_positions"):
        models()(inputs_embeds=torch.zeros(1, 4, 256), pixel_values=torch.zeros(1, 3, 448, 448))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        models()()


def test_features_replace_the_rows_between_the_tags_only(mini, models):
    model, ids = models(), mini.ids("image_1")
    hidden = model(**mini.inputs("image_1"), output_hidden_states=True).hidden_states[0][0]
    start = int((ids[0] == IMG).nonzero()[0]) + 1
    between = torch.zeros(ids.shape[1], dtype=torch.bool)
    between[start : start + 256] = True
    assert torch.equal(hidden[~between], model.get_input_embeddings()(ids[0])[~between])
    close(hidden[between], mini.tensors["visual/features"], mini.TIGHT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_pixels_are_taken_in_any_dtype(mini, models, dtype):
    pixel_values = mini.read("rgb_80x60.png")
    features = models().get_image_features(pixel_values.to(dtype))
    assert features.dtype == torch.float32
    close(features[0], mini.tensors["visual/features"], 1e-5 if dtype == torch.float64 else 0.1)


def test_other_ids_between_the_tags_make_no_difference(mini, models):
    ids, inputs = mini.ids("image_1"), mini.inputs("image_1")
    start = int((ids[0] == IMG).nonzero()[0]) + 1
    ids[0, start : start + 256] = PAD
    close(models()(**inputs | {"input_ids": ids}).logits, models()(**inputs).logits, 0.0)
