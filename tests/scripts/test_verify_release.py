"""scripts/verify_release.py: from weights and published outputs to the page of differences."""

import itertools
import json
import re

import pytest
import torch
from fixtures.scripts import help_of, load_script

from mmrole.base.errors import UserError
from mmrole.data.prompts import METRICS
from mmrole.jobs.options import TEST_FILES
from mmrole.qwen_vl import QWenTokenizer
from mmrole.qwen_vl.random_checkpoint import random_config, random_model, write_checkpoint
from mmrole.qwen_vl.vocabulary import train_vocabulary
from mmrole.scoring.agreement import match, measure_agreement, read_reviews
from mmrole.scoring.release import AnswerCheck, AnswerPair, ReviewCheck, read_answer_pairs, release_page

REVIEW = "[Scores]:(9,8)"  # no character twice: the model below goes from each token to the next


@pytest.fixture(scope="module")
def script(repository):
    return load_script(repository / "scripts/verify_release.py")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A tiny reward model that reads nothing and always says `REVIEW`: its layers add nothing to the embeddings."""
    directory = tmp_path_factory.mktemp("model_weights") / "judge"
    model = random_model(random_config(256), seed=3)
    write_checkpoint(directory, model, train_vocabulary(["Aye, aye."], 256))
    tokenizer = QWenTokenizer(directory / "qwen.tiktoken")
    chain = [tokenizer.encode("\n")[-1], *tokenizer.encode(REVIEW), tokenizer.im_end_id]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for layer in model.transformer.h:
            layer.attn.c_proj.weight.zero_()
            layer.mlp.c_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(chain):
            model.lm_head.weight[following] = model.transformer.wte.weight[token]
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def published(job, tiny, tmp_path):
    """Published outputs of four samples: the tiny agent gives one of the answers, the judge all reviews but one."""
    model = job.load()
    job.max_new_tokens = 16
    numbers = {TEST_FILES[0]: (0, 1), TEST_FILES[1]: (2,), TEST_FILES[2]: (3,)}
    for name, own in numbers.items():
        records = [job.sample(number) for number in own]
        for record in records:
            record["conversations"][1]["answer"] = "Aye `|` aye."
        if name == TEST_FILES[0]:
            records[0]["conversations"][1]["answer"] = job.alone(model, records[0]).text
        write(tmp_path / "eval/in-test_answers/mmrole-agent" / name, records)
        for record in records:
            record["rm_review"] = {metric: {"review": REVIEW, "score": [9.0, 8.0]} for metric in METRICS}
        if name == TEST_FILES[2]:
            records[0]["rm_review"]["Fluency"]["score"] = [4.0, 8.0]
        write(tmp_path / "eval/in-test_reviews/mmrole-agent" / name, records)
    return tmp_path / "eval"


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def test_the_page_tells_what_differs(script, job, judge, tiny, published, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--reward_model_path", judge, "--agent_path", tiny, "--image_dir", job.image_dir, "--dtype", "float64"]
    flags += ["--published_dir", published, "--output_dir", tmp_path / "check", "--max_new_tokens", 16]
    assert script.main(list(map(str, flags))) == 0
    page = (tmp_path / "check/differences.md").read_text("utf-8")
    assert "31 of 32 score pairs are the published ones" in page
    assert "| Captain\\_comment\\_3 | Fluency | 4 : 8 | 9 : 8 |" in page
    assert re.search(r"\| mmrole-agent, In-Test \| 32 \| 1\.105 \| 1\.125 \| 0\.020 \[", page)
    assert "| comment | 2 | 1 | 0 |" in page
    assert "| all | 4 | 1 | 0 |" in page
    assert (tmp_path / "check/in-test_reviews/mmrole-agent" / TEST_FILES[0]).is_file()
    assert (tmp_path / "check/in-test_answers/mmrole-agent" / TEST_FILES[0]).is_file()


def test_a_reward_model_without_scores_still_gets_a_page(published, tmp_path):
    now = tmp_path / "now" / TEST_FILES[0]
    records = json.loads((published / "in-test_reviews/mmrole-agent" / TEST_FILES[0]).read_text("utf-8"))
    for review in (review for record in records for review in record["rm_review"].values()):
        review["score"] = None
    write(now, records)
    matched = match(read_reviews([now]), read_reviews([published / "in-test_reviews/mmrole-agent" / TEST_FILES[0]]))
    page = release_page([], [ReviewCheck("my-agent", matched, measure_agreement(matched))], [])
    assert "0 of 0 score pairs" in page
    assert "16 without scores" in page
    assert "| my-agent | 0 | – | – | – |" in page
    assert "## The agent" not in page


def test_what_is_missing_is_said_before_any_model_runs(script, published, tmp_path):
    with pytest.raises(UserError, match=r"no published reviews of nobody \(as .*in-test_reviews/nobody\)"):
        script.main(["--published_dir", str(published), "--models", "nobody"])
    with pytest.raises(UserError, match="no published answers of nobody"):
        script.main(["--published_dir", str(published), "--agent", "nobody"])
    (published / "in-test_answers").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="in-test_answers/mmrole-agent, whose reviews are to be compared"):
        script.main(["--published_dir", str(published)])


@pytest.mark.parametrize("flag", ["--models", "--agent"])
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".", ""])
def test_a_model_is_no_path(script, flag, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([flag, name])
    assert stopped.value.code == 2
    assert "is no model; give the name of its folder" in capsys.readouterr().err


def test_a_failing_script_ends_it(script, published, tmp_path, job, capfd):
    flags = ["--published_dir", published, "--agent_path", tmp_path / "none", "--only", "agent"]
    flags += ["--image_dir", job.image_dir, "--output_dir", tmp_path / "check"]
    with pytest.raises(UserError, match=r"inference\.py ended with status 2; mend what it says above"):
        script.main(list(map(str, flags)))
    assert "error: " in capfd.readouterr().err
    assert not (tmp_path / "check/differences.md").exists()


def test_help_explains_every_flag_without_torch(repository):
    said = help_of(repository / "scripts/verify_release.py")
    for flag in ("reward_model_path", "agent_path", "only", "published_dir", "models", "agent", "output_dir", "limit"):
        assert f"--{flag} " in said


def test_published_outputs_against_themselves_do_not_differ(shared):
    folder = shared / "mmrole/eval"
    places = [folder / "in-test_reviews/mmrole-agent"]
    matched = match(read_reviews(places), read_reviews(places))
    check = ReviewCheck("mmrole-agent, In-Test", matched, measure_agreement(matched, draws=200))
    pairs, missing = read_answer_pairs(*[folder / "in-test_answers/mmrole-agent"] * 2)
    page = release_page([], [check], [AnswerCheck("In-Test", pairs, missing)])
    assert "1728 of 1728 score pairs are the published ones" in page
    assert "| mmrole-agent, In-Test | 1728 | 0.999 | 0.999 | 0.000 [0.000, 0.000] |" in page
    assert "Largest differences" not in page
    assert "| all | 216 | 216 | 0 | 0 |" in page
    assert "The least alike" not in page


def test_text_of_answers_stays_text_on_the_page():
    pair = AnswerPair("a|b_*c*", "comment", "```\n# Title\n````` | <b>", "# Other\n\n| x |")
    page = release_page([], [], [AnswerCheck("In-Test", [pair], 2)])
    assert "2 published answers have no counterpart." in page
    block = page[page.index("a\\|b\\_\\*c\\*") :].split("\n\n")[1].splitlines()
    assert block[0] == block[-1] == "``````"
    assert block[1:-1] == ["published: ``` # Title ````` | <b>", "now:       # Other | x |"]


def test_similarity_and_common_beginning():
    pair = AnswerPair("", "", "A ship at sea.", "A ship in port.")
    assert pair.prefix == len("A ship ")
    assert 0.5 < pair.similarity < 1
    assert AnswerPair("", "", "Aye", "Aye, sir").prefix == 3
    assert AnswerPair("", "", "Aye", "Aye").similarity == 1
