"""Replies that are given: what a file may say, and how they come."""

import pytest

from mmrole.backends.backend import generate, stream
from mmrole.backends.scripted import ScriptedBackend, read_replies, replies_of_file
from mmrole.base.errors import UserError
from mmrole.data.messages import one_turn
from mmrole.data.requests import ChatReply, ChatRequest, GenerationSettings, Piece


def ask(*ids: str) -> list[ChatRequest]:
    return [ChatRequest(id_, one_turn("", "?")) for id_ in ids]


def test_a_file_of_replies(tmp_path):
    file = tmp_path / "replies.jsonl"
    file.write_text(
        '\ufeff{"id": "a", "text": " Aye.\\n"}\r\n \n{"id": "b", "text": "", "finish_reason": "length"}\n'
        '{"id": "c", "finish_reason": "refused", "error": "no"}\n'
        '{"id": "d", "finish_reason": "failed", "error": "gone", "text": "A"}'
    )
    assert list(read_replies(file).values()) == [
        ChatReply("a", "Aye."),
        ChatReply("b", "", "length"),
        ChatReply("c", "", "refused", error="no"),
        ChatReply("d", "A", "failed", error="gone"),
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": "b", "text": "b"', "it is no JSON object"),
        ("[" * 100_000, "it is no JSON object"),
        ('{"id": "b", "text": "b", "text": "c"}', "the key 'text' occurs twice in an object"),
        ('{"id": "b", "text": NaN}', "NaN is no number of JSON"),
        ('{"id": "b", "text": ' + "9" * 5_000 + "}", "a number has thousands of digits"),
        ('["a", "b"]', "it is no JSON object"),
        ('{"id": "b"}', "text is missing"),
        ('{"text": "b"}', "id is missing"),
        ('{"id": 1, "text": "b"}', "id is 1, not a text"),
        ('{"id": "b", "text": null}', "text is None, not a text"),
        ('{"id": "a", "text": "b"}', "the id 'a' is in an earlier line, too"),
        ('{"id": "b", "text": "b", "reply": "c"}', "the field 'reply' is not known"),
        ('{"id": "b", "text": "b", "finish_reason": "tired"}', "finish_reason is 'tired', not one of stop, length"),
        ('{"id": "b", "finish_reason": "failed"}', "error is missing"),
        ('{"id": "b", "text": "b", "error": "no"}', "error is given, but"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, line, fault):
    file = tmp_path / "replies.jsonl"
    file.write_text('{"id": "a", "text": "x"}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_replies(file)
    assert str(error.value).startswith(f"{file}: line 2: {fault}")
    assert str(error.value).endswith("; correct the file")
    assert len(error.value.lines) == 1


def test_files_that_are_not_there_and_ids_that_are_not_in_them(tmp_path):
    file = tmp_path / "replies.jsonl"
    with pytest.raises(UserError, match=f"cannot read {file}: No such file"):
        replies_of_file(file)
    file.write_text('{"id": "a", "text": "x"}\n{"id": "not asked", "text": "y"}\n')
    backend = replies_of_file(file)
    fitted, notes = backend.fit(ask("a"))
    assert (fitted[0].settings, notes) == (GenerationSettings(), [])
    with pytest.raises(UserError, match=f"^{file}: there is no reply to 'b', which is asked; add a line with this id$"):
        backend.fit(ask("a", "b"))
    with pytest.raises(
        UserError, match=r"^.*: there are no replies to 2 requests that are asked: 'b', 'c'; add a line"
    ):
        backend.fit(ask("b", "a", "c"))


def test_requests_come_go_and_are_read_in_pieces():
    backend = ScriptedBackend(lambda request: ChatReply(request.id, f"Aye, {request.id}."))
    with backend.open() as generator:
        assert generator.step() == []
        for request in ask("a", "b", "c"):
            generator.add(request)
        generator.cancel("b")
        generator.cancel("never added")
        assert generator.step() == [Piece("a", "Aye, a."), ChatReply("a", "Aye, a.")]
        assert generator.step()[-1].id == "c"
        assert generator.step() == []
        assert list(generate(generator, ask("d", "e"))) == [ChatReply("d", "Aye, d."), ChatReply("e", "Aye, e.")]
        assert list(stream(generator, *ask("f"))) == [Piece("f", "Aye, f."), ChatReply("f", "Aye, f.")]


def test_what_is_given_up_leaves():
    with ScriptedBackend(lambda request: ChatReply(request.id, "Aye.")).open() as generator:
        replies = generate(generator, ask("a", "b", "c"))
        assert next(replies).id == "a"
        replies.close()
        assert generator.step() == []
