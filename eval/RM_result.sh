#!/usr/bin/env bash
# Results from the reviews of In-Test and Out-Test: MODEL=mmrole-agent bash eval/RM_result.sh
#
# By environment:
#   MODEL        whose reviews: eval/{in,out}-test_reviews/$MODEL (default: mmrole-agent)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Tables go to eval/{in,out}-test_results/$MODEL. Exit status 2: reviews that cannot be read, or are not there;
# otherwise 3: results that do not cover all answers. The other test set is computed all the same.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-mmrole-agent}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi

status=0
for split in in-test out-test; do
    code=0
    "$PYTHON" eval/RM_result.py --input_dir "eval/${split}_reviews/$MODEL" --output_dir "eval/${split}_results/$MODEL" \
        "$@" || code=$?
    case $code in
        0) ;;
        3) [ "$status" -ne 0 ] || status=3 ;;
        *) status=$code ;;
    esac
done
exit "$status"
