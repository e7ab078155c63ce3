"""Files with nothing wrong in them: the checks are silent, wherever the files lie."""

import shutil

import pytest

from data_utils import check
from data_utils.checks.checker import Checker
from data_utils.checks.forms import Form, find_files
from mmrole.base.files import read_json, write_json


def test_nothing_is_reported(clean_root, capsys):
    assert check.main([str(clean_root), "--strict"]) == 0
    assert "0 errors, 0 warnings in 48 files" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".json"])
def test_forms_are_told_from_content_alone(clean_root, tmp_path, suffix):
    checker = Checker(data_root=clean_root)
    forms = set()
    for number, file in enumerate(find_files(clean_root)):
        if file.suffix == suffix:
            elsewhere = tmp_path / f"{number}.json"
            shutil.copyfile(file, elsewhere)
            report = checker.check_file(elsewhere)
            assert report.form == checker.check_file(file).form
            forms.add(report.form)
    assert forms == set(Form) - {Form.RESULTS, Form.RAW_INFO}


def test_reviews_by_another_judge_are_checked_as_well(root, capsys):
    for kind in ("reviews", "results"):
        shutil.copytree(root / f"eval/in-test_{kind}", root / f"eval/in-test_{kind}@gpt_results@1")
    (root / "eval/in-test_reviews@gpt_results@1/some-model/comment_test.json").unlink()
    assert check.main([str(root)]) == 1
    said = capsys.readouterr().out
    assert "1 error, 0 warnings in 53 files" in said
    assert "in-test_reviews@gpt_results@1/some-model: there is no comment_test.json for the" in said


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_needs_no_reviews(root, empty):
    (file, *_) = sorted((root / "eval/in-test_reviews").rglob("*.json"))
    records = read_json(file)
    records[0]["conversations"][1]["answer"] = empty
    del records[0]["rm_review"]
    write_json(file, records)
    problems = Checker(data_root=root).check_file(file).problems
    assert "missing_field" not in {problem.kind for problem in problems}
