"""Exit statuses and messages of a script's mistakes."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mmrole.base.errors import Problems, UserError, in_one_line, listed, run, shown


def exit_of(main, capsys: pytest.CaptureFixture) -> tuple[int | None, str]:
    with pytest.raises(SystemExit) as exit_info:
        run(main)
    return exit_info.value.code, capsys.readouterr().err


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture):
    def main() -> None:
        raise UserError("x.json is empty; fill it")

    assert exit_of(main, capsys) == (2, "error: x.json is empty; fill it\n")


def test_other_endings(capsys: pytest.CaptureFixture):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_of(lambda: None, capsys) == (None, "")
    assert exit_of(lambda: 3, capsys) == (3, "")
    assert exit_of(interrupted, capsys) == (130, "interrupted\n")
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run(lambda: 1 // 0)


def test_a_closed_pipe_is_no_traceback(repository: Path):
    code = "from mmrole.base.errors import run\nrun(lambda: [print('x' * 999) for _ in range(999)] and None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_problems_are_listed_together():
    problems = Problems()
    problems.raise_if_any("never", "seen")
    problems.add("a[0]: bad")
    with pytest.raises(UserError, match=r"^a\[0\]: bad; mend it$"):
        problems.raise_if_any("a has faulty records", "mend it")
    for index in range(1, 25):
        problems.add(ValueError(f"a[{index}]: bad"))
    with pytest.raises(UserError) as caught:
        problems.raise_if_any("a has faulty records", "mend it")
    lines = str(caught.value).splitlines()
    assert lines[0] == "a has faulty records (25 problems):"
    assert lines[1:11] == [f"  a[{index}]: bad" for index in range(10)]
    assert lines[11:] == ["  … and 15 more", "mend it"]


def test_shown_values_are_short_and_harmless():
    assert shown("\x1b[31m\n" + "x" * 1_000_000) == "'\\x1b[31m\\n" + "x" * 68 + "…"
    assert shown("孙悟空") == "'孙悟空'"


def test_names_are_listed_up_to_a_number():
    assert listed(["a", "b", "c\n"], 3) == "a, b, 'c\\n'"
    assert listed(["a", "孙悟空", "c"], 2) == "a, 孙悟空 … and 1 more"


def test_any_text_can_be_printed_in_any_encoding(repository: Path):
    code = "from mmrole.base.errors import run\nrun(lambda: print('孙 \\udcff'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True)
    assert (done.stdout, done.stderr) == (b"\\u5b59 \\udcff\n", b"")


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture):
    name = "a" * 300
    assert exit_of(lambda: Path(name).exists(), capsys) == (2, f"error: cannot use {name}: File name too long\n")
    status, said = exit_of(Path("no\nfile").stat, capsys)
    assert (status, said) == (2, "error: cannot use 'no\\nfile': No such file or directory\n")
    with pytest.raises(OSError, match="no file"):  # not about a file of the user: a bug
        run(lambda: exec("raise OSError('no file')"))


def test_names_of_files_are_utf8_in_any_locale(repository: Path, tmp_path: Path):
    (tmp_path / "西游记").mkdir()
    (tmp_path / "西游记/孙悟空.txt").write_text("Monkey", "utf-8")
    (tmp_path / "script.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom mmrole.base.errors import run\n"
        "run(lambda: print(Path(sys.argv[1]).read_text(), input(), Path('西游记').is_dir()))\n",
        "utf-8",
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(repository)}
    command = [sys.executable, "script.py", "西游记/孙悟空.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ascii_only, input=b"typed\n", capture_output=True)
    assert (done.stdout, done.stderr, done.returncode) == (b"Monkey typed True\n", b"", 0)


def test_names_with_line_ends_do_not_break_a_line(capsys: pytest.CaptureFixture):
    def main() -> None:
        problems = Problems()
        for name in ("a\nb.json", "\x1b[2Jc.json", "图\u2028.json"):
            problems.add(f"{name} is empty")
        problems.raise_if_any("files are empty", "fill them")

    lines = ["files are empty (3 problems):", r"  a\nb.json is empty", r"  \x1b[2Jc.json is empty"]
    lines += [r"  图\u2028.json is empty", "fill them"]
    assert exit_of(main, capsys) == (2, "error: " + "\n".join(lines) + "\n")
    assert pickle.loads(pickle.dumps(UserError(*lines))).lines == lines


def test_a_text_cannot_turn_its_direction_around():
    assert in_one_line("\u202etxt.exe\u2066 \u827e") == "\\u202etxt.exe\\u2066 \u827e"
