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


ADAM = {"optimizer": {"type": "AdamW", "params": {}}}
OFFLOADED = ADAM | {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(("config", "name"), [(ADAM, "fused_adam"), (OFFLOADED, "cpu_adam")])
def test_a_build_for_a_gpu_is_announced(folder, monkeypatch, config, name):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    assert extensions.before_build_on_gpu(config) == ["DeepSpeed builds its optimizer, once, in about a minute"]
    (folder / f"{name}.so").touch()
    assert extensions.before_build_on_gpu(config) == []


def test_a_lock_on_the_way_to_a_gpu_is_named(folder, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    (folder / "lock").touch()
    assert extensions.before_build_on_gpu(ADAM) == extensions.locks()


def test_without_a_toolkit_the_remedy_is_told(folder, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(UserError, match=r'no CUDA toolkit \(nvcc\): install that of CUDA 13.0, or set "torch_adam"'):
        extensions.before_build_on_gpu(ADAM)
    for optimizer in ({"type": "AdamW", "params": {"torch_adam": True}}, {"type": "SGD"}):
        assert extensions.before_build_on_gpu({"optimizer": optimizer}) == []
    assert extensions.before_build_on_gpu({}) == []


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
