"""What the README shows under "Score any model" runs as it stands there, with a small server in place of OpenAI's."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.desk import desk, sample
from fixtures.servers import Ask, Say, calm, completion, server

from mmrole.data.prompts import METRICS
from mmrole.jobs.options import TEST_FILES

__all__ = ["desk", "server"]


@pytest.fixture
def root(desk, repository) -> Path:
    """A repository root with a record in each file of the data."""
    root = desk.folder / "root"
    for script in ("inference.py", "inference.sh", "eval/RM_review.py", "eval/RM_review.sh", "eval/RM_result.sh"):
        (root / script).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / script, root / script)
    shutil.copy(repository / "eval/RM_result.py", root / "eval")
    (root / "images").symlink_to(desk.folder / "images")
    for distribution in ("in-distribution", "out-of-distribution"):
        folder = root / "data/test" / distribution
        folder.mkdir(parents=True)
        for name in TEST_FILES:
            (folder / name).write_text(json.dumps([sample(f"{distribution} {name}")]))
    return root


def judge(ask: Ask) -> Say | dict:
    """Answers, and reviews answers."""
    return completion("Both are good. [Scores]: (7, 8)") if ask.id.endswith(METRICS) else calm(ask)


def test_every_command(root, server, repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Score any model\n.*?^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    install, *commands = block.splitlines()
    assert install == "pip install -e '.[api]'"
    assert [re.sub(r"^JUDGE=\S+ ", "", command).split()[1] for command in commands[1:]] == [
        *("inference.sh", "inference.sh", "eval/RM_review.sh", "eval/RM_result.sh")
    ]
    server.behaviour = judge
    script = "\n".join(commands).replace("https://api.openai.com/v1", server.url)
    assert script.count(server.url) == 1
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.count("3 requests with 3 images: about") == 2
    ids = server.asked()
    assert len(ids) == len({*ids}) == 6 + 6 * len(METRICS)
    for split in ("in", "out"):
        assert (root / f"eval/{split}-test_answers/gpt-4o/comment_test.json").is_file()
        reviews = json.loads((root / f"eval/{split}-test_reviews@gpt-4o/gpt-4o/comment_test.json").read_bytes())
        assert [review["score"] for review in reviews[0]["rm_review"].values()] == [[7.0, 8.0]] * len(METRICS)
        assert (root / f"eval/{split}-test_results@gpt-4o/gpt-4o").is_dir()
