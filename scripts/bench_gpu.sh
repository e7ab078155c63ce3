#!/usr/bin/env bash
# Measures the engine and the training on this machine's GPU: bash scripts/bench_gpu.sh [flags; --help]
#
# It needs the repository's files, torch 2.11 and transformers 5.17 or later, and no installation of this repository.
# What else is missing (DeepSpeed, PEFT) is missing in the table.
#
# By environment:
#   PYTHON    interpreter (default: .venv/bin/python if it is there, else python, else python3)
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=$(command -v python || echo python3)
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" "$root/scripts/bench_gpu.py" "$@"
