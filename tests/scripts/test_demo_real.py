"""scripts/demo.sh --real: the whole wiring with the real language model, and again, which does nothing."""

import os
import subprocess
import sys

import pytest


def demo(repository, folder):
    return subprocess.run(
        ["bash", repository / "scripts/demo.sh", "--real", "--quick"],
        env={**os.environ, "PYTHON": sys.executable, "FOLDER": str(folder)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.mark.timeout(1200)
def test_quick_runs_through_and_again_does_nothing(repository, tmp_path):
    folder = tmp_path / "demo"
    first = demo(repository, folder)
    if "which cannot be installed" in first.stderr:
        pytest.skip(first.stderr.splitlines()[-1])
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "the colour, on held-out pictures" in (folder / "demo_table.md").read_text(encoding="utf-8")
    assert first.stdout.count("\nimages/") == 5  # talks beside their pictures
    written = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").rglob("*.safetensors")}
    again = demo(repository, folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert "finished before" in again.stdout
    assert "replies, " not in again.stdout
