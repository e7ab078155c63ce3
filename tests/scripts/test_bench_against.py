"""Two versions of the code on one benchmark: each runs its own, in turn, and the best times count."""

from pathlib import Path

import pytest
from fixtures.scripts import load_script

from mmrole.base.errors import UserError

TABLE = """
import os, pathlib, sys
runs = pathlib.Path(__file__).with_name("runs")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
assert sys.argv[1:] == ["--requests", "2"], sys.argv
assert os.environ["PYTHONPATH"] == str(pathlib.Path(__file__).resolve().parents[1])
print(f"{'':<30}{'requests/s':>11}{'tokens/s':>10}{'peak GiB':>10}{'seconds':>9}{'bound':>8}{'reached':>9}")
print(f"{'(a) generate(), one at a time':<30}{1:>11.3f}{2:>10.1f}{1.5:>10.2f}{99:>9.1f}{8:>8.1f}{0.5:>9.0%}")
seconds = SECONDS - len(runs.read_text())
print(f"{'(b) engine, eight a tree':<30}{1:>11.3f}{2:>10.1f}{1.5:>10.2f}{seconds:>9.1f}{8:>8.1f}{0.5:>9.0%}")
"""


def version(root: Path, seconds: int) -> Path:
    script = root / "scripts" / "bench.py"
    script.parent.mkdir(parents=True)
    script.write_text(TABLE.replace("SECONDS", str(seconds)))
    return script


@pytest.fixture(scope="module")
def bench_against(repository):
    return load_script(repository / "scripts" / "bench_against.py")


def test_the_best_times_of_both_versions_are_compared(bench_against, tmp_path, capsys):
    script = version(tmp_path / "new", 13)
    version(tmp_path / "old", 23)
    argv = ["--against", str(tmp_path / "old"), "--requests", "2"]
    assert bench_against.compare_versions(script, tmp_path / "old", argv) == 0
    said = capsys.readouterr().out
    assert "takes 0.500 times as long" in said  # 10 of the third run, and 20
    assert said.count("run ") == 6


def test_a_version_without_the_benchmark_or_that_fails_is_refused_in_a_line(bench_against, tmp_path):
    script = version(tmp_path / "new", 13)
    with pytest.raises(UserError, match=r"no .*old/scripts/bench\.py"):
        bench_against.compare_versions(script, tmp_path / "old", [])
    version(tmp_path / "old", 13)
    with pytest.raises(UserError, match=r"failed: AssertionError"):
        bench_against.compare_versions(script, tmp_path / "old", ["--requests", "3"])
