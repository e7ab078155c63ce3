#!/usr/bin/env bash
# Fetches the data set, the COCO images that it needs, and the weights, into the repository root; run again, it goes on:
#   bash scripts/download.sh {data,images,agent,rm,base,all} [options of data_utils.download; --help lists them]
# With $PYTHON if it is set, else with .venv/bin/python, else with python.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || [ -n "${PYTHON:-}" ] || python=python
exec "$python" -m data_utils.download "$@"
