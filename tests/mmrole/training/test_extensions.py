"""What is said before DeepSpeed builds an extension: that it does, what it waits for, and what it lacks."""

import os

import pytest
from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder

from mmrole.base.errors import UserError
from mmrole.training import extensions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    built = tmp_path / "py311_cpu" / "deepspeed_shm_comm"
    built.mkdir(parents=True)
    return built


def test_a_build_is_announced(folder, monkeypatch):
    monkeypatch.setenv("CXX", "true")  # any program
    assert extensions.before_build_on_cpu() == ["DeepSpeed builds an extension, once, in about a minute"]


def test_without_a_compiler_the_remedy_is_told(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no compiler no-such-compiler; apt install g\+\+"):
        extensions.before_build_on_cpu()


def test_a_lock_is_named_with_what_to_do(folder):
    (folder / "lock").touch()
    (note,) = extensions.before_build_on_cpu()
    assert note.startswith(f"{folder / 'lock'}: ")
    assert "delete this" in note
    assert extensions.locks() == [note]


def test_what_is_built_needs_no_word_and_no_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (folder / "deepspeed_shm_comm.so").touch()
    assert extensions.before_build_on_cpu() == []


@pytest.mark.parametrize(
    ("given", "readable"),
    [
        ("9.0a", "9.0"),
        ("8.0;9.0a+PTX", "8.0;9.0+PTX"),
        ("8.0 9.0a 10.0f", "8.0 9.0 10.0"),
        ("8.0;9.0+PTX", None),
        ("Hopper", None),
        (None, None),
    ],
)
def test_letters_of_architectures_are_taken_out_for_deepspeed(given, readable):
    environment = {} if given is None else {extensions.ARCHITECTURES: given}
    notes = extensions.make_architectures_readable(environment)
    assert environment.get(extensions.ARCHITECTURES) == (given if readable is None else readable)
    assert notes == (
        []
        if readable is None
        else [f"TORCH_CUDA_ARCH_LIST={readable} for DeepSpeed's extensions: it cannot read {given}"]
    )


def test_deepspeed_reads_what_is_left(monkeypatch):
    builder = FusedAdamBuilder()
    monkeypatch.setenv(extensions.ARCHITECTURES, "8.0;9.0a")
    builder.jit_mode = True
    with pytest.raises(ValueError, match="0a"):
        builder.compute_capability_args()
    extensions.make_architectures_readable(os.environ)
    builder.compute_capability_args()
    assert os.environ[extensions.ARCHITECTURES] == "8.0;9.0+PTX"
