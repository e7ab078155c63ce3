"""What trees save on the published dialogues and reviews, with the real vocabulary (an image is 256 positions)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from mmrole.data.prompts import HUMAN_PARTNER, METRICS, REVIEW_SYSTEM, review_prompt, role_play_prompt
from mmrole.prompt_tree import TokenSequence, build_tree, group_by_prefix

# qwen_vl_spec.md, sections 4 and 5
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
START, END, IMAGE_START, IMAGE_END, IMAGE_PAD = 151644, 151645, 151857, 151858, 151859
IMAGE_ROWS = 256


class Encoder:
    """Chat samples to token sequences, images numbered as they come."""

    def __init__(self, vocabulary: Path) -> None:
        ranks = load_tiktoken_bpe(str(vocabulary))
        self.encode = tiktoken.Encoding(
            "qwen", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={}
        ).encode_ordinary
        self.images: dict[str, int] = {}

    def sample(self, system: str, image: str, question: str, answer: str) -> TokenSequence:
        encode = self.encode
        head = [
            START,
            *encode("system\n" + system),
            END,
            *encode("\n"),
            START,
            *encode("user\nPicture 1: "),
            IMAGE_START,
        ]
        tail = [IMAGE_END, *encode("\n" + question), END, *encode("\n"), START, *encode("assistant\n" + answer), END]
        keys = np.full(len(head) + IMAGE_ROWS + len(tail), -1)
        first = self.images.setdefault(image, len(self.images)) * IMAGE_ROWS
        keys[len(head) : len(head) + IMAGE_ROWS] = np.arange(first, first + IMAGE_ROWS)
        return TokenSequence(np.array([*head, *[IMAGE_PAD] * IMAGE_ROWS, *tail]), keys)


@pytest.fixture(scope="module")
def encoder(real_vocabulary: Path) -> Encoder:
    return Encoder(real_vocabulary)


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "mmrole"


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def saving(families: list[list[TokenSequence]]) -> float:
    trees = [build_tree(family) for family in families]
    return sum(tree.n_tokens for tree in trees) / sum(map(len, trees))


def reviews(published: Path, encoder: Encoder, every: int) -> Iterator[list[TokenSequence]]:
    """The eight reviews of one answer, with their text, for every n-th answer of the published agent."""
    for kind in ("comment", "human-role", "inter-role"):
        for record in load(published / f"eval/in-test_reviews/mmrole-agent/{kind}_test.json")[::every]:
            question, answer = record["conversations"]
            shown = {"role": record["role"], "series": record["script"], "other_role": record["other_role"]}
            yield [
                encoder.sample(
                    REVIEW_SYSTEM,
                    record["image"],
                    review_prompt(
                        question=question["value"],
                        evaluated_answer=answer["answer"],
                        reference=answer["value"],
                        metric=metric,
                        **shown,
                    ).text,
                    record["rm_review"][metric]["review"],
                )
                for metric in METRICS
            ]


def dialogues(published: Path, encoder: Encoder, kind: str, every: int) -> Iterator[list[TokenSequence]]:
    """The training samples of one dialogue, one for each utterance of a character, for every n-th of a file."""
    profiles = load(published / "profiles/in-distribution/profiles.json")
    roles = load(published / "profiles/in-distribution/roles.json")
    series = {role: name for name, members in roles.items() for role in members}
    for path in sorted((published / "dialogues/in-distribution" / kind).glob("*.json")):
        for dialogue in load(path)[::every]:
            turns = [(turn.get("role", "human"), turn["value"]) for turn in dialogue["conversations"]]
            if len(turns) < 2:
                continue  # a failed generation
            facts = {name: dialogue.get(name) or "" for name in ("role_info", "place_info", "scene_info")}
            family = []
            for index, (role, utterance) in enumerate(turns):
                if role == "human":
                    continue
                partner = next(name for name, _ in turns if name != role)
                question = role_play_prompt(
                    role=role,
                    series=series[role],
                    other_role=HUMAN_PARTNER if partner == "human" else partner,
                    profiles=profiles,
                    history=turns[: max(index - 1, 0)],
                    last_utterance=turns[index - 1][1] if index else None,
                    **facts,
                )
                family.append(encoder.sample("You are a helpful assistant.", dialogue["image"], question, utterance))
            yield family


def test_eight_reviews_hold_4_7_times_as_many_tokens_as_their_tree(published, encoder):
    families = list(reviews(published, encoder, every=6))
    assert saving(families) == pytest.approx(4.7, abs=0.15)
    # No two of these answers are about the same image in the same role: an image and the opening words are not enough.
    flat = [sample for family in families for sample in family]
    groups = group_by_prefix(flat, min_shared=500)
    assert [sorted(group) for group in groups] == [list(range(i, i + 8)) for i in range(0, len(flat), 8)]


@pytest.mark.parametrize(("kind", "ratio"), [("comment", 1.0), ("human-role", 3.5), ("inter-role", 4.3)])
def test_the_samples_of_a_dialogue_hold_more_tokens_than_their_tree(published, encoder, kind, ratio):
    assert saving(list(dialogues(published, encoder, kind, every=40))) == pytest.approx(ratio, abs=0.1)
