"""inference.py on the published In-Test samples whose stills are available: the answers are those of `generate()`."""

import json
import subprocess
import sys

import pytest

from mmrole.jobs.options import TEST_FILES


@pytest.fixture
def published(make_job, shared, real_vocabulary, tmp_path):
    """The In-Test samples (the published answers without the answers) and the golden checkpoint `ckpt_full`."""
    expand = [
        sys.executable,
        shared / "golden/ckpt_full/materialize.py",
        tmp_path / "model",
        "--vocab",
        real_vocabulary,
    ]
    subprocess.run(expand, check=True, capture_output=True)
    job = make_job(tmp_path, tmp_path / "model", shared / "mmrole/images", max_new_tokens=16)
    for name in TEST_FILES:
        answers = shared / "mmrole/eval/in-test_answers/mmrole-agent" / name
        records = json.loads(answers.read_text(encoding="utf-8"))
        for record in records:
            del record["conversations"][1]["answer"]
        job.write(records, name)
    return job


def test_in_test(published, capsys, request):
    assert published.run("--no_random", "--dtype", "float64", "--skip_missing_images", one_file=False) == 0
    said = capsys.readouterr().out
    model = published.load()
    count = 0
    for name, missing in zip(TEST_FILES, (53, 57, 48), strict=True):
        assert f"{name}: {missing} of 72 records have no image file and are left out" in said
        records = json.loads((published.input_dir / name).read_text(encoding="utf-8"))
        records = [record for record in records if (published.image_dir / record["image"]).exists()]
        output, answers = (published.output_dir / name).read_bytes(), published.answers(name)
        assert output == published.with_answers(records, answers)
        compared = len(records) if request.config.getoption("--long") else 4
        for record, answer in list(zip(records, answers, strict=True))[:compared]:
            assert answer == published.alone(model, record).text, record["id"]
        count += len(records)
    assert count == 58
    assert "\n58 replies, " in said
