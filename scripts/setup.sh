#!/usr/bin/env bash
# Installs the project for development: bash scripts/setup.sh [--dev]
#
# Into $PYTHON's environment if PYTHON is set, else into the active environment (VIRTUAL_ENV), else into .venv in the
# repository root, which is created. Run again, it returns at once unless a requirement file changed.
#   --dev             also what the tests need (requirements-dev.txt)
#   TORCH_INDEX_URL   package index to take torch from, e.g. the one with CPU or CUDA wheels for this machine
#   PIP_*             pip's own variables work as always
# On a machine with an NVIDIA GPU a torch that is already installed and recent enough is kept, since it fits the driver.
# Otherwise torch is installed first, in the version of constraints.txt.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

fail() {
    echo "setup.sh: $*" >&2
    exit 2
}

dev=no
for argument in "$@"; do
    case $argument in
        --dev) dev=yes ;;
        -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) fail "unknown argument $argument; usage: bash scripts/setup.sh [--dev]" ;;
    esac
done

# --- which Python ---------------------------------------------------------------------------------------------------
check_version() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$1 is $("$1" -V 2>&1); Python 3.11 or later is needed (PYTHON=/path/to/python3 bash scripts/setup.sh)"
}

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -n "${VIRTUAL_ENV:-}" ]; then
    python=$VIRTUAL_ENV/bin/python
else
    python=$root/.venv/bin/python
    if ! "$python" -c '' 2>/dev/null; then
        command -v python3 >/dev/null || fail "python3 not found; Python 3.11 or later is needed"
        check_version python3
        echo "setup.sh: creating $root/.venv"
        python3 -m venv .venv || fail "python3 -m venv failed (on Debian and Ubuntu: apt install python3-venv)"
    fi
fi
"$python" -c '' 2>/dev/null || fail "$python cannot be run; unset PYTHON and VIRTUAL_ENV to use .venv"
check_version "$python"

# --- what DeepSpeed compiles with -----------------------------------------------------------------------------------
# Its CPU optimizer is built at first use, in the middle of a training run: better said now.
check_compiler() {
    command -v "${CXX:-g++}" >/dev/null ||
        echo "setup.sh: warning: ${CXX:-g++} not found; DeepSpeed needs it to build its extensions (apt install g++)" >&2
    [ -x "$scripts_dir/ninja" ] || command -v ninja >/dev/null ||
        echo "setup.sh: warning: ninja not found; DeepSpeed needs it to build its extensions (pip install ninja)" >&2
}

# --- anything to do? ------------------------------------------------------------------------------------------------
# The stamps lie in the environment, one for the plain and one for the dev installation. They hold a hash of all that
# decides what is installed: requirement files, the interpreter, this clone's path and its packages.
read_state() {
    "$python" - "$root" <<'PY'
import hashlib, pathlib, sys, sysconfig
root = pathlib.Path(sys.argv[1])
def digest(*names):
    state = [sys.version, str(root), *sorted(p.parent.name for p in root.glob("*/__init__.py"))]
    state += [(root / name).read_text(encoding="utf-8") for name in names]
    return hashlib.sha256("\0".join(state).encode()).hexdigest()
files = ["requirements.txt", "constraints.txt", "pyproject.toml", "scripts/setup.sh"]
print(digest(*files))
print(digest(*files, "requirements-dev.txt"))
print(sys.prefix)
print(sysconfig.get_path("scripts"))
PY
}

{ read -r plain_hash; read -r dev_hash; read -r prefix; read -r scripts_dir; } < <(read_state)
plain_stamp=$prefix/.mmrole-setup
dev_stamp=$prefix/.mmrole-setup-dev

if [ "$(cat -- "$dev_stamp" 2>/dev/null)" = "$dev_hash" ] ||
    { [ $dev = no ] && [ "$(cat -- "$plain_stamp" 2>/dev/null)" = "$plain_hash" ]; }; then
    check_compiler
    echo "setup.sh: $prefix is up to date"
    exit 0
fi

# --- install --------------------------------------------------------------------------------------------------------
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip ||
    fail "$python has no pip (on Debian and Ubuntu: apt install python3-venv, and remove .venv)"

# The version of an installed torch that requirements.txt accepts, else nothing.
usable_torch() {
    "$python" - <<'PY'
import importlib.metadata
try:
    from packaging.requirements import Requirement
except ImportError:  # packaging comes with everything that needs torch, but not with a bare environment
    from pip._vendor.packaging.requirements import Requirement
lines = (line.split("#")[0].strip() for line in open("requirements.txt", encoding="utf-8"))
torch = next(Requirement(line) for line in lines if line.startswith("torch"))
try:
    version = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    version = None
if version and torch.specifier.contains(version, prereleases=True):
    print(version)
PY
}

pip_install() {
    "$python" -m pip install --disable-pip-version-check --no-input "$@"
}

constraints=$(mktemp)
trap 'rm -f -- "$constraints"' EXIT

torch_pin=$(grep '^torch==' constraints.txt)
gpu=no
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    gpu=yes
    kept=$(usable_torch)
    [ -z "$kept" ] || torch_pin="torch==$kept"
fi
if [ $gpu = yes ] && [ -n "$kept" ]; then
    echo "setup.sh: NVIDIA GPU found; keeping $torch_pin"
else
    echo "setup.sh: installing $torch_pin (NVIDIA GPU: $gpu)"
    pip_install "$torch_pin" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
fi

# Nothing below may replace that torch, nor the Triton that its CUDA builds bring, even where they are not the tested
# ones.
triton_pin=$("$python" -m pip list --format=freeze --disable-pip-version-check 2>/dev/null | grep '^triton==') ||
    triton_pin=$(grep '^triton==' constraints.txt)
{ grep -vE '^(torch|triton)==' constraints.txt; echo "$torch_pin"; echo "$triton_pin"; } >"$constraints"
requirements=(-r requirements.txt)
[ $dev = no ] || requirements+=(-r requirements-dev.txt)
pip_install -c "$constraints" "${requirements[@]}" -e .

check_compiler
echo "$plain_hash" >"$plain_stamp"
[ $dev = no ] || echo "$dev_hash" >"$dev_stamp"
echo "setup.sh: installed into $prefix"
