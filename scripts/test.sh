#!/usr/bin/env bash
# Installs what is missing, checks style and imports, and runs the tests, types among them:
# bash scripts/test.sh [pytest arguments]
# Without arguments, all of them, two at a time; with arguments, one after the other, as pytest does. Paths among the
# arguments are relative to the repository root. The slow tests run with --long.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh" --dev

# The interpreter that setup.sh installed into, and its programs (ninja, torchrun) first on the path.
python=${PYTHON:-${VIRTUAL_ENV:-$root/.venv}/bin/python}
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
export PATH

cd -- "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
lint-imports --no-cache
if [ $# -eq 0 ]; then
    export OMP_NUM_THREADS=1 # for each worker: several threads of two workers would wait for one another
    set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder
fi
exec "$python" -m pytest "$@"
