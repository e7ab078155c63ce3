"""What tokens say, piece by piece, is what the tokenizer says of them all."""

import pytest
from fixtures.vlms.chosen import ALL
from transformers import AutoTokenizer

from mmrole.models.vlm.reply_bytes import ReplyBytes

TEXT = "The sea's grey,\n\n isn't it?  中文 été 👍🏽\ttab"


@pytest.mark.parametrize("kind", ALL)
def test_pieces_make_the_text_of_the_tokenizer(kind, tiny_vlm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_vlm(kind))
    spoken = ReplyBytes(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(spoken.of([token]) for token in ids).decode().strip() == TEXT

    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert spoken.of(sorted(special)) == b""
    ordinary = sorted(set(range(len(tokenizer))) - special)
    for token in ordinary:
        said, alone = spoken.of([token]), tokenizer.decode([ordinary[0], token], clean_up_tokenization_spaces=False)
        if "\ufffd" not in alone:  # no part of a character
            assert (spoken.of(ordinary[:1]) + said).decode().lstrip() == alone.lstrip()
