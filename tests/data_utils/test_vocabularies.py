"""The families that `--tokenizer` names, of whose checkpoints no weights are read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.vlms.chosen import WITH_TREES

from data_utils.vocabularies import image_file, images_matter, load_family, reply_length
from mmrole.base.errors import UserError
from mmrole.data.messages import Message

TinyVlm = Callable[[str], Path]


@pytest.mark.parametrize("kind", WITH_TREES)
@pytest.mark.parametrize("reply", ["Aye, a boat.", "a", ""])
def test_the_reply_of_a_sample(kind: str, reply: str, tiny_vlm: TinyVlm, tmp_path: Path):
    directory = tmp_path / kind
    shutil.copytree(tiny_vlm(kind), directory, ignore=shutil.ignore_patterns("*.safetensors"))
    family = load_family(directory)
    assert images_matter(family)
    messages = [Message("system", ("Hi.",)), Message("user", ("What?",)), Message("assistant", (reply,))]
    ids, targets, _ = family.encode(messages, for_training=True)
    start, length = reply_length(family, ids, targets)
    assert family.decode(ids[start : start + length].tolist()) == reply
    assert targets[start : start + length].all()
    assert ids[start + length] in family.stop_ids
    assert not targets[:start].any()


def test_an_image_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    for image in ("damaged.png", "none.png", "../none.png", "", "\x00"):
        assert image_file(tmp_path, image) is None


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--tokenizer .*: it has neither config\.json nor qwen\.tiktoken; give the "):
        load_family(tmp_path)
    with pytest.raises(
        UserError, match=r"^--tokenizer Qwen/Qwen3-VL-8B-Instruct: there is no such directory or file; "
    ):
        load_family("Qwen/Qwen3-VL-8B-Instruct")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UserError, match=r"config\.json: model_type 'bert' is no model of transformers that reads images"
    ):
        load_family(tmp_path)


def test_a_checkpoint_whose_chats_cannot_be_encoded_is_refused_before_any_record(tiny_vlm: TinyVlm, tmp_path: Path):
    directory = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'][0]['text'] }}")
    with pytest.raises(UserError, match="its chat template leaves out or repeats a message's text"):
        load_family(directory)


def test_a_limit_of_pixels_that_has_no_effect_is_refused(tiny_vlm: TinyVlm, mini_vocabulary: Path):
    for place, reason in ((mini_vocabulary, "stretches every image"), (tiny_vlm("llava"), "has no such limit")):
        with pytest.raises(UserError, match=f"^--max_pixels has no effect on .*{reason}"):
            load_family(place, 99)
    with pytest.raises(UserError, match=r"^--max_pixels 99 is less than what .* enlarges small images to, 2,048"):
        load_family(tiny_vlm("qwen3_vl"), 99)
