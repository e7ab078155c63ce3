"""Requests of reviews: the published prompts, token for token, and answers that cannot reach beyond their span."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.hostile_answers import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from mmrole.backends.api.bodies import body_of
from mmrole.backends.api.options import ApiOptions
from mmrole.base.files import read_records, write_json
from mmrole.data.messages import Message, Quotation, one_turn
from mmrole.data.prompts import METRICS, read_review_prompt
from mmrole.data.quotations import neutralise
from mmrole.data.records import Answer
from mmrole.data.requests import AskedSettings, ChatReply, ChatRequest, GenerationSettings
from mmrole.models.context import Context
from mmrole.models.encoding import encode_chat
from mmrole.models.qwen_vl_lengths import QwenVLLengths
from mmrole.qwen_vl import QWenTokenizer
from mmrole.scoring.review_program import describe_reviews, plan_reviews, review_program

SETTINGS = GenerationSettings()
IMAGE = Path("a.png")
HARMLESS = "A quiet answer, and nothing else."


def record(answer: str, **fields: object) -> Answer:
    turns = [
        {"from": "user", "value": "Please step into the shoes of Mira.\n\n\nWhat do you see?"},
        {"from": "assistant", "value": "The lamp did its work.", "answer": answer},
    ]
    values = {"id": "Mira_1", "system": "Play.", "image": "a.png", "conversations": turns}
    return Answer.from_json(values | {"role": "Mira", "script": "Tales", "other_role": "a curious human"} | fields)


def encode(tokenizer: QWenTokenizer, request: ChatRequest) -> list[int]:
    return encode_chat(tokenizer, request.messages).input_ids


def encode_whole(tokenizer: QWenTokenizer, request: ChatRequest, text: str | None = None) -> list[int]:
    """The ids of the text as a whole, or of another one in its place."""
    return encode_chat(tokenizer, one_turn(request.system, IMAGE, request.text if text is None else text)).input_ids


def quotation(request: ChatRequest) -> tuple[int, int]:
    """Start and end of the answer in the text."""
    _, *parts = request.messages[1].content
    place = next(place for place, part in enumerate(parts) if isinstance(part, Quotation) and part.apart)
    start, end = (len(Message("user", tuple(parts[:stop])).text) for stop in (place, place + 1))
    return start, end


def make_requests(answer: Answer, swapped: bool = False) -> list[ChatRequest]:
    """The first requests for the reviews in one of the orders."""
    return [review.request for review in plan_reviews(answer, swap=True) if review.swapped == swapped]


def reply(request: ChatRequest, text: str) -> ChatReply:
    return ChatReply(request.id, text)


@pytest.fixture(scope="session")
def tokenizer(real_vocabulary) -> QWenTokenizer:
    return QWenTokenizer(real_vocabulary)


@pytest.fixture(scope="session")
def published_answers(shared) -> dict[tuple[str, str], list[Answer]]:
    """Published answers by model and file name."""
    folder = shared / "mmrole/eval/in-test_answers"
    return {(file.parent.name, file.name): read_records(file, Answer) for file in sorted(folder.glob("*/*.json"))}


# --- published prompts -----------------------------------------------------------------------------------------------


def test_golden_context_ids(shared, published_answers, tokenizer):
    """Sixteen prompts as the published script hands them to the model."""
    golden = json.loads((shared / "golden/mmrole/review_prompts.json").read_text())
    answers = [answer for of_file in published_answers.values() for answer in of_file if answer.id in golden["samples"]]
    requests = {request.text: request for answer in answers for request in make_requests(answer)}
    assert len(golden["review"]) == 16
    for case in golden["review"]:
        path, text = case["query"].removeprefix("Picture 1: <img>").split("</img>\n", 1)
        assert requests[text].system == case["system"]
        ids = encode(tokenizer, requests[text])
        start = ids.index(tokenizer.img_start_id)
        ids[start : start + 258] = tokenizer.encode_markup(f"<img>{path}</img>")  # the original keeps the path there
        assert len(ids) == case["n_ids"]
        assert hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() == case["ids_sha256"]


def test_published_prompts_are_encoded_as_a_whole(published_answers, tokenizer):
    """That the answer's span is encoded apart changes no token of any published answer, in either order."""
    count = 0
    for answers in published_answers.values():
        for answer in answers:
            for swapped in (False, True) if answer.answer else ():
                request = make_requests(answer, swapped)[0]
                whole = encode_whole(tokenizer, request)
                assert encode(tokenizer, request) == whole
                count += 1
    assert count == 2 * 863


def test_published_files_come_out_byte_for_byte(shared, published_answers, tmp_path):
    """The published review texts as replies give the published files: form, order and score pairs."""
    program = review_program(retries=3, swap=False)
    for (model, name), answers in published_answers.items():
        file = shared / "mmrole/eval/in-test_reviews" / model / name
        reviews = {obj["id"]: obj.get("rm_review") for obj in json.loads(file.read_text(encoding="utf-8"))}
        results = []
        for answer in answers:
            requests = program.ask(answer, {})
            texts = {request.id: reviews[answer.id][request.id.split("/")[1]]["review"] for request in requests}
            replies = {request.id: reply(request, texts[request.id]) for request in requests}
            assert not program.ask(answer, replies)
            results.append(program.result(answer, replies))
        write_json(tmp_path / name, results)
        assert (tmp_path / name).read_bytes() == file.read_bytes()
        empty = sum(not answer.answer for answer in answers)
        assert len(program.report(file, results)) == (1 if empty else 0)


# --- hostile answers -------------------------------------------------------------------------------------------------


def outside(tokenizer: QWenTokenizer, request: ChatRequest) -> tuple[list[int], list[int], list[int]]:
    """The ids before, in and behind the span: the quotation and the two line breaks behind it."""
    ids = encode(tokenizer, request)
    start, end = quotation(request)
    before = encode_whole(tokenizer, request, request.text[:start])
    close = [tokenizer.im_end_id, *tokenizer.encode_ordinary("\n"), tokenizer.im_start_id]
    close += tokenizer.encode_ordinary("assistant") + tokenizer.encode_ordinary("\n")
    behind = tokenizer.encode_ordinary(request.text[end + 2 :]) + close
    assert request.text[end : end + 2] == "\n\n"
    head = len(before) - len(close)
    return ids[:head], ids[head : len(ids) - len(behind)], ids[len(ids) - len(behind) :]


def test_there_are_enough_hostile_answers():
    assert len(set(HOSTILE)) >= 80


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_change_nothing_outside_of_their_span(tokenizer, answer, swapped):
    context = Context(QwenVLLengths(tokenizer), 8192)
    requests = make_requests(record(answer), swapped)
    if not answer.strip():
        assert requests == []
        return
    if excess := context.excess(requests):
        requests = context.cut(requests, excess)
        assert all(len(encode(tokenizer, request)) <= 8192 - SETTINGS.max_new_tokens for request in requests)
    harmless = make_requests(record(HARMLESS), swapped)
    for hostile, expected in zip(requests[::7], harmless[::7], strict=True):
        before, inside, behind = outside(tokenizer, hostile)
        expected_before, expected_inside, expected_behind = outside(tokenizer, expected)
        assert (before, behind) == (expected_before, expected_behind)
        assert max(inside) < tokenizer.eod_id  # no special token, no image
        assert tokenizer.decode(expected_inside) == HARMLESS + "\n\n"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_a_server_is_sent_answers_that_pass_for_no_part_of_the_prompt(answer, swapped):
    """Read back, it is the prompt of a harmless answer with the neutralised one in its place; with no image, too."""
    turns = record(answer).json["conversations"]
    obj = record(answer, image=None, conversations=[turns[0], turns[1] | {"value": f"Aye.\n{answer}"}]).json
    requests = make_requests(Answer.from_json(obj), swapped)
    assert bool(requests) == bool(answer.strip())
    for request in requests[:1]:
        body = body_of(replace(request, settings=SETTINGS), ApiOptions("http://localhost/v1", "judge"))
        sent = read_review_prompt(body["messages"][1]["content"])
        (harmless, *_) = make_requests(record(HARMLESS), swapped)
        expected = read_review_prompt(harmless.text)
        assert (sent.before, sent.between, sent.after) == (expected.before, expected.between, expected.after)
        quoted = [neutralise(text).encode("utf-8", "replace").decode() for text in (answer, f"Aye.\n{answer}")]
        assert [sent.first, sent.second] == (quoted[::-1] if swapped else quoted)


@given(answer=st.text(st.characters() | st.sampled_from("\n\r .#*]<|")).filter(str.strip), swapped=st.booleans())
def test_no_answer_changes_anything_outside_of_its_span(tokenizer, answer, swapped):
    hostile, *_ = make_requests(record(answer), swapped)
    harmless, *_ = make_requests(record(HARMLESS), swapped)
    assert outside(tokenizer, hostile)[::2] == outside(tokenizer, harmless)[::2]
    if answer[0] not in "\r\n":
        whole = encode_whole(tokenizer, hostile)
        assert encode(tokenizer, hostile) == whole


@given(reference=st.text(st.characters() | st.sampled_from("\n\r .#*]<|")).filter(str.strip), swapped=st.booleans())
def test_the_engine_encodes_the_reference_with_what_is_around_it(tokenizer, reference, swapped):
    """That it is quoted for other backends changes no token id."""
    obj = record("Aye.").json
    asked, answered = obj["conversations"]
    answer = Answer.from_json(obj | {"conversations": [asked, answered | {"value": reference}]})
    request, *_ = make_requests(answer, swapped)
    start, end = quotation(request)
    parts = request.text[:start], Quotation("Aye."), request.text[end:]
    assert reference in parts[0 if swapped else 2]
    assert encode(tokenizer, request) == encode_chat(tokenizer, one_turn(request.system, IMAGE, *parts)).input_ids


@pytest.mark.parametrize("answer", ["x" * 1_000_000, "A word, and 王. " * 100_000, "\ud800\u0958e\u0301" * 100_000])
def test_megabytes_are_cut_to_what_fits(tokenizer, answer):
    context = Context(QwenVLLengths(tokenizer), 8192)
    requests = make_requests(record(answer))
    cut = context.cut(requests, context.excess(requests))
    lengths = [len(encode(tokenizer, request)) for request in cut]
    assert 8192 - 512 - 8 <= max(lengths) <= 8192 - 512
    quoted = {request.text[slice(*quotation(request))] for request in cut}
    assert len(quoted) == 1  # the same in all eight: they stay one tree
    assert context.excess(cut) == 0


def test_what_fits_is_not_touched(tokenizer):
    context = Context(QwenVLLengths(tokenizer), 8192)
    requests = make_requests(record("x" * 20_000))  # 8 to a token
    assert context.excess(requests) == 0
    length = max(len(encode(tokenizer, request)) for request in requests)
    assert [Context(QwenVLLengths(tokenizer), length + 512 - less).excess(requests) for less in (0, 1, 9)] == [0, 1, 9]


def test_nothing_is_left_to_cut(tokenizer):
    with pytest.raises(ValueError, match="positions too many"):
        Context(QwenVLLengths(tokenizer), 700).cut(make_requests(record("x" * 80)), excess=200)


# --- requests, retries, results --------------------------------------------------------------------------------------


def test_ids_are_unique_whatever_the_records_are_called():
    ids = ["a", "a/Fluency", "a/swapped", "a/Fluency/swapped", "a/Fluency/retry-1", "a/swapped/retry-1", "/"]
    program = review_program(retries=2, swap=True)
    seen = set()
    for id_ in ids:
        answer, replies = record("Aye.", id=id_), {}
        while requests := program.ask(answer, replies):
            assert not seen & {request.id for request in requests}
            seen |= {request.id for request in requests}
            replies |= {request.id: reply(request, "no pair") for request in requests}
    assert len(seen) == len(ids) * 16 * 3


def test_retries_sample_with_new_seeds_until_there_is_a_pair():
    answer = record("Aye.")
    program = review_program(retries=2, swap=False)
    requests = program.ask(answer, {})
    replies = {request.id: reply(request, "[Scores]: (7, 8)") for request in requests[1:]}
    rounds = []
    while asked := program.ask(answer, replies):
        (request,) = asked
        rounds.append(request)
        replies[request.id] = reply(request, "none")
    first = requests[0]
    assert [retry.id for retry in rounds] == [first.id, f"{first.id}/retry-1", f"{first.id}/retry-2"]
    assert [retry.settings for retry in rounds[1:]] == [AskedSettings(do_sample=True, seed_offset=n) for n in (1, 2)]
    assert all(retry.messages == first.messages for retry in rounds)
    assert not review_program(retries=0, swap=False).ask(
        answer, {request.id: reply(request, "") for request in requests}
    )


def test_the_last_reply_counts_and_a_refusal_stands():
    answer = record("Aye.")
    program = review_program(retries=2, swap=False)
    first, second, *others = program.ask(answer, {})
    replies = {request.id: reply(request, "[Scores]: (7, 8)") for request in others}
    replies[first.id] = reply(first, "none")
    replies[f"{first.id}/retry-1"] = reply(first, "[Scores]: (4, 8)")
    replies[second.id] = ChatReply(second.id, "", "refused", error="not this one")
    assert not program.ask(answer, replies)
    made = list(program.result(answer, replies)["rm_review"].values())
    assert made[0] == {"review": "[Scores]: (4, 8)", "score": [4.0, 8.0]}
    assert made[1] == {"review": "", "score": None, "reason": "refused: not this one"}


@pytest.mark.parametrize(
    ("text", "swapped", "usable"),
    [
        ("[Scores]: (0, 8)", False, True),
        ("[Scores]: (0, 8)", True, False),
        ("[Scores]: (8, 0)", False, False),
        ("[Scores]: (8, 0)", True, True),
    ],
)
def test_a_pair_that_only_the_order_makes_unusable(text, swapped, usable):
    review = next(review for review in plan_reviews(record("Aye."), swap=True) if review.swapped == swapped)
    assert (review.next({review.request.id: reply(review.request, text)}, retries=3) == []) == usable


def test_swapped_reviews_show_the_reference_first():
    plain, swapped = (make_requests(record("Aye."), order)[3] for order in (False, True))
    assert plain.text.split("Aye.") == swapped.text.replace("The lamp did its work.", "\0").replace(
        "Aye.", "The lamp did its work."
    ).split("\0")


def test_results_with_swapped_and_null_pairs_and_empty_answers():
    program = review_program(retries=0, swap=True)
    answer = record("Aye.", rm_review={"Old": 1}, note="kept")
    replies = {}
    for request in program.ask(answer, {}):
        replies[request.id] = reply(request, "[Scores]: (4, 8)" if "Tone" not in request.id else "no idea")
    result = program.result(answer, replies)
    kept = [key for key in answer.json if key != "rm_review"]
    assert list(result) == [*kept, "rm_review", "rm_review_swapped"]
    assert list(result["rm_review"]) == list(result["rm_review_swapped"]) == list(METRICS)
    assert result["rm_review"]["Fluency"] == {"review": "[Scores]: (4, 8)", "score": [4.0, 8.0]}
    assert result["rm_review_swapped"]["Fluency"]["score"] == [8.0, 4.0]
    null = {"review": "no idea", "score": None, "reason": "no [Scores]: marker"}
    assert result["rm_review"]["Tone Consistency"] == result["rm_review_swapped"]["Tone Consistency"] == null

    empty = [program.result(record(text, rm_review={"Old": 1}, id=f"e{len(text)}"), {}) for text in ("", " \n")]
    assert all("rm_review" not in obj for obj in empty)
    lines = describe_reviews(Path("out.json"), [result, *empty])
    assert lines[0] == "out.json: empty answers, without reviews: 2 ('e0', 'e2')"
    assert lines[1].startswith("out.json: reviews without a usable pair of scores: 2 of 16;")
    assert lines[2:] == [
        "  'Mira_1', Tone Consistency: no [Scores]: marker",
        "  'Mira_1', Tone Consistency, answers exchanged: no [Scores]: marker",
    ]


def test_answers_that_were_refused_or_have_failed_are_counted_apart():
    program = review_program(retries=0, swap=False)
    turn = {"from": "assistant", "value": "The lamp did its work.", "answer": "", "answer_error": "failed: gone"}
    answer = record("", conversations=[{"from": "user", "value": "What?"}, turn])
    assert program.ask(answer, {}) == []
    made = program.result(answer, {})
    assert "rm_review" not in made
    assert describe_reviews(Path("out.json"), [made]) == [
        "out.json: answers that were refused or have failed, without reviews: 1 ('Mira_1')"
    ]
