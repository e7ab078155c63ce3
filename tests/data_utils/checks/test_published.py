"""What is reported on the published files: every kind was looked at by hand, so the counts stay as they are."""

import pytest

from data_utils.checks.checker import Checker
from data_utils.checks.forms import Form, find_files

# By kind: in dialogues, annotations and profiles; in answers, where reviews repeat them; as docs/data_check.md says.
DATA = {"failed_generation": 850, "surrounding_space": 216, "image_case": 15}
ANSWERS = {"speaker_prefix": 51, "bare_name": 9, "assistant_ism": 1, "wrong_language": 1, "empty_answer": 1}


@pytest.fixture(scope="module")
def reports(shared):
    checker = Checker()
    return [checker.check_file(file) for file in find_files(shared / "mmrole")]


def counts(reports, forms):
    found = [problem.kind for report in reports if report.form in forms for problem in report.problems]
    return {kind: found.count(kind) for kind in found}


def test_every_file_has_its_form(reports):
    forms = [report.form for report in reports]
    assert {form: forms.count(form) for form in forms} == {
        Form.DIALOGUES: 358,
        Form.ANSWERS: 12,
        Form.RESULTS: 12,
        Form.REVIEWS: 12,
        Form.ANNOTATIONS: 1,
        Form.DETAILED_PROFILE: 72,
        Form.META_INFO: 20,
        Form.PROFILES: 1,
        Form.RAW_INFO: 52,
        Form.ROLES: 1,
    }
    assert sum(report.records for report in reports if report.form == Form.DIALOGUES) == 13_654


def test_counts_by_kind(reports):
    missing = {"missing_image": 10_818}
    data = counts(reports, set(Form) - {Form.ANSWERS, Form.REVIEWS, Form.RESULTS})
    assert data == DATA | missing
    for form in (Form.ANSWERS, Form.REVIEWS):
        found = counts(reports, {form})
        assert found == ANSWERS | {"missing_image": 632}


def test_missing_images_are_those_that_are_not_in_the_folder(reports, shared):
    missing = [problem for report in reports for problem in report.problems if problem.kind == "missing_image"]
    coco = [problem for problem in missing if problem.text.startswith("'COCO/")]
    assert len(missing) - len(coco) == 18
    assert not (shared / "mmrole/images/COCO").exists()


def test_failed_generations_and_spaces_by_type(reports):
    texts = [problem.text for report in reports for problem in report.problems if problem.kind == "failed_generation"]
    assert {text: texts.count(text) for text in texts} == {
        "there is only a question": 209,
        "there is no utterance": 641,
    }
